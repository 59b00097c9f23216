"""Files that timm's own networks give, against what those networks compute."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mnet_det.errors import CheckpointError
from mnet_det.models import build_classifier
from mnet_det.weights import read_published
from mnet_det.weights.published import imagenet_names


def network_of_timm(name: str, **settings: Any) -> nn.Module:
    """With random statistics: fresh ones hide what batch norm does."""
    torch.manual_seed(0)
    network = timm.create_model(name, **settings).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Of `mobilenetv1_100` with ten classes; not to be written to."""
    return network_of_timm("mobilenetv1_100", num_classes=10).state_dict()


TEN = [f"class {number}" for number in range(10)]


@pytest.mark.parametrize(
    ("name", "alpha", "head"),
    [("mobilenetv1_100", 1.0, None), ("mobilenetv1_100h", 1.0, 1024), ("mobilenetv1_125", 1.25, None)],
)
def test_logits_are_those_of_timm(tmp_path: Path, name: str, alpha: float, head: int | None) -> None:
    theirs = network_of_timm(name)
    path = tmp_path / "model.safetensors"
    save_file(theirs.state_dict(), path)
    published = read_published(path)
    ours = build_classifier(published.model, head_channels=head)
    ours.load_state_dict(published.weights)
    images = torch.randint(0, 256, (2, 3, 65, 96), dtype=torch.uint8)
    with torch.inference_mode():
        expected = theirs((images.float() - 127.5) / 127.5)
        assert torch.allclose(ours.eval()(images), expected, atol=1e-4)
    assert expected.std() > 0.01  # else closeness says nothing
    assert (published.kind, published.model.alpha, published.folded) == ("classifier", alpha, False)
    assert (published.model.padding, published.model.bn_eps) == ("symmetric", 1e-5)
    assert published.class_names == imagenet_names()
    assert published.category_ids == tuple(range(1000))


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {"state_dict": prefixed(state)},
        lambda state: {"state_dict": {"wrong": torch.zeros(1)}, "state_dict_ema": state},
        lambda state: {"model": {"wrong": torch.zeros(1)}, "model_ema": prefixed(state)},
    ],
    ids=["plain", "state_dict", "model", "module.", "state_dict_ema first", "model_ema first"],
)
def test_each_way_to_wrap_a_pth_gives_the_same_weights(
    tmp_path: Path, state: dict[str, Tensor], wrap: Callable[[dict[str, Tensor]], dict[str, Any]]
) -> None:
    torch.save(wrap(state), tmp_path / "model.pth")
    weights = read_published(tmp_path / "model.pth", labels=TEN).weights
    assert len(weights) == len(state)
    assert torch.equal(weights["classifier.weight"], state["classifier.weight"])
    assert torch.equal(weights["backbone.stem.bn.running_var"], state["bn1.running_var"])
    # Stages have 1, 2, 2, 6 and 2 blocks, so the second of the fourth is the seventh of Table 1.
    assert torch.equal(weights["backbone.blocks.7.depthwise.conv.weight"], state["blocks.3.1.conv_dw.weight"])


def test_half_precision_becomes_float32(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, tmp_path / "a.safetensors")
    weights = read_published(tmp_path / "a.safetensors", labels=TEN).weights
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.int64}


def test_weights_without_a_classifier_are_a_backbone(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file({n: t for n, t in state.items() if not n.startswith("classifier")}, tmp_path / "a.safetensors")
    published = read_published(tmp_path / "a.safetensors")
    assert (published.kind, published.class_names) == ("backbone", ())
    assert all(name.startswith("backbone.") for name in published.weights)


@pytest.mark.parametrize(
    ("name", "side"), [("mobilenetv1_100.ra4_e3600_r256_in1k.safetensors", 256), ("model.safetensors", 224)]
)
def test_resolution_comes_from_the_name(tmp_path: Path, state: dict[str, Tensor], name: str, side: int) -> None:
    save_file(state, tmp_path / name)
    assert read_published(tmp_path / name, labels=TEN).model.base_hw == (side, side)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s | {"blocks.9.0.conv_dw.weight": torch.zeros(1)},
            r"blocks\.9\.0\.conv_dw\.weight \[1\] is none of its",
        ),
        (
            lambda s: {n: t for n, t in s.items() if not n.startswith("blocks.4.1.")},
            r"its last block \(blocks\.4\.1\.conv_pw\.weight\) is missing",
        ),
        (
            lambda s: {n: t for n, t in s.items() if n != "blocks.0.0.bn1.bias"},
            r"blocks\.1\.depthwise\.bn\.bias should be \[32\] at alpha 1 .*the file has nothing for it",
        ),
        (
            lambda s: s | {"conv_stem.weight": torch.zeros(24, 3, 3, 3)},
            r"stem\.conv\.weight should be \[32, 3, 3, 3\] at alpha 1 .*the file has \[24, 3, 3, 3\]",
        ),
        (
            lambda s: s | {"bn1.weight": torch.full((32,), torch.inf)},
            r"stem\.bn\.weight holds numbers that are not finite",
        ),
        (
            lambda s: s | {"conv_stem.bias": torch.zeros(32)},
            r"tensors that our network does not know: backbone\.stem\.conv\.bias",
        ),
        (lambda s: s | {"classifier.weight": torch.zeros(7, 1024)}, "has 7 classes, the list has 10 labels"),
    ],
    ids=["foreign", "last block", "a tensor less", "shape", "infinite", "a bias more", "classes"],
)
def test_other_tensors_are_refused(
    tmp_path: Path, state: dict[str, Tensor], change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(change(state), path)
    with pytest.raises(CheckpointError, match=message):
        read_published(path, labels=TEN)


def test_mobilenet_v2_is_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("mobilenetv2_050").state_dict(), tmp_path / "v2.safetensors")
    with pytest.raises(CheckpointError, match=r"not timm's MobileNetV1: .*expected mobilenetv1_100, mobilenetv1_100h"):
        read_published(tmp_path / "v2.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("part", [0, 0.0001, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_refused(
    tmp_path: Path, state: dict[str, Tensor], suffix: str, part: float
) -> None:
    path = tmp_path / f"model.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match=r"cannot be read \(.*\); is the file whole\?"):
        read_published(path, labels=TEN)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"bn1.weight": "text"}}, {}], ids=["list", "text", "empty"])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"not a state dict|not timm's MobileNetV1"):
        read_published(tmp_path / "model.pth")


def test_what_timms_own_training_script_saves_is_read(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """Its arguments lie beside the weights: the whole file was called damaged."""
    torch.save(
        {"state_dict": state, "args": argparse.Namespace(model="mobilenetv1_100"), "epoch": 3}, tmp_path / "x.pth"
    )
    assert read_published(tmp_path / "x.pth", labels=TEN).kind == "classifier"


def test_a_revision_in_the_name_is_no_resolution(tmp_path: Path, state: dict[str, Tensor]) -> None:
    """`mobilenetv1_r2.pth` was a traceback: an input of 2x2 pixels."""
    torch.save(state, tmp_path / "mobilenetv1_r2.pth")
    assert read_published(tmp_path / "mobilenetv1_r2.pth", labels=TEN).model.base_hw == (224, 224)


def test_classes_without_names_ask_for_labels(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"has 10 outputs and no names for them; .*--labels FILE"):
        read_published(tmp_path / "x.pth")
    assert read_published(tmp_path / "x.pth", labels=["background", *TEN]).class_names == tuple(TEN)
