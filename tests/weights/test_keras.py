"""Keras Applications' MobileNet: files and outputs from Keras itself, which runs in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from mnet_det.errors import CheckpointError
from mnet_det.models import build_classifier
from mnet_det.models.layers import ConvBNAct
from mnet_det.models.mobilenet_v1 import BLOCKS, scale_channels
from mnet_det.weights.keras import read_keras
from mnet_det.weights.published import imagenet_names

ALPHAS = {0.25: "2_5", 0.5: "5_0"}
SCRIPT = """
import sys
import h5py, keras, numpy as np
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group as save

random = np.random.default_rng(0)
images = random.integers(0, 256, (2, 128, 128, 3), dtype=np.uint8)
for alpha, name in ((0.25, "2_5"), (0.5, "5_0")):
    settings = {"alpha": alpha, "weights": None, "input_shape": (128, 128, 3)}
    whole = keras.applications.MobileNet(classifier_activation=None, **settings)
    for layer in whole.layers:
        for variable in layer.weights:
            shape, kind = variable.shape, variable.name
            if kind == "kernel":
                fan_in = np.prod(shape[:2]) * (1 if "dw" in layer.name else shape[2])
                variable.assign(random.normal(0, np.sqrt(2 / fan_in), shape))
            elif kind in ("gamma", "moving_variance"):
                variable.assign(random.uniform(0.5, 1.5, shape))
            else:
                variable.assign(random.normal(0, 0.2, shape))
    trunk = keras.applications.MobileNet(include_top=False, **settings)
    trunk.set_weights([value for layer in whole.layers if layer.name != "conv_preds" for value in layer.get_weights()])
    for suffix, model in (("", whole), ("_no_top", trunk)):
        with h5py.File(f"mobilenet_{name}_128_tf{suffix}.h5", "w") as file:
            save(file, model)
    maps = [layer.output for layer in whole.layers if layer.name.endswith("_relu")]
    prepared = keras.applications.mobilenet.preprocess_input(images.astype(np.float32))
    *maps, logits = keras.Model(whole.inputs, [*maps, whole.output]).predict(prepared, verbose=0)
    np.savez(f"{name}.npz", images=images, logits=logits, **{f"map_{n:02}": found for n, found in enumerate(maps)})
