"""What the readers share: folding, widths, the check of every tensor, names of outputs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mnet_det.config import ModelConfig
from mnet_det.errors import CheckpointError, DataError
from mnet_det.models import build_classifier
from mnet_det.models.layers import ConvBNAct, ConvStyle
from mnet_det.models.mobilenet_v1 import scale_channels
from mnet_det.weights import SUFFIXES, read_labels, read_published
from mnet_det.weights.coco_labels import COCO_LABELS
from mnet_det.weights.published import (
    Published,
    backbone_layers,
    folded_layer,
    foreground,
    imagenet_names,
    likely_alpha,
    require_fit,
)

PATH = Path("net.tflite")


@pytest.mark.parametrize("bn_eps", [1e-5, 1e-3, 0.5])
def test_a_folded_layer_is_its_convolution_and_bias(bn_eps: float) -> None:
    torch.manual_seed(0)
    weight, bias, features = torch.randn(4, 3, 3, 3), torch.randn(4), torch.randn(2, 3, 9, 9)
    layer = ConvBNAct(3, 4, kernel=3, style=ConvStyle(bn_eps=bn_eps)).eval()
    layer.load_state_dict(
        {name.removeprefix("x."): tensor for name, tensor in folded_layer("x", weight, bias, bn_eps=bn_eps).items()}
    )
    expected = F.conv2d(features, weight, bias, padding=1).clamp(0, 6)
    torch.testing.assert_close(layer(features), expected, atol=1e-5, rtol=1e-5)
    assert layer.bn.weight.tolist() == pytest.approx([math.sqrt(1 + bn_eps)] * 4)


def test_layers_of_the_backbone_are_named_in_the_order_of_the_data() -> None:
    classifier = build_classifier(ModelConfig(alpha=0.25))
    built = [name for name, module in classifier.named_modules() if isinstance(module, ConvBNAct)]
    assert backbone_layers() == built
    assert len(built) == 27


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.125, 0.25, 0.35, 0.5, 0.6, 0.75, 1.0, 1.25, 1.4])
def test_the_likely_width_is_the_one_that_was_built(alpha: float) -> None:
    found = likely_alpha(scale_channels(1024, alpha))
    assert scale_channels(1024, found) == scale_channels(1024, alpha)
    if alpha > 0.01:  # there, every width below 9 / 1024 has 8 channels or 10
        assert found == alpha


def backbone(**changes: torch.Tensor | None) -> Published:
    model = ModelConfig(alpha=0.25)
    weights = {n: t for n, t in build_classifier(model).state_dict().items() if not n.startswith("classifier.")}
    weights |= {name.replace("__", "."): tensor for name, tensor in changes.items() if tensor is not None}
    kept = {name: tensor for name, tensor in weights.items() if changes.get(name.replace(".", "__"), 0) is not None}
    return Published("backbone", model, (), (), kept, folded=False)


def test_the_likely_alpha_gives_the_channels_at_any_width() -> None:
    """Rounded to the nearest, the advice for a tenth of all widths did not fit the file it was given for."""
    for channels in range(8, 2049):
        assert scale_channels(1024, float(f"{likely_alpha(channels):.10g}")) == channels
    assert [likely_alpha(channels) for channels in (102, 256, 307, 512, 768, 1280)] == [0.1, 0.25, 0.3, 0.5, 0.75, 1.25]


def test_a_network_with_every_tensor_passes() -> None:
    published = backbone()
    assert require_fit(published) is published


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backbone__stem__conv__weight": torch.zeros(16, 3, 3, 3)},
            r"stem\.conv\.weight should be \[8, 3, 3, 3\] at alpha 0\.25 \(the likely .*has \[16, 3, 3, 3\]",
        ),
        ({"backbone__stem__bn__bias": None}, r"stem\.bn\.bias should be \[8\] .*the file has nothing for it"),
        ({"neck__weight": torch.zeros(1)}, r"has tensors that our network does not know: neck\.weight"),
        (
            {"backbone__stem__bn__bias": torch.full((8,), torch.nan)},
            r"stem\.bn\.bias holds numbers that are not finite; is the file damaged\?",
        ),
    ],
    ids=["shape", "missing", "unknown", "not a number"],
)
def test_the_first_tensor_that_does_not_fit_is_named(changes: dict[str, torch.Tensor | None], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        require_fit(backbone(**changes))


@pytest.mark.parametrize(
    ("labels", "known"),
    [
        (["background", "cat", "dog"], None),
        (["cat", "dog"], None),
        (None, ["background", "cat", "dog"]),
        (["background", " cat ", "dog"], ["background", "other", "names"]),
    ],
    ids=["with background", "without", "known", "given before known"],
)
def test_outputs_are_numbered_behind_the_background(labels: list[str] | None, known: list[str] | None) -> None:
    assert foreground(labels, 3, known) == [(1, "cat"), (2, "dog")]


def test_outputs_without_a_class_leave_gaps_in_the_numbers() -> None:
    assert foreground(["???", "cat", "???", "", "dog"], 5, None) == [(1, "cat"), (4, "dog")]


@pytest.mark.parametrize(
    ("labels", "known", "message"),
    [
        (None, None, "has 3 outputs and no names for them; give them with .*--labels FILE"),
        (None, ["too", "few"], "has 3 outputs and no names"),
        (["a"], None, "has 3 outputs, the list has 1 labels"),
        (["a"] * 4, None, "has 3 outputs, the list has 4 labels"),
    ],
    ids=["none", "known ones do not fit", "too few", "too many"],
)
def test_names_must_be_as_many_as_outputs(labels: list[str] | None, known: list[str] | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        foreground(labels, 3, known)


def test_imagenet_has_a_thousand_names_in_the_usual_order() -> None:
    names = imagenet_names()
    assert len(names) == 1000
    assert (names[0], names[88], names[652], names[999]) == ("tench", "macaw", "military uniform", "toilet tissue")


def test_coco_s_outputs_have_80_classes_among_90_ids() -> None:
    classes = foreground(None, 91, COCO_LABELS)
    assert len(classes) == 80
    assert (classes[0], classes[-1]) == ((1, "person"), (90, "toothbrush"))
    assert dict(classes)[18] == "dog"
    assert not {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & dict(classes).keys()


@pytest.mark.shared
def test_coco_s_labels_are_those_of_the_published_list(shared: Path) -> None:
    theirs = read_labels(shared / "weights" / "coco_labels_91.txt")
    assert [label.strip() for label in theirs] == list(COCO_LABELS)


@pytest.mark.shared
def test_imagenet_s_names_are_in_the_order_of_the_published_list(shared: Path) -> None:
    """Lists differ in wording (`tench`, `tench, Tinca tinca`), so most first words must agree, place by place."""
    theirs = read_labels(shared / "weights" / "imagenet_labels.txt")[1:]
    first = [label.split(",")[0].strip().lower() for label in theirs]
    same = [ours.lower() == label for ours, label in zip(imagenet_names(), first, strict=True)]
    assert sum(same) > 950


@pytest.mark.parametrize("name", ["net.pb", "net", "net.pt"])
def test_other_formats_are_refused_with_those_that_are_known(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(CheckpointError, match=r"not a format .*known: \.tflite, \.h5, \.safetensors, \.pth"):
        read_published(tmp_path / name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_is_not_there_is_named(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(CheckpointError, match=r"net\.\w+: no such weights file"):
        read_published(tmp_path / f"net{suffix}")


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".TFLITE"])
def test_each_format_goes_to_its_reader(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"not weights of any kind, but long enough to have a header")
    reasons = {".tflite": "not a TensorFlow Lite file", ".h5": "Keras"}
    with pytest.raises(CheckpointError, match=reasons.get(suffix.lower(), "cannot be read")) as raised:
        read_published(path)
    assert str(raised.value).startswith(f"{path}: ")


def test_labels_are_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\nhot dog\n???\n", encoding="utf-8")
    assert read_labels(tmp_path / "labels.txt") == ["cat", "hot dog", "???"]
    (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00cat")
    with pytest.raises(DataError, match="cannot be read as a list of labels"):
        read_labels(tmp_path / "labels.txt")


def test_a_mark_at_the_start_and_an_empty_line_at_the_end_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("\ufeffcat\r\ndog\r\n\r\n".encode())
    assert read_labels(tmp_path / "labels.txt") == ["cat", "dog"]
