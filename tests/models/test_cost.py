"""Costs: the paper's numbers (Howard et al. 2017), its formulas, and that nothing is counted twice or left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mnet_det.config import load_config
from mnet_det.models import build_classifier, build_detector
from mnet_det.models.cost import NORM_AND_BIAS, Cost, count_cost
from mnet_det.models.mobilenet_v1 import SeparableBlock


def classifier(*words: str) -> Cost:
    model = load_config(None, ["model.base_hw=[224,224]", *words]).model
    return count_cost(lambda: build_classifier(model), input_hw=model.input_hw)


def detector(*words: str, classes: int = 80) -> Cost:
    model = load_config(None, words).model
    return count_cost(lambda: build_detector(model, num_classes=classes), input_hw=model.input_hw)


@pytest.mark.parametrize(
    ("words", "mult_adds_m", "params_m"),
    [
        pytest.param((), 569, 4.2, id="tables 4 and 6: alpha 1"),
        pytest.param(("model.alpha=0.75",), 325, 2.6, id="table 6: alpha 0.75"),
        pytest.param(("model.alpha=0.5",), 149, 1.3, id="table 6: alpha 0.5"),
        pytest.param(("model.alpha=0.25",), 41, 0.5, id="table 6: alpha 0.25"),
        pytest.param(("model.base_hw=[192,192]",), 418, 4.2, id="table 7: 192 pixels"),
        pytest.param(("model.base_hw=[160,160]",), 290, 4.2, id="table 7: 160 pixels"),
        pytest.param(("model.base_hw=[128,128]",), 186, 4.2, id="table 7: 128 pixels"),
        pytest.param(("model.separable=false",), 4866, 29.3, id="table 4: full convolutions"),
        pytest.param(("model.shallow=true",), 307, 2.9, id="table 5: shallow"),
    ],
)
def test_the_classifier_costs_what_the_paper_says(words: tuple[str, ...], mult_adds_m: float, params_m: float) -> None:
    cost = classifier(*words)
    assert cost.mult_adds / 1e6 == pytest.approx(mult_adds_m, rel=0.01)
    assert round(cost.params / 1e6, 1) == params_m


def test_rho_costs_what_the_smaller_input_costs() -> None:
    assert classifier("model.rho=0.571428").mult_adds == classifier("model.base_hw=[128,128]").mult_adds


def test_1x1_convolutions_have_the_shares_of_table_2() -> None:
    kind = classifier().by_kind["1x1 convolution"]
    assert round(100 * kind.mult_adds_share, 2) == 94.86
    assert kind.params_share is not None
    assert round(100 * kind.params_share, 2) == 74.59


@pytest.mark.parametrize(
    ("words", "classes", "mult_adds_g", "params_m"),
    [
        pytest.param((), 80, 1.224, 6.67, id="SSD300, COCO's classes"),
        pytest.param((), 90, 1.237, 6.82, id="SSD300, TensorFlow's 90 label slots (paper: 1.2 G, 6.8 M)"),
    ],
)
def test_ssd300_costs_what_the_paper_says(
    words: tuple[str, ...], classes: int, mult_adds_g: float, params_m: float
) -> None:
    cost = detector(*words, classes=classes)
    assert round(cost.mult_adds / 1e9, 3) == mult_adds_g
    assert round(cost.params / 1e6, 2) == params_m


def test_ssdlite320_costs_what_the_mobilenet_v2_paper_says() -> None:
    """Sandler et al. 2018, Table 6: MobileNetV1 + SSDLite, 1.3 B multiply-adds and 5.1 M parameters."""
    cost = detector("model.head=ssdlite", "model.base_hw=[320,320]")
    assert round(cost.mult_adds / 1e9, 1) == 1.3
    assert round(cost.params / 1e6, 1) == 5.1


FASTER_RCNN = ("model.head=faster_rcnn", "model.padding=same")


@pytest.mark.parametrize(
    ("side", "mult_adds_g", "first_stage_g"),
    [
        # 0.90 of the backbone and 0.87 of the proposal network; at 600 pixels four times as much.
        pytest.param(300, 25.2, 0.90 + 0.87, id="Faster R-CNN 300"),
        pytest.param(600, 30.5, 3.57 + 3.46, id="Faster R-CNN 600"),
    ],
)
def test_faster_rcnn_costs_what_the_paper_says(side: int, mult_adds_g: float, first_stage_g: float) -> None:
    """Howard et al. 2017, Table 13."""
    cost = detector(*FASTER_RCNN, f"model.base_hw=[{side},{side}]")
    assert cost.mult_adds / 1e9 == pytest.approx(mult_adds_g, rel=0.03)
    assert cost.params / 1e6 == pytest.approx(6.1, rel=0.03)
    assert cost.proposals == 300
    # Blocks 12 and 13 on 14×14, halved at once: 49 (9 × 512 + 512 × 1024 + 9 × 1024 + 1024 × 1024) = 77.8 M. Then the
    # class scores and a box for each: 1024 (81 + 320) = 0.4 M.
    assert cost.mult_adds_per_proposal == 49 * (9 * 512 + 512 * 1024 + 9 * 1024 + 1024 * 1024) + 1024 * (81 + 320)
    assert (cost.mult_adds - 300 * cost.mult_adds_per_proposal) / 1e9 == pytest.approx(first_stage_g, rel=0.03)


@pytest.mark.parametrize("fpn", ["false", "true"])
def test_the_second_stage_costs_as_much_as_there_are_proposals(fpn: str) -> None:
    few, many = (
        detector(*FASTER_RCNN, "model.alpha=0.25", f"model.fpn={fpn}", f"model.proposals={count}", classes=3)
        for count in (50, 150)
    )
    assert (few.proposals, many.proposals) == (50, 150)
    assert many.mult_adds - few.mult_adds == 100 * few.mult_adds_per_proposal
    assert many.mult_adds_per_proposal == few.mult_adds_per_proposal
    assert many.params == few.params
    if fpn == "true":  # two fully connected layers on 7×7 of 256 channels, 4 class scores and 3 boxes
        assert few.mult_adds_per_proposal == 49 * 256 * 1024 + 1024 * 1024 + 1024 * (4 + 12)


def test_where_anchors_are_few_so_are_the_proposals() -> None:
    cost = detector(*FASTER_RCNN, "model.alpha=0.25", "model.base_hw=[64,64]")
    assert cost.proposals == 4 * 4 * 12


def test_a_proposal_network_counts_every_map_it_looks_at() -> None:
    cost = detector(*FASTER_RCNN, "model.alpha=0.25", "model.fpn=true", "model.base_hw=[320,320]")
    layers = {layer.name: layer for layer in cost.layers}
    cells = 20 * 20 + 10 * 10 + 5 * 5  # strides 16, 32 and 64
    assert layers["rpn.conv"].mult_adds == 9 * 256 * 256 * cells
    assert layers["rpn.deltas"].mult_adds == 256 * 12 * 4 * cells
    assert (layers["rpn.conv"].output, layers["rpn.conv"].times) == ((256, 20, 20), 1)
    assert {layer.times for name, layer in layers.items() if name.startswith("roi_")} == {300}


def test_one_stage_has_no_proposals() -> None:
    cost = detector("model.alpha=0.25", classes=3)
    assert (cost.proposals, cost.mult_adds_per_proposal) == (0, 0)
    assert {layer.times for layer in cost.layers} == {1}


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.3])
def test_each_separable_block_costs_what_the_closed_formula_says(alpha: float) -> None:
    cost = classifier(f"model.alpha={alpha}")
    layers = {layer.name: layer for layer in cost.layers}
    assert len(cost.separable_blocks) == 13
    m = layers["backbone.stem.conv"].output[0]
    for block in cost.separable_blocks:
        n, d_f, _ = layers[f"{block.name}.pointwise.conv"].output
        # Howard et al. 2017, equation 5, with D_F the size of the map that comes out: the stride is in the depthwise.
        assert block.mult_adds == 3 * 3 * m * d_f * d_f + m * n * d_f * d_f
        assert block.full_mult_adds == 3 * 3 * m * n * d_f * d_f
        assert block.ratio == pytest.approx(1 / n + 1 / 9, rel=1e-12)
        assert block.formula == pytest.approx(1 / n + 1 / 9, rel=1e-12)
        m = n


def test_the_formula_s_block_is_the_one_that_is_counted() -> None:
    with torch.device("meta"):
        block, features = SeparableBlock(64, 128, stride=2), torch.zeros(1, 64, 56, 56)
    counter = FlopCounterMode(display=False)
    with counter:
        block(features)
    assert counter.get_total_flops() == 2 * (9 * 64 * 28 * 28 + 64 * 128 * 28 * 28)


@pytest.mark.parametrize(
    "words",
    [(), ("model.head=ssdlite", "model.padding=same"), FASTER_RCNN, (*FASTER_RCNN, "model.fpn=true")],
    ids=["ssd", "ssdlite", "faster_rcnn", "faster_rcnn with fpn"],
)
def test_layers_and_kinds_add_up_to_the_whole(words: tuple[str, ...]) -> None:
    model = load_config(None, words).model
    cost = detector(*words, classes=3)
    network = build_detector(model, num_classes=3)
    assert cost.params == sum(parameter.numel() for parameter in network.parameters())
    assert sum(layer.params for layer in cost.layers) == cost.params
    assert sum(layer.mult_adds for layer in cost.layers) == cost.mult_adds
    assert sum(kind.params for kind in cost.by_kind.values()) == cost.params
    assert sum(kind.mult_adds for kind in cost.by_kind.values()) == cost.mult_adds
    assert sum(kind.mult_adds_share for kind in cost.by_kind.values()) == pytest.approx(1)
    shares = [kind.params_share for kind in cost.by_kind.values() if kind.params_share is not None]
    assert len(shares) == len(cost.by_kind) - 1
    assert sum(shares) == pytest.approx(1)
    modules = dict(network.named_modules())
    assert {layer.name for layer in cost.layers} == {
        name for name, module in modules.items() if list(module.parameters(recurse=False))
    }


def test_a_layer_says_what_it_is() -> None:
    layers = {layer.name: layer for layer in classifier().layers}
    first = layers["backbone.stem.conv"]
    assert (first.kind, first.output) == ("3x3 convolution", (32, 112, 112))
    assert first.mult_adds == 3 * 3 * 3 * 32 * 112 * 112
    assert first.params == 3 * 3 * 3 * 32
    depthwise = layers["backbone.blocks.1.depthwise.conv"]
    assert (depthwise.kind, depthwise.params) == ("3x3 depthwise convolution", 9 * 32)
    last = layers["classifier"]
    assert (last.kind, last.output) == ("fully connected", (1000,))
    assert (last.mult_adds, last.params) == (1024 * 1000, 1024 * 1000 + 1000)
    norm = layers["backbone.stem.bn"]
    assert (norm.kind, norm.mult_adds, norm.params) == ("batch norm", 0, 64)


def test_batch_norm_and_biases_are_a_kind_of_their_own() -> None:
    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            normed: torch.Tensor = self.norm(self.conv(images.float()))
            return normed

    cost = count_cost(Tiny, input_hw=(5, 6))
    assert cost.mult_adds == 3 * 4 * 30
    assert cost.by_kind["1x1 convolution"].params == 12
    assert cost.by_kind[NORM_AND_BIAS].params == 4 + 8  # the bias, and scale and shift
    assert cost.by_kind[NORM_AND_BIAS].params_share is None


def test_json_has_the_promised_keys() -> None:
    content = classifier("model.alpha=0.25").to_json()
    assert content.keys() == {
        "params",
        "mult_adds",
        "by_kind",
        "layers",
        "separable_blocks",
        "proposals",
        "mult_adds_per_proposal",
    }
    assert content["layers"][0].keys() == {"name", "kind", "mult_adds", "params", "output", "times"}
    kind = content["by_kind"]["1x1 convolution"]
    assert kind.keys() == {"mult_adds", "params", "mult_adds_share", "params_share"}
    assert content["separable_blocks"][0]["ratio"] == pytest.approx(1 / 16 + 1 / 9)  # 64 × 0.25 channels


@pytest.mark.parametrize("backbone", ["timm:convnext_atto", "timm:mobilevit_xxs", "mobilenet_v3_small"])
def test_layers_and_kinds_sum_to_the_network(backbone: str) -> None:
    """Blocks that hold a parameter beside their layers were counted with all that is in them."""
    config = load_config(None, [f"model.backbone={backbone}", "model.base_hw=[128,128]"]).model
    cost = count_cost(lambda: build_detector(config, num_classes=3), input_hw=config.input_hw)
    assert sum(layer.params for layer in cost.layers) == cost.params
    assert sum(kind.params for kind in cost.by_kind.values()) == cost.params
    assert sum(kind.mult_adds for kind in cost.by_kind.values()) == cost.mult_adds
    assert sum(kind.mult_adds_share for kind in cost.by_kind.values()) == pytest.approx(1)
    assert cost.proposals == 0  # though mobilevit folds places into the batch