"""


@pytest.fixture(scope="module")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of two widths, with and without top, all numbers random; and what Keras gives for two images."""
    if importlib.util.find_spec("keras") is None:
        pytest.skip("no keras")
    folder = tmp_path_factory.mktemp("keras")
    environment = os.environ | {"KERAS_BACKEND": "torch", "KERAS_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for path in folder.glob("*.h5"):
        name_as_published(path)
    return folder


def name_as_published(path: Path) -> None:
    """Give the arrays the names of Keras 2, which wrote the public files: `conv_dw_1/depthwise_kernel:0`."""
    with h5py.File(path, "r+") as file:
        for layer, group in file.items():
            names = [name.decode() if isinstance(name, bytes) else name for name in group.attrs["weight_names"]]
            if not names or layer == "top_level_model_weights":
                continue
            arrays = {name: np.asarray(group[name]) for name in names}
            for name in list(group):
                del group[name]
            published = []
            for name, array in arrays.items():
                leaf = name.rpartition("/")[2]
                leaf = "depthwise_kernel" if layer.startswith("conv_dw_") and leaf == "kernel" else leaf
                published.append(f"{layer}/{leaf}:0")
                group.create_dataset(published[-1], data=array)
            group.attrs["weight_names"] = np.array(published, "S")


@pytest.mark.parametrize("alpha", ALPHAS)
def test_every_map_and_the_logits_are_those_of_keras(keras_files: Path, alpha: float) -> None:
    published = read_keras(keras_files / f"mobilenet_{ALPHAS[alpha]}_128_tf.h5")
    network = build_classifier(published.model)
    network.load_state_dict(published.weights)
    network.eval()
    maps: list[Any] = []
    for module in network.modules():
        if isinstance(module, ConvBNAct):
            module.register_forward_hook(lambda layer, inputs, output: maps.append(output.permute(0, 2, 3, 1)))
    with np.load(keras_files / f"{ALPHAS[alpha]}.npz") as theirs, torch.inference_mode():
        logits = network(torch.from_numpy(theirs["images"]).permute(0, 3, 1, 2))
        assert len(maps) == 27
        for number, ours in enumerate(maps):
            np.testing.assert_allclose(ours, theirs[f"map_{number:02}"], atol=1e-4)
        np.testing.assert_allclose(logits, theirs["logits"], atol=1e-4)
        assert theirs["logits"].std() > 0.1  # else closeness says nothing
    assert (published.kind, published.model.alpha, published.model.input_hw) == ("classifier", alpha, (128, 128))
    assert (published.model.padding, published.model.bn_eps, published.folded) == ("same", 1e-3, False)
    assert published.class_names == imagenet_names()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_file_without_top_is_the_same_backbone(keras_files: Path, alpha: float) -> None:
    whole = read_keras(keras_files / f"mobilenet_{ALPHAS[alpha]}_128_tf.h5")
    trunk = read_keras(keras_files / f"mobilenet_{ALPHAS[alpha]}_128_tf_no_top.h5")
    assert (trunk.kind, trunk.class_names, trunk.model) == ("backbone", (), whole.model)
    assert set(whole.weights) - set(trunk.weights) == {"classifier.weight", "classifier.bias"}
    for name, tensor in trunk.weights.items():
        assert torch.equal(tensor, whole.weights[name]), name


def write_layout(path: Path, alpha: float, *, published: bool = True, group: str = "/") -> None:
    """A file of zeros and ones in the layout of Keras 2, or with the names that Keras 3 gives the same arrays."""
    tail, depthwise = (":0", "depthwise_kernel") if published else ("", "kernel")
    channels = scale_channels(32, alpha)
    arrays = {"conv1": {"kernel": (3, 3, 3, channels)}, "conv1_bn": norm(channels)}
    for number, (base, _) in BLOCKS.items():
        arrays[f"conv_dw_{number}"] = {depthwise: (3, 3, channels, 1)}
        arrays[f"conv_dw_{number}_bn"] = norm(channels)
        channels, before = scale_channels(base, alpha), channels
        arrays[f"conv_pw_{number}"] = {"kernel": (1, 1, before, channels)}
        arrays[f"conv_pw_{number}_bn"] = norm(channels)
    with h5py.File(path, "w") as file:
        root = file.require_group(group)
        root.attrs["layer_names"] = np.array(["input_1", *arrays, "conv_pw_13_relu"], "S")
        for layer in ("input_1", "conv_pw_13_relu"):
            root.create_group(layer).attrs["weight_names"] = np.zeros(0, "S1")
        for layer, shapes in arrays.items():
            names = [f"{layer}/{name}{tail}" for name in shapes]
            root.create_group(layer).attrs["weight_names"] = np.array(names, "S")
            for name, shape in zip(names, shapes.values(), strict=True):
                root[layer].create_dataset(name, data=np.full(shape, 0.5, np.float32))


def norm(channels: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (channels,))


@pytest.mark.parametrize("side", [224, 192, 160, 128])
@pytest.mark.parametrize(("alpha", "words"), [(1.0, "1_0"), (0.75, "7_5"), (0.5, "5_0"), (0.25, "2_5")])
def test_width_comes_from_the_tensors_and_resolution_from_the_name(
    tmp_path: Path, alpha: float, words: str, side: int
) -> None:
    path = tmp_path / f"mobilenet_{words}_{side}_tf_no_top.h5"
    write_layout(path, alpha)
    model = read_keras(path).model
    assert (model.alpha, model.base_hw) == (alpha, (side, side))


def test_a_file_with_another_name_is_taken_for_224_pixels(tmp_path: Path) -> None:
    write_layout(tmp_path / "mine.h5", 0.25)
    assert read_keras(tmp_path / "mine.h5").model.base_hw == (224, 224)


@pytest.mark.parametrize(
    "layout", [{"published": False}, {"group": "model_weights"}], ids=["Keras 3's names", "a whole saved model"]
)
def test_other_ways_of_keras_to_write_the_same_arrays_are_read(tmp_path: Path, layout: dict[str, Any]) -> None:
    write_layout(tmp_path / "one.h5", 0.25)
    write_layout(tmp_path / "other.h5", 0.25, **layout)
    one, other = (read_keras(tmp_path / name) for name in ("one.h5", "other.h5"))
    assert one.weights.keys() == other.weights.keys()
    assert {name: tensor.shape for name, tensor in one.weights.items()} == {
        name: tensor.shape for name, tensor in other.weights.items()
    }


def rename_layer(file: h5py.File, old: str, new: str) -> None:
    file.move(old, new)
    names = [name.decode() for name in file.attrs["layer_names"]]
    file.attrs["layer_names"] = np.array([new if name == old else name for name in names], "S")


def forget_array(file: h5py.File, layer: str, array: str) -> None:
    names = [name for name in file[layer].attrs["weight_names"] if array.encode() not in name]
    file[layer].attrs["weight_names"] = np.array(names, "S")


def reshape_array(file: h5py.File, name: str, shape: tuple[int, ...]) -> None:
    del file[name]
    file.create_dataset(name, data=np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: rename_layer(file, "conv_pw_5", "expand"), "not Keras' MobileNet: it has no layer conv_pw_5"),
        (lambda file: forget_array(file, "conv_dw_2_bn", "beta"), "layer conv_dw_2_bn has no beta"),
        (lambda file: forget_array(file, "conv1", "kernel"), "not Keras' MobileNet: it has no layer conv1"),
        (
            lambda file: reshape_array(file, "conv_pw_1/conv_pw_1/kernel:0", (1, 1, 8, 24)),
            r"1\.pointwise\.conv\.weight should be \[16, 8, 1, 1\] at alpha 0\.25 .* the file has \[24, 8, 1, 1\]",
        ),
        (
            lambda file: reshape_array(file, "conv_pw_1/conv_pw_1/kernel:0", (8, 16)),
            r"layer conv_pw_1 has no kernel of four axes, only kernel \[8, 16\]",
        ),
        (lambda file: rename_layer(file, "input_1", "empty"), None),
        (lambda file: file.__delitem__("conv_dw_7"), r"not weights in Keras' HDF5 layout .*mobilenet_5_0_160_tf\.h5"),
        (lambda file: file.attrs.__delitem__("layer_names"), "not weights in Keras' HDF5 layout"),
    ],
    ids=["missing", "no beta", "no kernel", "channels", "axes", "empty layers", "group gone", "no layers"],
)
def test_files_that_are_not_mobilenet_are_refused(
    tmp_path: Path, damage: Callable[[h5py.File], Any], message: str | None
) -> None:
    path = tmp_path / "mobilenet_2_5_128_tf.h5"
    write_layout(path, 0.25)
    with h5py.File(path, "r+") as file:
        damage(file)
    if message is None:  # layers without arrays do not matter
        read_keras(path)
        return
    with pytest.raises(CheckpointError, match=message):
        read_keras(path)


