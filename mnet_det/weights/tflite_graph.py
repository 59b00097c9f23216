"""The graph inside a TensorFlow Lite file: operators and tensors in plain Python, read with the schema package."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tflite
import torch
from flatbuffers import flexbuffers
from numpy.typing import NDArray
from torch import Tensor

from mnet_det.errors import CheckpointError
from mnet_det.structures import FloatArray

DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT32": np.dtype("<f4"),
    "INT32": np.dtype("<i4"),
    "UINT8": np.dtype("u1"),
    "INT8": np.dtype("i1"),
}
"""Kinds of tensors whose values can be read; of others only shape and name are."""
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
DETECTION = "TFLite_Detection_PostProcess"
UNCHECKED = (
    *(struct.error, LookupError, ValueError, TypeError, OverflowError, AttributeError),
    *(zipfile.BadZipFile, zlib.error, RuntimeError),  # the archive of labels; RuntimeError stands for what it lacks
)
"""What reading a damaged file comes to: the generated readers follow its offsets wherever they lead."""


@dataclass(frozen=True, eq=False)
class GraphTensor:
    """One tensor.

    Attributes:
        name: as the converter wrote it.
        shape: NHWC for maps; filters are [C', k, k, C], depthwise ones [1, k, k, C].
        kind: the schema's name of its type, such as UINT8.
        data: its bytes, none where it is computed.
        scales, zeros: of its quantisation, one each or one for each index of `axis`; none where it is not quantised.
        axis: see `scales`.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    data: bytes
    scales: FloatArray
    zeros: NDArray[np.int64]
    axis: int

    def values(self) -> FloatArray:
        """The stored values as float32, (q - zero) × scale where they are quantised.

        Raises:
            ValueError: nothing is stored, too little, or of a kind that is not read.
        """
        if self.kind not in DTYPES or not self.data:
            raise ValueError(f"tensor {self.name} holds {len(self.data)} bytes of {self.kind}")
        stored = np.frombuffer(self.data, DTYPES[self.kind]).reshape(self.shape)
        if not len(self.scales):
            return stored.astype(np.float32)
        along = [1] * len(self.shape)
        along[self.axis] = -1
        values = (stored - self.zeros.reshape(along)) * self.scales.astype(np.float64).reshape(along)
        return values.astype(np.float32)

    def range(self) -> tuple[float, float] | None:
        """Least and greatest value that its quantisation can hold; None where there is none."""
        if self.kind not in ("UINT8", "INT8") or len(self.scales) != 1:
            return None
        lowest = 0 if self.kind == "UINT8" else -128
        low, high = ((limit - int(self.zeros[0])) * float(self.scales[0]) for limit in (lowest, lowest + 255))
        return low, high


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator; of its options, those that convolutions have and a custom operator's own.

    Attributes:
        kind: the schema's name, or a custom operator's.
        inputs, outputs: numbers of tensors.
        padding: SAME or VALID.
        activation: NONE, RELU6 …
        strides: vertical and horizontal, with dilation: (stride, stride, dilation, dilation).
        custom: a custom operator's options.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    padding: str
    activation: str
    strides: tuple[int, int, int, int]
    custom: dict[str, Any]


@dataclass(frozen=True)
class Graph:
    """A network.

    Attributes:
        tensors: by number.
        operators: in the order of execution.
        inputs, outputs: numbers of tensors.
        labels: of the outputs, where the file carries a list.
    """

    tensors: list[GraphTensor]
    operators: list[Operator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    labels: list[str] | None

    def producer(self, tensor: int) -> Operator | None:
        """The operator that computes a tensor; None for inputs and constants."""
        return next((operator for operator in self.operators if tensor in operator.outputs), None)

    def filter_and_bias(self, operator: Operator) -> tuple[Tensor, Tensor]:
        """Of a convolution: float32 [C', C / groups, k, k] and [C'].

        Raises:
            ValueError: they are not there, or hold no values.
        """
        if len(operator.inputs) != 3 or min(operator.inputs) < 0:
            raise ValueError(f"{operator.kind} has inputs {operator.inputs}, expected a map, a filter and a bias")
        values, bias = (self.tensors[number].values() for number in operator.inputs[1:])
        axes = (3, 0, 1, 2) if operator.kind == "DEPTHWISE_CONV_2D" else (0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(axes))), torch.from_numpy(bias)

    def convolutions_into(self, tensor: int) -> Iterator[Operator]:
        """The last convolutions on each way to a tensor, in the order in which they are joined."""
        operator = self.producer(tensor)
        if operator is None:
            return
        if operator.kind in CONVOLUTIONS:
            yield operator
            return
        for source in operator.inputs:
            yield from self.convolutions_into(source)


def read_graph(path: Path) -> Graph:
    """Read the only subgraph of a file.

    Raises:
        CheckpointError: not TensorFlow Lite, or damaged.
    """
    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise CheckpointError("not a TensorFlow Lite file")
    try:
        graph = _parse(tflite.Model.GetRootAs(content, 0), _labels(path))
        _require_order(graph)
    except UNCHECKED as error:
        raise CheckpointError(f"damaged, its graph cannot be read ({error}); is the file whole?") from None
    return graph


def _parse(model: Any, labels: list[str] | None) -> Graph:
    kinds, types, paddings, activations = (
        {value: name for name, value in vars(enum).items() if isinstance(value, int)}
        for enum in (tflite.BuiltinOperator, tflite.TensorType, tflite.Padding, tflite.ActivationFunctionType)
    )
    subgraph = model.Subgraphs(0)

    def tensor(index: int) -> GraphTensor:
        raw = subgraph.Tensors(index)
        buffer = model.Buffers(raw.Buffer())
        quantization = raw.Quantization()
        scales = 0 if quantization is None else quantization.ScaleLength()
        zeros = 0 if quantization is None else quantization.ZeroPointLength()
        return GraphTensor(
            name=raw.Name().decode(),
            shape=tuple(raw.Shape(axis) for axis in range(raw.ShapeLength())),
            kind=types[raw.Type()],
            data=buffer.DataAsNumpy().tobytes() if buffer.DataLength() else b"",
            scales=quantization.ScaleAsNumpy() if scales else np.zeros(0, np.float32),
            zeros=quantization.ZeroPointAsNumpy() if zeros else np.zeros(scales, np.int64),  # left out where all are 0
            axis=quantization.QuantizedDimension() if scales else 0,
        )

    def operator(index: int) -> Operator:
        raw = subgraph.Operators(index)
        code = model.OperatorCodes(raw.OpcodeIndex())
        # Files older than schema 3a keep the number in the first field, newer ones in the second.
        kind = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        options = {"CONV_2D": tflite.Conv2DOptions, "DEPTHWISE_CONV_2D": tflite.DepthwiseConv2DOptions}.get(kind)
        padding, activation, strides = "", "NONE", (1, 1, 1, 1)
        if options is not None:
            table, conv = raw.BuiltinOptions(), options()
            conv.Init(table.Bytes, table.Pos)
            padding, activation = paddings[conv.Padding()], activations[conv.FusedActivationFunction()]
            strides = (conv.StrideH(), conv.StrideW(), conv.DilationHFactor(), conv.DilationWFactor())
        return Operator(
            kind=code.CustomCode().decode() if kind == "CUSTOM" else kind,
            inputs=tuple(raw.Inputs(number) for number in range(raw.InputsLength())),
            outputs=tuple(raw.Outputs(number) for number in range(raw.OutputsLength())),
            padding=padding,
            activation=activation,
            strides=strides,
            custom=_custom_options(raw),
        )

    return Graph(
        tensors=[tensor(index) for index in range(subgraph.TensorsLength())],
        operators=[operator(index) for index in range(subgraph.OperatorsLength())],
        inputs=tuple(subgraph.Inputs(number) for number in range(subgraph.InputsLength())),
        outputs=tuple(subgraph.Outputs(number) for number in range(subgraph.OutputsLength())),
        labels=labels,
    )


def _require_order(graph: Graph) -> None:
    """Every operator reads what is there before it; so no walk up the graph runs in circles."""
    computed = {number for operator in graph.operators for number in operator.outputs}
    ready = set(range(len(graph.tensors))) - computed
    for operator in graph.operators:
        missing = set(operator.inputs) - ready - {-1}  # the format's sign for an input that is left out
        if missing:
            raise ValueError(f"{operator.kind} reads tensor {min(missing)}, which nothing before it gives")
        ready |= set(operator.outputs)
    strangers = (computed | {*graph.inputs, *graph.outputs}) - set(range(len(graph.tensors)))
    if strangers:
        raise ValueError(f"there is no tensor {min(strangers)}, only {len(graph.tensors)}")


def _custom_options(raw: Any) -> dict[str, Any]:
    if not raw.CustomOptionsLength():
        return {}
    options = flexbuffers.Loads(raw.CustomOptionsAsNumpy().tobytes())
    return options if isinstance(options, dict) else {}


def _labels(path: Path) -> list[str] | None:
    """The list that files with metadata carry in an archive at their end."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        lists = [name for name in archive.namelist() if name.endswith(".txt")]
        return archive.read(lists[0]).decode("utf-8").splitlines() if len(lists) == 1 else None
