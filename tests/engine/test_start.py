"""What a training takes from other weights, what it leaves, and why."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision

from mnet_det.config import Config, load_config
from mnet_det.engine.checkpoint import Checkpoint
from mnet_det.engine.start import adopt_needs, open_start, start_from, unfold
from mnet_det.errors import CheckpointError, ConfigError, DownloadError
from mnet_det.models import build_classifier, build_detector
from mnet_det.models.detector import Detector
from mnet_det.models.layers import ConvBNAct
from mnet_det.models.ssd import SSD
from mnet_det.weights.published import backbone_layers, folded_layer

SMALL = ("model.alpha=0.1", "model.base_hw=[64,64]")
SOURCE = Path("there.pt")


def config(*words: str) -> Config:
    return load_config(None, [*SMALL, *words])


def detector(names: str, *words: str, seed: int = 5) -> Detector:
    torch.manual_seed(seed)
    return build_detector(config(*words).model, num_classes=len(names))


def checkpoint(names: str, *words: str, seed: int = 0) -> Checkpoint:
    weights = detector(names, *words, seed=seed).state_dict()
    return Checkpoint(config(*words), tuple(names), tuple(range(len(names))), weights)


def test_the_same_classes_take_everything() -> None:
    ours, origin = detector("abc"), checkpoint("abc")
    start = start_from(ours, origin, config(), class_names="abc", source=SOURCE)
    assert str(start) == f"{len(origin.weights)} of {len(origin.weights)} tensors loaded"
    assert all(torch.equal(tensor, origin.weights[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize("head", ["ssd", "ssdlite"])
def test_rows_of_classes_with_the_same_name_are_copied(head: str) -> None:
    """Columns of an anchor: background, then classes. Here: background, x, c, a; there: background, a, b, c."""
    words = (f"model.head={head}",)
    ours, origin = detector("xca", *words), checkpoint("abc", *words)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    start = start_from(ours, origin, config(*words), class_names="xca", source=SOURCE)
    layer = "class_predictors.1.1" if head == "ssdlite" else "class_predictors.1"
    here, there, fresh = (
        tensors[f"{layer}.weight"].unflatten(0, (6, 4)) for tensors in (ours.state_dict(), origin.weights, before)
    )
    assert torch.equal(here[:, [0, 2, 3]], there[:, [0, 3, 1]])
    assert torch.equal(here[:, 1], fresh[:, 1])
    assert str(start) == (
        f"{len(before)} of {len(before)} tensors loaded; 12 of class_predictors made anew for 3 classes (there 3), "
        "rows of 2 with the same name copied"
    )


def test_classes_without_a_common_name_leave_the_class_layers_random() -> None:
    ours, origin = detector("xy"), checkpoint("abc")
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    start = start_from(ours, origin, config(), class_names="xy", source=SOURCE)
    assert len(start.loaded) == start.total - 12  # six predictors, each a weight and a bias
    for name, tensor in ours.state_dict().items():
        expected = before if name.startswith("class_predictors") else origin.weights
        assert torch.equal(tensor, expected[name]), name
    assert "made anew for 2 classes (there 3), rows of 0 with the same name copied" in str(start)


def trained(origin: Checkpoint, *, background: float) -> Checkpoint:
    """With class biases as training leaves them: every class unlikely nearly everywhere, each in its own measure."""
    generator = torch.Generator().manual_seed(2)
    columns = len(origin.class_names) + 1
    weights = dict(origin.weights)
    for name in (f"class_predictors.{number}.bias" for number in range(6)):
        rows = torch.randn(len(weights[name]) // columns, columns, generator=generator) - 3
        rows[:, 0] += background
        weights[name] = rows.flatten()
    return replace(origin, weights=weights)


def noise() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_sigmoids_become_a_softmax_with_nearly_the_same_scores() -> None:
    """The recipe's softmax threw away all that the published detector, of sigmoids, knew of the classes."""
    ours, origin = detector("abc"), trained(checkpoint("abc", "model.class_loss=focal"), background=0)
    start = start_from(ours, origin, config(), class_names="abc", source=SOURCE)
    assert start.notes == ("12 of class_predictors turned from focal to softmax loss",)
    assert len(start.loaded) == start.total
    theirs = origin.build()(noise()).scores
    assert (ours.eval()(noise()).scores - theirs).abs().mean() < 0.01
    assert theirs.std() > 0.04  # they differ by much more, so that being near them says something


