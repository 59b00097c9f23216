"""State dicts of torchvision's own networks, against what those networks compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import inception

from mnet_det.errors import CheckpointError
from mnet_det.models import build_backbone
from mnet_det.models.torchvision_backbones import TORCHVISION_BACKBONES, torchvision_backbone
from mnet_det.weights import read_published
from mnet_det.weights.published import imagenet_names
from mnet_det.weights.torchvision import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MARKS,
    dilated_layers,
    read_torchvision,
    torchvision_name,
)

BUILD: dict[str, Callable[..., nn.Module]] = {
    "squeezenet": torchvision.models.squeezenet1_1,
    "googlenet": lambda **settings: torchvision.models.googlenet(init_weights=False, **settings),
    "inception_v3": lambda **settings: torchvision.models.inception_v3(init_weights=False, **settings),
}
TEN = [f"class {number}" for number in range(10)]


def network_of_torchvision(name: str, **settings: Any) -> nn.Module:
    """With random statistics: fresh ones hide what batch norm does."""
    torch.manual_seed(0)
    network = BUILD.get(name, getattr(torchvision.models, name, None))(weights=None, **settings).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network


def state_of(name: str, **settings: Any) -> dict[str, Tensor]:
    return network_of_torchvision(name, **settings).state_dict()


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """Of a narrow `mobilenet_v3_small` with ten classes; not to be written to."""
    return state_of("mobilenet_v3_small", num_classes=10, width_mult=0.25)


@pytest.mark.parametrize(
    ("name", "settings", "last", "side"),
    [
        ("mobilenet_v2", {"width_mult": 0.35}, "features.18", 64),
        ("mobilenet_v3_large", {"width_mult": 0.35, "reduced_tail": True}, "features.16", 64),
        ("mobilenet_v3_small", {}, "features.12", 64),
        ("squeezenet", {}, "features.12", 65),
        ("googlenet", {}, "inception5b", 64),
        ("inception_v3", {}, "Mixed_7c", 107),
    ],
)
def test_the_last_map_is_that_of_torchvision(name: str, settings: dict[str, Any], last: str, side: int) -> None:
    theirs = network_of_torchvision(name, num_classes=10, **settings)
    published = read_torchvision(theirs.state_dict(), labels=TEN)
    ours = build_backbone(published.model).eval()
    assert set(ours.state_dict()) <= {key.removeprefix("backbone.") for key in published.weights}
    ours.load_state_dict({key: published.weights[f"backbone.{key}"] for key in ours.state_dict()})
    images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    seen: list[Tensor] = []
    theirs.get_submodule(last).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (published.model.pixel_mean, published.model.pixel_std)
    )
    with torch.inference_mode():
        maps = ours((images.float() - mean) / std)
        as_imagenet = torchvision.transforms.functional.normalize(
            images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        )
        if name in ("googlenet", "inception_v3"):
            theirs.transform_input = True  # as it is where torchvision loads its weights
        theirs(as_imagenet)
    assert torch.allclose(maps[-1], seen[0], atol=1e-4, rtol=1e-4)
    assert seen[0].std() > 0.001  # else closeness says nothing
    assert (published.kind, published.class_names, published.folded) == ("classifier", tuple(TEN), False)
    assert published.model.base_hw == ((299, 299) if name == "inception_v3" else (224, 224))


def blank(network: nn.Module) -> dict[str, Tensor]:
    """Its state dict with each tensor one number repeated: VGG16's 138 million are slow to draw."""
    return {name: torch.zeros(()).expand(tensor.shape) for name, tensor in network.state_dict().items()}


def test_vgg16_has_all_tensors_of_each_form_but_the_norm_that_ssd_adds() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vgg16(num_classes=10)
    state = blank(theirs)
    weights = read_torchvision(state, labels=TEN).weights
    for number in (0, 3):
        assert weights[f"backbone.layers.classifier.{number}.weight"] is state[f"classifier.{number}.weight"]
    assert "classifier.6.weight" in weights
    for need, missing in (("c4", set()), ("fpn", set()), ("ssd", {"norms.22.scale"})):
        with torch.device("meta"):
            ours = torchvision_backbone("vgg16", need=need).state_dict()  # type: ignore[arg-type]
        fitting = {name for name in ours if f"backbone.{name}" in weights}
        assert set(ours) - fitting == missing
        assert all(weights[f"backbone.{name}"].shape == ours[name].shape for name in fitting)


def test_vgg16_for_ssd_keeps_every_fourth_unit_and_every_third_place() -> None:
    units, inputs = torch.arange(4096.0), torch.arange(512 * 49.0)  # input 49·c + 7·row + column
    state = {
        "classifier.0.weight": inputs.expand(4096, -1),
        "classifier.0.bias": units,
        "classifier.3.weight": units.expand(4096, -1),
        "classifier.3.bias": -units,
    }
    layers = dilated_layers(state)
    fc6, fc7 = layers["backbone.layers.fc6.0.weight"], layers["backbone.layers.fc7.0.weight"]
    assert (fc6.shape, fc7.shape) == ((1024, 512, 3, 3), (1024, 1024, 1, 1))
    assert fc6[5, 2].tolist() == [[98, 101, 104], [119, 122, 125], [140, 143, 146]]  # rows 0, 3 and 6, columns too
    assert fc7[5, :3, 0, 0].tolist() == [0, 4, 8]
    assert layers["backbone.layers.fc6.0.bias"][:3].tolist() == [0, 4, 8]
    assert layers["backbone.layers.fc7.0.bias"][:3].tolist() == [0, -4, -8]
    rows = {name: units[:, None].expand(tensor.shape) for name, tensor in state.items() if tensor.ndim == 2}
    for layer in dilated_layers(state | rows).values():
        if layer.ndim == 4:
            assert layer[:3, 7, 0, 0].tolist() == [0, 4, 8]


