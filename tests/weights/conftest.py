"""Small TensorFlow Lite files, written through the schema's own classes, and LiteRT to run any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from mnet_det.models.anchors import AnchorGenerator
from mnet_det.models.mobilenet_v1 import BLOCKS, STEM_CHANNELS, scale_channels

Form = Literal["float32", "uint8", "int8"]
RELU6_SCALE = 6 / 255
LINEAR = (20 / 255, 128)
"""Scale and zero point, counted from the least value, of outputs between -10 and 10."""


@dataclass
class Drawn:
    """A network with random weights.

    Attributes:
        model: the schema's `ModelT`; tests damage it before they save it.
        filters, biases: of each convolution in order, as the file's numbers come out; filters are [C', k, k, C], of
            depthwise ones [1, k, k, C].
    """

    model: Any
    filters: list[NDArray[np.float64]]
    biases: list[NDArray[np.float64]]

    @property
    def operators(self) -> list[Any]:
        return self.model.subgraphs[0].operators

    def save(self, path: Path) -> Path:
        import flatbuffers

        builder = flatbuffers.Builder()
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(builder.Output())
        return path


class Drawing:
    """A graph, operator by operator. 8-bit unsigned weights have one scale a tensor, signed ones one a channel."""

    def __init__(self, form: Form, side: int) -> None:
        self.schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
        self.form = form
        self.random = np.random.default_rng(side)
        self.tensors: list[Any] = []
        self.buffers = [self.schema.BufferT()]
        self.operators: list[Any] = []
        self.codes: list[Any] = []
        self.filters: list[NDArray[np.float64]] = []
        self.biases: list[NDArray[np.float64]] = []
        self.pixels = self.map((1, side, side, 3), 1 / 128, 128)

    def tensor(self, shape: Sequence[int], kind: str, scales: Any = (), zeros: Any = (), axis: int = 0) -> int:
        tensor = self.schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), getattr(self.schema.TensorType, kind.upper()), 0
        tensor.name = f"tensor_{len(self.tensors)}"
        if np.size(scales):
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(scales).astype(np.float32)
            tensor.quantization.zeroPoint = np.atleast_1d(zeros).astype(np.int64)
            tensor.quantization.quantizedDimension = axis
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def map(self, shape: Sequence[int], scale: float, zero: int) -> int:
        """What is computed; its zero point is counted from the least value of the type."""
        if self.form == "float32":
            return self.tensor(shape, "float32")
        return self.tensor(shape, self.form, scale, zero - 128 * (self.form == "int8"))

    def constant(self, values: NDArray[Any], scales: Any = (), zeros: Any = (), axis: int = 0) -> int:
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.buffers.append(buffer)
        number = self.tensor(values.shape, str(values.dtype), scales, zeros, axis)
        self.tensors[number].buffer = len(self.buffers) - 1
        return number

    def operator(
        self, kind: str, inputs: Sequence[int], outputs: Sequence[int], options: str = "", **values: Any
    ) -> int:
        code, operator = self.schema.OperatorCodeT(), self.schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(self.schema.BuiltinOperator, kind)
        code.version = 1
        operator.opcodeIndex, operator.inputs, operator.outputs = len(self.codes), list(inputs), list(outputs)
        if options:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self.schema, f"{options}T")()
            for name, value in values.items():
                setattr(operator.builtinOptions, name, value)
        self.codes.append(code)
        self.operators.append(operator)
        return outputs[0]

    def convolution(
        self,
        source: int,
        channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        depthwise: bool = False,
        linear: bool = False,
    ) -> int:
        _, height, width, depth = self.tensors[source].shape
        fan_in = kernel**2 * (1 if depthwise else depth)
        shape = (1, kernel, kernel, depth) if depthwise else (channels, kernel, kernel, depth)
        weights = self.random.normal(0, np.sqrt(2 / fan_in), shape)
        stored, scales, zeros = self._rounded(weights, axis=3 if depthwise else 0)
        bias = self.random.normal(0, 0.2, channels)
        if self.form == "float32":
            biases = self.constant(bias.astype(np.float32))
            self.biases.append(bias.astype(np.float32))
        else:
            steps = self.tensors[source].quantization.scale[0].astype(np.float64) * scales
            biases = self.constant(np.round(bias / steps).astype(np.int32), steps, np.zeros(np.size(steps)))
            self.biases.append(np.round(bias / steps) * steps)
        output = self.map(
            (1, -(-height // stride), -(-width // stride), channels), *(LINEAR if linear else (RELU6_SCALE, 0))
        )
        return self.operator(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
            (source, self.constant(stored, scales, zeros, axis=3 if depthwise else 0), biases),
            (output,),
            "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions",
            padding=self.schema.Padding.SAME,
            fusedActivationFunction=getattr(self.schema.ActivationFunctionType, "NONE" if linear else "RELU6"),
            strideH=stride,
            strideW=stride,
            **({"depthMultiplier": 1} if depthwise else {}),
        )

    def _rounded(self, weights: NDArray[np.float64], *, axis: int) -> tuple[NDArray[Any], Any, Any]:
        """Stored filter, its scales and zero points; what they stand for goes to `filters`."""
        if self.form == "float32":
            self.filters.append(weights.astype(np.float32))
            return weights.astype(np.float32), (), ()
        if self.form == "uint8":
            scale = np.float64(np.float32((weights.max() - weights.min()) / 255))
            zero = round(-weights.min() / scale)
            stored = np.clip(np.round(weights / scale) + zero, 0, 255)
            self.filters.append((stored - zero) * scale)
            return stored.astype(np.uint8), scale, zero
        others = tuple(number for number in range(4) if number != axis)
        scales = (np.abs(weights).max(axis=others, keepdims=True) / 127).astype(np.float32).astype(np.float64)
        stored = np.round(weights / scales)
        self.filters.append(stored * scales)
        return stored.astype(np.int8), scales.ravel(), np.zeros(scales.size)

    def anchors(self, values: NDArray[np.float32]) -> int:
        if self.form == "float32":
            return self.constant(values)
        scale = np.float32(values.max() / 255)
        return self.constant(np.round(values / scale).astype(np.uint8), scale, 0)

    def backbone(self, alpha: float) -> list[int]:
        """The maps after all blocks, the stem's first."""
        maps = [self.convolution(self.pixels, scale_channels(STEM_CHANNELS, alpha), kernel=3, stride=2)]
        for channels, stride in BLOCKS.values():
            depth = self.tensors[maps[-1]].shape[3]
            spatial = self.convolution(maps[-1], depth, kernel=3, stride=stride, depthwise=True)
            maps.append(self.convolution(spatial, scale_channels(channels, alpha)))
        return maps

    def reshape(self, source: int, shape: Sequence[int], scale: float, zero: int) -> int:
        to = self.constant(np.array(shape, np.int32))
        return self.operator(
            "RESHAPE", (source, to), (self.map(shape, scale, zero),), "ReshapeOptions", newShape=list(shape)
        )

    def finish(self, outputs: Sequence[int]) -> Drawn:
        model, graph = self.schema.ModelT(), self.schema.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = (
            self.tensors,
            self.operators,
            [self.pixels],
            list(outputs),
        )
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], self.buffers, self.codes
        return Drawn(model, self.filters, self.biases)