def test_a_softmax_becomes_sigmoids_with_nearly_the_same_scores() -> None:
    focal = ("model.class_loss=focal",)
    ours, origin = detector("ba", *focal), trained(checkpoint("abc"), background=4)
    start = start_from(ours, origin, config(*focal), class_names="ba", source=SOURCE)
    assert "rows of 2 with the same name copied, from softmax to focal loss" in str(start)
    theirs = origin.build()(noise()).scores[..., [1, 0]]
    assert (ours.eval()(noise()).scores - theirs).abs().mean() < 0.01
    assert theirs.std() > 0.02


@pytest.mark.parametrize(("here", "there"), [("focal", "quality_focal"), ("quality_focal", "focal")])
def test_both_focal_losses_train_the_same_sigmoids(here: str, there: str) -> None:
    ours, origin = detector("abc", f"model.class_loss={here}"), checkpoint("abc", f"model.class_loss={there}")
    start = start_from(ours, origin, config(f"model.class_loss={here}"), class_names="abc", source=SOURCE)
    assert start.notes == ()
    assert all(torch.equal(tensor, origin.weights[name]) for name, tensor in ours.state_dict().items())


def test_quality_focal_sigmoids_become_a_softmax_too() -> None:
    ours = detector("abc")
    start = start_from(
        ours, checkpoint("abc", "model.class_loss=quality_focal"), config(), class_names="abc", source=SOURCE
    )
    assert start.notes == ("12 of class_predictors turned from quality_focal to softmax loss",)


def test_a_classifier_gives_its_backbone() -> None:
    classifier = build_classifier(config().model, num_classes=10)
    origin = Checkpoint(config(), (), (), classifier.state_dict(), kind="classifier")
    ours = detector("ab")
    start = start_from(ours, origin, config(), class_names="ab", source=SOURCE)
    assert start.loaded == {name for name in ours.state_dict() if name.startswith("backbone.")}
    assert start.notes == (
        "48 of extras not in the file",  # four maps of two layers, each a convolution and five tensors of batch norm
        "12 of class_predictors not in the file",
        "12 of box_predictors not in the file",
    )


def test_another_head_keeps_what_has_the_same_shape() -> None:
    ours, origin = detector("ab", "model.head=ssdlite"), checkpoint("ab")
    start = start_from(ours, origin, config("model.head=ssdlite"), class_names="ab", source=SOURCE)
    assert {name for name in ours.state_dict() if name.startswith("backbone.")} <= start.loaded
    assert "of extras not in the file" in str(start)


def test_another_width_is_refused_with_the_first_tensor_and_the_width() -> None:
    """Batch norm's counters fit every model, so that 49 of 236 tensors were called loaded."""
    message = (
        r"^there\.pt: does not fit: backbone\.stem\.conv\.weight is \[8, 3, 3, 3\] there and \[32, 3, 3, 3\] in this "
        r"model; the file has alpha 0\.1, so set model\.alpha=0\.1$"
    )
    ours = detector("ab", "model.alpha=1.0")
    with pytest.raises(CheckpointError, match=message):
        start_from(ours, checkpoint("ab"), config("model.alpha=1.0"), class_names="ab", source=SOURCE)


def test_another_kind_of_block_is_refused() -> None:
    """Every network has the same stem: a third of the tensors was loaded, and the blocks stayed random."""
    ours, origin = detector("ab"), checkpoint("ab", "model.separable=false")
    message = r"no convolution of this model's backbone, .*has separable false, so set model\.separable=false$"
    with pytest.raises(CheckpointError, match=message):
        start_from(ours, origin, config(), class_names="ab", source=SOURCE)