def test_a_layer_that_mobilenet_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mobilenet_2_5_128_tf.h5"
    write_layout(path, 0.25)
    with h5py.File(path, "r+") as file:
        group = file.create_group("dense_9")
        group.create_dataset("dense_9/kernel:0", data=np.zeros((4, 4), np.float32))
        group.attrs["weight_names"] = [b"dense_9/kernel:0"]
        file.attrs["layer_names"] = np.array([*file.attrs["layer_names"], b"dense_9"])
    with pytest.raises(CheckpointError, match="has layers that MobileNet lacks: dense_9"):
        read_keras(path)


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", b"\x89HDF\r\n\x1a\n" + b"\x00" * 100])
def test_what_is_not_hdf5_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.h5"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"^not weights in Keras' HDF5 layout"):
        read_keras(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.95])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, part: float) -> None:
    path = tmp_path / "mobilenet_2_5_128_tf.h5"
    write_layout(path, 0.25)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(CheckpointError, match="not weights in Keras' HDF5 layout"):
        read_keras(path)


def test_labels_must_be_as_many_as_classes(keras_files: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(keras_files / "mobilenet_2_5_128_tf.h5", tmp_path))
    with pytest.raises(CheckpointError, match="has 1000 classes, the list has 3 labels"):
        read_keras(path, labels=["a", "b", "c"])
    names = [f"class {number}" for number in range(1000)]
    assert read_keras(path, labels=names).class_names == tuple(names)