@pytest.mark.parametrize("name", TORCHVISION_BACKBONES)
def test_each_network_is_known_by_a_tensor_of_its_own(name: str) -> None:
    with torch.device("meta"):
        assert torchvision_name(BUILD.get(name, getattr(torchvision.models, name, None))().state_dict()) == name
    assert set(MARKS.values()) == set(TORCHVISION_BACKBONES)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "mnasnet0_5", "shufflenet_v2_x0_5", "alexnet"])
def test_other_networks_of_torchvision_are_none_of_them(name: str) -> None:
    with torch.device("meta"):
        assert torchvision_name(getattr(torchvision.models, name)().state_dict()) is None


@pytest.mark.parametrize("alpha", [0.33, 1.4])
@pytest.mark.parametrize(
    ("name", "tail"),
    [
        ("mobilenet_v2", {}),
        ("mobilenet_v3_large", {}),
        ("mobilenet_v3_large", {"reduced_tail": True}),
        ("mobilenet_v3_small", {}),
        ("mobilenet_v3_small", {"reduced_tail": True}),
    ],
    ids=["v2", "large", "large reduced", "small", "small reduced"],
)
def test_width_and_tail_are_found(name: str, tail: dict[str, bool], alpha: float) -> None:
    """Some widths have the same channels, which are rounded to multiples of 8; those that round nothing are exact."""
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(width_mult=alpha, num_classes=10, **tail)
    model = read_torchvision(blank(theirs), labels=TEN).model
    assert model.reduced_tail == bool(tail)
    assert model.alpha == (alpha if alpha == 1.4 else pytest.approx(alpha, abs=0.015))


def test_pixels_are_those_that_torchvision_trained_with() -> None:
    """Given ImageNet's mean and std, Inception V3 turns them back into -1…1."""
    pixels = torch.linspace(0, 255, 30).view(1, 3, 5, 2)
    as_imagenet = torchvision.transforms.functional.normalize(
        pixels / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    assert torch.allclose((pixels - mean) / std, as_imagenet, atol=1e-6)
    with torch.device("meta"):
        network = inception.Inception3(transform_input=True, init_weights=False)
    assert torch.allclose(network._transform_input(as_imagenet), (pixels - 127.5) / 127.5, atol=1e-6)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_is_read_by_what_is_in_it(tmp_path: Path, small: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"any_name.{suffix}"
    save_file(small, path) if suffix == "safetensors" else torch.save({"model": small, "epoch": 3}, path)
    published = read_published(path, labels=TEN)
    assert published.model.backbone == "mobilenet_v3_small"
    assert torch.equal(published.weights["backbone.layers.0.0.weight"], small["features.0.0.weight"])
    assert torch.equal(published.weights["classifier.3.weight"], small["classifier.3.weight"])


def test_averaged_weights_of_torchvisions_training_script_are_read(tmp_path: Path, small: dict[str, Tensor]) -> None:
    averaged = {f"module.{name}": tensor for name, tensor in small.items()} | {"n_averaged": torch.tensor(7)}
    torch.save({"model": {"wrong": torch.zeros(1)}, "model_ema": averaged}, tmp_path / "model_3.pth")
    assert read_published(tmp_path / "model_3.pth", labels=TEN).class_names == tuple(TEN)


def test_counters_that_old_files_lack_are_put_in(small: dict[str, Tensor]) -> None:
    old = {name: tensor for name, tensor in small.items() if not name.endswith("num_batches_tracked")}
    assert set(read_torchvision(old, labels=TEN).weights) == set(read_torchvision(small, labels=TEN).weights)


def test_classes_are_imagenets_where_there_are_as_many() -> None:
    state = state_of("mobilenet_v3_small", width_mult=0.1)
    assert read_torchvision(state).class_names == imagenet_names()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {n: t for n, t in s.items() if n != "features.1.block.0.1.bias"},
            r"not torchvision's mobilenet_v3_small as .*features\.1\.block\.0\.1\.bias should be \[8\] at alpha 0\.25 "
            r"\(the likely one\), the file has nothing for it",
        ),
        (lambda s: s | {"features.13.weight": torch.zeros(1)}, r"does not know: features\.13\.weight"),
        (
            lambda s: s | {"features.0.0.weight": torch.full_like(s["features.0.0.weight"], torch.nan)},
            r"features\.0\.0\.weight holds numbers that are not finite",
        ),
    ],
    ids=["a tensor less", "a tensor more", "not a number"],
)
def test_other_tensors_are_refused(
    small: dict[str, Tensor], change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_torchvision(change(small), labels=TEN)


def test_the_first_squeezenet_is_not_the_second() -> None:
    with pytest.raises(
        CheckpointError, match=r"not torchvision's squeezenet .*features\.0\.weight should be \[64, 3, 3"
    ):
        read_torchvision(torchvision.models.squeezenet1_0(weights=None).state_dict())


def test_classes_without_names_ask_for_labels(small: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"has 10 outputs and no names for them; .*--labels FILE"):
        read_torchvision(small)


def test_a_pickled_network_is_refused_with_what_to_save(tmp_path: Path) -> None:
    """torch's own message has terminal escapes and asks to trust the file."""
    torch.save(torch.nn.Linear(1, 1), tmp_path / "network.pth")
    with pytest.raises(CheckpointError, match=r"network\.pth: holds more than tensors.*network\.state_dict\(\)"):
        read_published(tmp_path / "network.pth")