def test_layers_of_another_shape_are_left_whole_and_counted_once() -> None:
    """Batch norm of a layer was taken though its convolution did not fit; each tensor had a sentence of its own."""
    words = ("model.taps=[5,11]",)
    ours, origin = detector("ab", *words), checkpoint("ab")
    start = start_from(ours, origin, config(*words), class_names="ab", source=SOURCE)
    assert not any(name.startswith("extras.0.reduce.") for name in start.loaded)
    (shape, *_) = [note for note in start.notes if "of extras of another shape" in note]
    assert shape == (
        "6 of extras of another shape, such as extras.0.reduce.conv.weight: [25, 102, 1, 1] there, [25, 51, 1, 1] here"
    )
    assert any(note.startswith("boxes were learned with taps [11,13] (here [5,11])") for note in start.notes)


def test_class_layers_on_other_maps_are_left_whole_too() -> None:
    """Of a predictor on other channels the bias was taken, and the weight stayed random: COCO's biases on noise."""
    words = ("model.taps=[5,13]",)  # 25 channels at this width where block 11 has 51
    ours, origin = detector("xca", *words), checkpoint("abc")
    start = start_from(ours, origin, config(*words), class_names="xca", source=SOURCE)
    assert not {"class_predictors.0.weight", "class_predictors.0.bias"} & start.loaded
    assert {"class_predictors.1.weight", "class_predictors.1.bias"} <= start.loaded
    assert "10 of class_predictors made anew for 3 classes" in str(start)
    shapes = r"2 of class_predictors of another shape, such as class_predictors\.0\.weight: \[12, 51, .* \[12, 25,"
    assert re.search(shapes, str(start))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model.rho=1.5", r"input_hw \[64,64\] \(here \[96,96\]\)"),
        ("model.anchor_scales=[0.1,0.9]", r"anchor_scales \[0\.2,0\.95\] \(here \[0\.1,0\.9\]\)"),
    ],
)
def test_other_anchors_are_said(word: str, said: str) -> None:
    """From the published detector at rho 1.5, every box came out half as large again, without a word."""
    ours, origin = detector("ab", word), checkpoint("ab")
    start = start_from(ours, origin, config(word), class_names="ab", source=SOURCE)
    assert len(start.loaded) == start.total
    assert re.search(rf"^boxes were learned with {said}: they are off until", start.notes[-1])


@pytest.mark.parametrize("word", ["model.taps=[11,13]", "model.taps=['11','13']", "model.taps=null"])
def test_the_usual_taps_in_other_words_are_no_other_anchors(word: str) -> None:
    start = start_from(detector("ab"), checkpoint("ab", word), config(), class_names="ab", source=SOURCE)
    assert start.notes == ()


FASTER = ("model.head=faster_rcnn", "model.proposals=8")


def test_faster_rcnns_boxes_follow_their_classes() -> None:
    """Rows of boxes: four a class, no background. Here: x, c, a; there: a, b, c."""
    ours, origin = detector("xca", *FASTER), checkpoint("abc", *FASTER)
    fresh = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    start = start_from(ours, origin, config(*FASTER), class_names="xca", source=SOURCE)
    here, there = ours.state_dict(), origin.weights
    for name in ("roi_head.box_predictor.weight", "roi_head.box_predictor.bias"):
        assert torch.equal(here[name][4:8], there[name][8:12])  # c
        assert torch.equal(here[name][8:], there[name][:4])  # a
        assert torch.equal(here[name][:4], fresh[name][:4])
    rows = here["roi_head.class_predictor.weight"]
    assert torch.equal(rows[[0, 2, 3]], there["roi_head.class_predictor.weight"][[0, 3, 1]])
    assert len(start.loaded) == start.total
    assert start.notes == ("4 of roi_head made anew for 3 classes (there 3), rows of 2 with the same name copied",)


