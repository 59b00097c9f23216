"""What a network costs: multiply-adds and parameters, a layer at a time and by kind (the paper's Tables 1 to 7)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.flop_counter import FlopCounterMode

from mnet_det.models.faster_rcnn import FasterRCNN
from mnet_det.models.mobilenet_v1 import SeparableBlock

NORM_AND_BIAS = "batch norm and biases"
ATTENTION = "products of attention"
"""Matrix products of two maps, in some of timm's networks."""


@dataclass(frozen=True)
class Layer:
    """One layer with weights.

    Attributes:
        name: as in the state dict.
        kind: such as "1x1 convolution", "3x3 depthwise convolution", "fully connected".
        mult_adds: for one image; batch norm's vanish when it is folded, so they count as 0, as in the paper.
        params: all that are learned in it, a bias included.
        output: shape without the batch, such as (64, 112, 112); of a layer that several maps share, the first one's.
        times: how often it is run for one image: 1, or once for each proposal.
    """

    name: str
    kind: str
    mult_adds: int
    params: int
    output: tuple[int, ...]
    times: int = 1


@dataclass(frozen=True)
class Kind:
    """All layers of a kind.

    Attributes:
        mult_adds: of one image.
        params: weights alone; biases and batch norm are a kind of their own.
        mult_adds_share: of all multiply-adds.
        params_share: of all weights, as Table 2 counts; None for batch norm and biases, which it leaves out.
    """

    mult_adds: int
    params: int
    mult_adds_share: float
    params_share: float | None


@dataclass(frozen=True)
class SeparableCost:
    """A separable block against the full convolution it stands for.

    Attributes:
        name: of the block.
        mult_adds: of its two layers.
        full_mult_adds: of one full convolution with the same input and output.
        formula: 1/N + 1/D_K², which the ratio equals (Howard et al. 2017, section 3.1).
    """

    name: str
    mult_adds: int
    full_mult_adds: int
    formula: float

    @property
    def ratio(self) -> float:
        """Part of the full convolution's cost."""
        return self.mult_adds / self.full_mult_adds


@dataclass(frozen=True)
class Cost:
    """A network's cost for one image.

    Attributes:
        proposals: how often the second stage of Faster R-CNN runs; 0 where there is none.
        mult_adds_per_proposal: of one such run; 0 where there is but one.
    """

    params: int
    mult_adds: int
    by_kind: dict[str, Kind]
    layers: list[Layer]
    separable_blocks: list[SeparableCost]
    proposals: int = 0

    @property
    def mult_adds_per_proposal(self) -> int:
        return sum(layer.mult_adds // layer.times for layer in self.layers if layer.times > 1)

    def to_json(self) -> dict[str, Any]:
        """The keys that `mnet-det info --json` promises, the separable blocks, and the second stage."""
        blocks = [asdict(block) | {"ratio": block.ratio} for block in self.separable_blocks]
        return asdict(self) | {
            "separable_blocks": blocks,
            "mult_adds_per_proposal": self.mult_adds_per_proposal,
        }


def count_cost(build: Callable[[], nn.Module], *, input_hw: tuple[int, int]) -> Cost:
    """Count with torch's FlopCounterMode, on the meta device: nothing is computed and nothing allocated.

    Args:
        build: makes the network; it takes uint8 images [1, 3, H, W].
        input_hw: the input's size.
    """
    counter = FlopCounterMode(display=False)
    outputs: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*create_unbacked_symint", FutureWarning)  # of torchvision's NMS
        network = build().eval()
        modules = {name: module for name, module in network.named_modules() if _has_own_params(module)}
        for name, module in modules.items():
            module.register_forward_hook(_note_output(outputs, name))
        # Fake tensors: nobody knows how many boxes suppression leaves, and the meta device has no such shapes.
        with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), counter, torch.no_grad():
            found = network(torch.zeros((1, 3, *input_hw), dtype=torch.uint8))
    proposals = found.scores.shape[1] if isinstance(network, FasterRCNN) else 0
    layers = [
        Layer(
            name=name,
            kind=_kind(modules[name]),
            mult_adds=_own_flops(counter, network, name) // 2,  # a multiply-add is two operations
            params=sum(parameter.numel() for parameter in modules[name].parameters(recurse=False)),
            output=output[1:],
            times=output[0] if output[0] == proposals else 1,
        )
        for name, output in outputs.items()  # in the order of the forward pass
    ]
    mult_adds = counter.get_total_flops() // 2
    return Cost(
        params=sum(parameter.numel() for parameter in network.parameters()),
        mult_adds=mult_adds,
        by_kind=_by_kind(layers, modules, mult_adds=mult_adds),
        layers=layers,
        separable_blocks=_separable_costs(network, {layer.name: layer for layer in layers}),
        proposals=proposals,
    )


def _own_flops(counter: FlopCounterMode, network: nn.Module, name: str) -> int:
    """Of a module without those inside it: some of timm's blocks hold a parameter beside their layers."""
    counts = counter.get_flop_counts()
    root = f"{type(network).__name__}.{name}"
    inside = [f"{root}.{child}" for child, _ in network.get_submodule(name).named_children()]
    return sum(counts.get(root, {}).values()) - sum(sum(counts.get(child, {}).values()) for child in inside)


def _has_own_params(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _note_output(outputs: dict[str, tuple[int, ...]], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        outputs.setdefault(name, tuple(output.shape))

    return note


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Conv2d):
        depthwise = "depthwise " if module.groups > 1 else ""
        return f"{module.kernel_size[0]}x{module.kernel_size[1]} {depthwise}convolution"
    return "fully connected" if isinstance(module, nn.Linear) else "batch norm"


def _by_kind(layers: list[Layer], modules: dict[str, nn.Module], *, mult_adds: int) -> dict[str, Kind]:
    by_kind: dict[str, int] = {}
    weights: dict[str, int] = {}
    others = 0
    for layer in layers:
        module = modules[layer.name]
        if not isinstance(module, nn.Conv2d | nn.Linear):
            others += layer.params
            continue
        by_kind[layer.kind] = by_kind.get(layer.kind, 0) + layer.mult_adds
        weights[layer.kind] = weights.get(layer.kind, 0) + module.weight.numel()
        others += layer.params - module.weight.numel()
    rest = mult_adds - sum(by_kind.values())
    if rest:
        by_kind[ATTENTION], weights[ATTENTION] = rest, 0
    all_weights = sum(weights.values())
    kinds = {
        kind: Kind(by_kind[kind], weights[kind], by_kind[kind] / mult_adds, weights[kind] / all_weights)
        for kind in sorted(by_kind, key=lambda kind: -by_kind[kind])
    }
    return kinds | {NORM_AND_BIAS: Kind(0, others, 0.0, None)}


def _separable_costs(network: nn.Module, layers: dict[str, Layer]) -> list[SeparableCost]:
    costs = []
    for name, module in network.named_modules():
        if isinstance(module, SeparableBlock):
            parts = [layers[f"{name}.{part}.conv"] for part in ("depthwise", "pointwise")]
            depthwise, pointwise = module.depthwise.conv, module.pointwise.conv
            outputs, height, width = parts[1].output
            kernel = depthwise.kernel_size[0]
            full = kernel**2 * pointwise.in_channels * outputs * height * width * parts[1].times
            costs.append(SeparableCost(name, sum(part.mult_adds for part in parts), full, 1 / outputs + 1 / kernel**2))
    return costs