@pytest.fixture(scope="session")
def draw_classifier() -> Callable[..., Drawn]:
    """`draw_classifier(alpha, form)`: MobileNetV1 for 32×32 pixels with 11 outputs; `outputs=0` leaves the head out."""

    def draw(alpha: float, form: Form = "float32", *, outputs: int = 11) -> Drawn:
        drawing = Drawing(form, side=32)
        last = drawing.backbone(alpha)[-1]
        shape = drawing.tensors[last].shape
        pooled = drawing.operator(
            "AVERAGE_POOL_2D",
            (last,),
            (drawing.map((1, 1, 1, shape[3]), RELU6_SCALE, 0),),
            "Pool2DOptions",
            padding=drawing.schema.Padding.VALID,
            strideH=1,
            strideW=1,
            filterHeight=shape[1],
            filterWidth=shape[2],
        )
        if not outputs:
            return drawing.finish([pooled])
        logits = drawing.reshape(drawing.convolution(pooled, outputs, linear=True), (1, outputs), *LINEAR)
        scores = drawing.map((1, outputs), 1 / 256, 0)
        return drawing.finish([drawing.operator("SOFTMAX", (logits,), (scores,), "SoftmaxOptions", beta=1.0)])

    return draw


@pytest.fixture(scope="session")
def draw_ssd() -> Callable[..., Drawn]:
    """`draw_ssd(alpha, form)`: SSD for 64×64 pixels with 4 outputs an anchor, the background first."""

    def draw(alpha: float, form: Form = "float32", *, anchors_off: float = 0.0) -> Drawn:
        from flatbuffers import flexbuffers

        drawing = Drawing(form, side=64)
        blocks = drawing.backbone(alpha)
        maps = [blocks[11], blocks[13]]
        for channels in (512, 256, 256, 128):
            inner = drawing.convolution(maps[-1], scale_channels(channels // 2, alpha, minimum=16))
            maps.append(drawing.convolution(inner, scale_channels(channels, alpha, minimum=16), kernel=3, stride=2))
        generator = AnchorGenerator()
        anchors = generator([tuple(drawing.tensors[number].shape[1:3]) for number in maps], (64, 64)) / 64
        yxhw = [
            anchors[:, 1::2].mean(1),
            anchors[:, ::2].mean(1),
            anchors[:, 3] - anchors[:, 1],
            anchors[:, 2] - anchors[:, 0],
        ]
        stored = drawing.anchors((np.stack(yxhw, axis=1) + anchors_off).astype(np.float32))
        raw = []
        for outputs in (4, 4):  # numbers of a box, then the classes' and the background's logits
            rows = []
            for number, per_cell in zip(maps, generator.num_per_cell, strict=True):
                predicted = drawing.convolution(number, per_cell * outputs, linear=True)
                cells = np.prod(drawing.tensors[predicted].shape[1:3])
                rows.append(drawing.reshape(predicted, (1, int(cells) * per_cell, outputs), *LINEAR))
            joined = drawing.map((1, len(anchors), outputs), *LINEAR)
            raw.append(drawing.operator("CONCATENATION", rows, (joined,), "ConcatenationOptions", axis=1))
        scores = drawing.operator("LOGISTIC", (raw[1],), (drawing.map((1, len(anchors), 4), 1 / 256, 0),))
        found = [drawing.tensor((), "float32") for _ in range(4)]
        drawing.operator("CUSTOM", (raw[0], scores, stored), found)
        drawing.codes[-1].customCode = "TFLite_Detection_PostProcess"
        options = {"max_detections": 10, "max_classes_per_detection": 1, "num_classes": 3}
        options |= {"nms_score_threshold": 1e-8, "nms_iou_threshold": 0.6}
        options |= {"y_scale": 10.0, "x_scale": 10.0, "h_scale": 5.0, "w_scale": 5.0}
        drawing.operators[-1].customOptions = np.frombuffer(flexbuffers.Dumps(options), np.uint8)
        return drawing.finish(found)

    return draw


class LiteRT:
    """A file run on one image by TensorFlow's own engine, all its maps kept."""

    def __init__(self, path: Path, pixels: NDArray[np.uint8]) -> None:
        """Run; `pixels` are [3, H, W]."""
        engine = pytest.importorskip("ai_edge_litert.interpreter")
        self._interpreter = engine.Interpreter(
            str(path),
            num_threads=1,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=engine.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        self._interpreter.allocate_tensors()
        self._details = {tensor["index"]: tensor for tensor in self._interpreter.get_tensor_details()}
        entry = self._interpreter.get_input_details()[0]
        nhwc = pixels.transpose(1, 2, 0)[None]
        if entry["dtype"] == np.float32:
            nhwc = (nhwc.astype(np.float32) - 127.5) / 127.5
        elif entry["dtype"] == np.int8:
            nhwc = (nhwc.astype(np.int16) - 128).astype(np.int8)
        self._interpreter.set_tensor(entry["index"], nhwc)
        self._interpreter.invoke()

    def value(self, number: int) -> NDArray[np.float32]:
        """A tensor as float32, NHWC."""
        stored = self._interpreter.get_tensor(number)
        scale, zero = self._details[number]["quantization"]
        return stored if stored.dtype == np.float32 else ((stored.astype(np.float64) - zero) * scale).astype(np.float32)

    def step(self, number: int) -> float:
        """What a tensor's 8-bit numbers are multiples of; 0 for floats."""
        return float(self._details[number]["quantization"][0])

    def limits(self, number: int) -> tuple[float, float]:
        """Least and greatest value that a tensor can hold."""
        if not self.step(number):
            return -np.inf, np.inf
        scale, zero = self._details[number]["quantization"]
        held = np.iinfo(self._details[number]["dtype"])
        return (held.min - zero) * scale, (held.max - zero) * scale


@pytest.fixture(scope="session")
def litert() -> type[LiteRT]:
    return LiteRT