def test_faster_rcnns_boxes_stay_random_where_no_class_is_known() -> None:
    ours, origin = detector("xy", *FASTER), checkpoint("abc", *FASTER)
    start = start_from(ours, origin, config(*FASTER), class_names="xy", source=SOURCE)
    assert not any(name.startswith("roi_head.") for name in start.loaded)
    assert any(name.startswith("rpn.") for name in start.loaded)


def test_a_box_that_classes_share_is_taken_whatever_they_are() -> None:
    words = (*FASTER, "model.shared_boxes=true")
    ours, origin = detector("xy", *words), checkpoint("abc", *words)
    start = start_from(ours, origin, config(*words), class_names="xy", source=SOURCE)
    assert torch.equal(
        ours.state_dict()["roi_head.box_predictor.weight"], origin.weights["roi_head.box_predictor.weight"]
    )
    mixed = start_from(detector("xy", *FASTER), origin, config(*FASTER), class_names="xy", source=SOURCE)
    assert "roi_head.box_predictor.weight" in start.loaded - mixed.loaded


def test_faster_rcnns_anchors_have_other_names() -> None:
    """Its anchors are sizes in pixels, whatever the input's."""
    words = (*FASTER, "model.anchor_sizes=[16,32,64,128]", "model.rho=2.0")
    start = start_from(
        detector("ab", *words), checkpoint("ab", *FASTER), config(*words), class_names="ab", source=SOURCE
    )
    assert start.notes == (
        "boxes were learned with anchor_sizes [32,64,128,256] (here [16,32,64,128]): they are off until they have "
        "learned the new anchors",
    )


def test_boxes_of_the_other_second_stage_are_said() -> None:
    """At alpha 1 both stages give vectors of 1024, so that the shapes hide it."""
    fpn = (*FASTER, "model.fpn=true")
    origin = checkpoint("ab", *FASTER)
    head = {name: tensor for name, tensor in detector("ab", *fpn).state_dict().items() if name.startswith("roi_head.")}
    origin = replace(origin, weights=origin.weights | head)
    start = start_from(detector("ab", *fpn), origin, config(*fpn), class_names="ab", source=SOURCE)
    assert start.notes[-1].startswith("boxes were learned with taps [11] (here [11,13]), fpn false (here true): they")


def test_an_ssd_gives_faster_rcnn_its_second_stage_too() -> None:
    ours, origin = detector("ab", *FASTER), checkpoint("ab")
    start = start_from(ours, origin, config(*FASTER), class_names="ab", source=SOURCE)
    assert start.loaded == {name for name in ours.state_dict() if name.startswith("backbone.")}
    assert "backbone.blocks.13.pointwise.conv.weight" in start.loaded


def test_another_family_is_refused_by_name() -> None:
    words = ("model.backbone=mobilenet_v3_small", "model.alpha=0.25", "model.base_hw=[64,64]")
    message = r"^there\.pt: does not fit: the file is mobilenet_v1, the model has mobilenet_v3_small; "
    with pytest.raises(CheckpointError, match=message):
        start_from(detector("ab", *words), checkpoint("ab"), config(*words), class_names="ab", source=SOURCE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("model.alpha=0.5",),
            r"layers\.2\.block\.0\.0\.weight is \[24, 8, .* and \[40, 8, .* alpha 0\.25, so set model\.alpha=0\.25$",
        ),
        (
            ("model.reduced_tail=true",),
            r"there and .* in this model; the file has reduced_tail false, so set model\.reduced_tail=false$",
        ),
        (
            ("model.alpha=1.0", "model.reduced_tail=true"),
            r"the file has alpha 0\.25 and reduced_tail false, so set model\.alpha=0\.25 model\.reduced_tail=false$",
        ),
    ],
    ids=["width", "tail", "both"],
)
def test_another_width_or_tail_is_said(words: tuple[str, ...], message: str) -> None:
    small = ("model.backbone=mobilenet_v3_small", "model.alpha=0.25")
    with pytest.raises(CheckpointError, match=message):
        start_from(
            detector("ab", *small, *words),
            checkpoint("ab", *small),
            config(*small, *words),
            class_names="ab",
            source=SOURCE,
        )


def test_a_stage_of_our_own_on_another_map_is_no_other_backbone() -> None:
    """Two separable blocks stand in for the layers after a tap that timm cuts off; their shape follows the tap."""
    network = (*FASTER, "model.backbone=timm:mobilenetv4_conv_small_035", "model.alpha=1.0")
    words = (*network, "model.taps=[2]")
    start = start_from(
        detector("ab", *words), checkpoint("ab", *network), config(*words), class_names="ab", source=SOURCE
    )
    assert "backbone.network.conv_stem.weight" in start.loaded
    assert any("of backbone of another shape, such as backbone.stage.0." in note for note in start.notes)


def test_what_the_weights_need_is_taken_over_and_said() -> None:
    theirs = ("model.padding=same", "model.pixel_mean=[128,128,128]", "model.bn_eps=1e-5", "model.class_loss=focal")
    adopted, notes = adopt_needs(config(), checkpoint("ab", *theirs))
    assert (adopted.model.padding, adopted.model.pixel_mean, adopted.model.bn_eps) == ("same", (128.0,) * 3, 1e-5)
    assert adopted.model.class_loss == "softmax"  # how to train is the config's own business
    assert notes == [
        "model.padding=same (was symmetric)",
        "model.pixel_mean=[128,128,128] (was [127.5,127.5,127.5])",
        "model.bn_eps=1e-05 (was 0.001)",
    ]
    assert adopt_needs(adopted, checkpoint("ab", *theirs)) == (adopted, [])


def test_networks_with_settings_of_their_own_need_their_pixels_only() -> None:
    """The padding and batch norm of MobileNetV1's layers went to a head that was trained with others."""
    theirs = ("model.backbone=vgg16", "model.alpha=1.0", "model.padding=same", "model.pixel_std=[58,57,57]")
    classifier = Checkpoint(config(*theirs), (), (), {}, kind="classifier")
    adopted, notes = adopt_needs(config(), classifier)
    assert adopted.model.padding == "symmetric"
    assert notes == ["model.pixel_std=[58,57,57] (was [127.5,127.5,127.5])"]
    _, notes = adopt_needs(config(), replace(classifier, kind="detector"))  # whose head is taken too
    assert notes[0] == "model.padding=same (was symmetric)"


def folded_backbone(origin: Checkpoint) -> Checkpoint:
    """As published 8-bit files give it."""
    weights: dict[str, torch.Tensor] = {}
    for layer in backbone_layers():
        weight = origin.weights[f"{layer}.conv.weight"]
        weights |= folded_layer(layer, weight, torch.zeros(len(weight)), bn_eps=1e-3)
    return replace(origin, weights=weights, kind="backbone", class_names=(), category_ids=(), folded=True)


def test_blocks_that_see_regions_are_unfolded_too() -> None:
    """Faster R-CNN runs blocks 12 and 13 on its proposals, inside its forward."""
    ours = detector("ab", *FASTER)
    start = start_from(ours, folded_backbone(checkpoint("ab")), config(*FASTER), class_names="ab", source=SOURCE)
    before = ours.eval()(noise())
    unfold(ours, start, [noise()])
    after = ours(noise())
    assert torch.allclose(before.scores, after.scores, atol=1e-4)
    assert torch.allclose(before.boxes_xyxy, after.boxes_xyxy, atol=1e-2)
    variance = ours.get_submodule("backbone.blocks.13.pointwise.bn").running_var
    assert isinstance(variance, torch.Tensor)
    assert not torch.equal(variance, torch.ones_like(variance))


def test_only_layers_that_were_loaded_are_unfolded() -> None:
    """The extra maps start from fresh batch norm, which knows how to train."""
    ours = detector("ab")
    start = start_from(ours, folded_backbone(checkpoint("ab")), config(), class_names="ab", source=SOURCE)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    before = ours.eval()(images)
    assert unfold(ours, start, [images]) == 4
    after = ours(images)
    assert torch.allclose(before.scores, after.scores, atol=1e-4)
    for name, module in ours.named_modules():
        if isinstance(module, ConvBNAct):
            untouched = torch.equal(module.bn.running_var, torch.ones_like(module.bn.running_var))
            assert untouched == (not name.startswith("backbone.")), name


def test_no_start_is_none() -> None:
    assert open_start(config()) is None


def test_a_file_of_torchvision_starts_a_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.squeezenet1_1(weights=None)
    path = tmp_path / "squeezenet1_1-b8a52dc0.pth"
    torch.save(theirs.state_dict(), path)
    words = ("model.backbone=squeezenet", "model.alpha=1.0", f"model.init={path}")
    wanted = config(*words)
    origin = open_start(wanted)
    assert origin is not None
    adopted, notes = adopt_needs(wanted, origin)
    assert notes == [
        "model.pixel_mean=[123.675,116.28,103.53] (was [127.5,127.5,127.5])",
        "model.pixel_std=[58.395,57.12,57.375] (was [127.5,127.5,127.5])",
    ]
    ours = build_detector(adopted.model, num_classes=2).eval()
    start = start_from(ours, origin, adopted, class_names="ab", source=path)
    assert start.loaded == {name for name in ours.state_dict() if name.startswith("backbone.")}
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert isinstance(ours, SSD)
    with torch.inference_mode():
        maps = ours.backbone(ours.normalize(images))
        expected = theirs.eval().features(
            torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms(crop_size=64, resize_size=64)(images)
        )
    assert torch.allclose(maps[-1], expected, atol=1e-4)


def test_timm_gives_its_own_weights_where_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    torch.manual_seed(0)
    theirs = create("mobilenetv4_conv_small_035")
    torch.save(theirs.state_dict(), tmp_path / "hub.pth")
    about = {"file": str(tmp_path / "hub.pth"), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}

    def from_file(name: str, *, pretrained: bool = False, **settings: Any) -> Any:
        overlay = {"pretrained_cfg_overlay": about} if pretrained else {}
        return create(name, pretrained=pretrained, **settings, **overlay)

    monkeypatch.setattr(timm, "create_model", from_file)
    words = (*FASTER, "model.backbone=timm:mobilenetv4_conv_small_035", "model.alpha=1.0", "model.init=pretrained")
    origin = open_start(config(*words))
    assert origin is not None
    adopted, notes = adopt_needs(config(*words), origin)
    assert notes == [
        "model.pixel_mean=[127.5,102,76.5] (was [127.5,127.5,127.5])",
        "model.pixel_std=[51,51,25.5] (was [127.5,127.5,127.5])",
    ]
    ours = build_detector(adopted.model, num_classes=2)
    start = start_from(ours, origin, adopted, class_names="ab", source=Path("pretrained"))
    assert start.loaded == {name for name in ours.state_dict() if name.startswith("backbone.network.")}
    stem = ours.state_dict()["backbone.network.conv_stem.weight"]
    assert torch.equal(stem, theirs.state_dict()["conv_stem.weight"])


def test_weights_that_timm_cannot_fetch_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def unreachable(name: str, *, pretrained: bool = False, **settings: Any) -> Any:
        if pretrained:
            raise OSError("the hub cannot be reached\nand more")
        return create(name, **settings)

    monkeypatch.setattr(timm, "create_model", unreachable)
    words = ("model.backbone=timm:mobilenetv4_conv_small_035", "model.alpha=1.0", "model.init=pretrained")
    with pytest.raises(
        DownloadError,
        match=r"weights for mobilenetv4_\w+ are not here .*fetched \(the hub cannot be reached\); is there a network",
    ):
        open_start(config(*words))


def test_pretrained_is_for_networks_of_timm() -> None:
    with pytest.raises(ConfigError, match=r"^model\.init=pretrained asks timm .*mobilenet_v1; `mnet-det weights list`"):
        open_start(config("model.init=pretrained"))
