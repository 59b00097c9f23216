"""int8: layers are quantised and nothing else, AP is told, and NNCF tells nobody."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mnet_det.data.coco import read_coco
from mnet_det.engine import export
from mnet_det.engine import quantize as module
from mnet_det.engine.checkpoint import load_checkpoint, save_checkpoint
from mnet_det.engine.evaluate import evaluate
from mnet_det.engine.export import Parity
from mnet_det.engine.quantize import LAYERS, Int8Export, export_int8, float_operations, quantize
from mnet_det.errors import ConfigError, DataError, ExportError, MissingPackageError
from mnet_det.images import list_images, read_image
from mnet_det.preprocess import Preprocessor
from mnet_det.runtime import Predictor
from mnet_det.runtime.backends import OpenVINOBackend, import_openvino, read_metadata, read_openvino_model
from mnet_det.runtime.metadata import Quantization
from mnet_det.structures import Image

CHILD = """
import shutil, sys
from pathlib import Path
from mnet_det import cli
from mnet_det.engine import export
onnx_file, out, *words = sys.argv[1:]
export.write_onnx = lambda detector, metadata, path, *, batch: shutil.copyfile(onnx_file, path)
sys.argv = ["mnet-det", "export", "--format", "openvino-int8", "--out", out, *words]
try:
    cli.main()
finally:
    import nncf
    loaded = [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module]
    Path(out).with_suffix(".txt").write_text(f"{loaded} {type(nncf.telemetry.telemetry).__name__}")
"""


@pytest.fixture(scope="module")
def run_child(
    exported: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], SimpleNamespace]:
    """`mnet-det export MODEL --format openvino-int8` in a process of its own, since NNCF changes the one it is in."""

    def run(head: str) -> SimpleNamespace:
        model, folder = exported(head), tmp_path_factory.mktemp(f"int8_{head}")
        home = folder / "home"
        home.mkdir()
        environment = {name: text for name, text in os.environ.items() if not name.startswith("XDG_")}
        words = [model.checkpoint, "--batch", str(model.batch)]
        if model.proposals is not None:
            words += ["--proposals", str(model.proposals)]
        child = subprocess.run(
            [sys.executable, "-c", CHILD, model.onnx, folder / "model.xml", *words],
            env=environment | {"HOME": str(home), "USERPROFILE": str(home)},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert child.returncode == 0, child.stderr
        return SimpleNamespace(folder=folder, home=home, out=child.stdout, err=child.stderr, file=folder / "model.xml")

    return run


@pytest.fixture(scope="module")
def ssd(run_child: Callable[[str], SimpleNamespace]) -> SimpleNamespace:
    return run_child("ssd")


def test_the_command_says_what_was_done_and_no_more(ssd: SimpleNamespace) -> None:
    quantization = read_metadata(ssd.file).quantization
    assert quantization is not None
    compared, cost, wrote = ssd.out.splitlines()
    assert compared.startswith("compared with torch on 4 images: ")
    assert cost.startswith(
        f"int8, calibrated on 6 images: AP {quantization.ap_float32:.3f} before, {quantization.ap_int8:.3f} after, "
        "on 4 images"
    )
    assert cost.endswith("(which proves little: is the model trained on such images?)") is (
        (quantization.ap_float32 or 0) < 0.01
    )
    assert wrote == f"wrote {ssd.file}"
    assert ssd.err.splitlines() == [
        "exporting in float32, to compare with torch",
        "calibrating on 6 images",
        "measuring AP before and after on 4 images",
    ]
    assert {path.name for path in ssd.folder.iterdir()} == {"model.xml", "model.bin", "model.txt", "home"}


def test_nncf_reports_to_nobody_and_leaves_nothing_in_the_users_home(ssd: SimpleNamespace) -> None:
    assert (ssd.folder / "model.txt").read_text() == "[] MagicMock"  # no telemetry, and NNCF's own stub of it
    assert list(ssd.home.rglob("*")) == []


def test_the_file_tells_ap_before_and_after_as_eval_measures_it(
    ssd: SimpleNamespace, toy: Path, toy_model: Path
) -> None:
    metadata = read_metadata(ssd.file)
    assert metadata.precision == "int8"
    assert metadata.model_copy(update={"quantization": None}) == read_metadata(toy_model)
    annotations = toy / "annotations" / "instances_val2017.json"
    data = read_coco(annotations, toy / "val2017")
    before, after = (
        evaluate(Predictor(OpenVINOBackend(file)), data, annotations)[0].ap for file in (toy_model, ssd.file)
    )
    quantization = metadata.quantization
    assert quantization is not None
    assert (quantization.calibration_images, quantization.scored_images) == (6, 4)
    assert quantization.ap_float32 == pytest.approx(before, rel=0.01)
    assert quantization.ap_int8 == pytest.approx(after, rel=0.01)


def test_an_int8_ssd_sees_about_what_the_float_one_sees(
    ssd: SimpleNamespace, toy_model: Path, toy: Path, scenes: list[Image]
) -> None:
    assert_alike(OpenVINOBackend(toy_model), OpenVINOBackend(ssd.file), scenes)
    assert_only_layers_are_quantised(ssd.file)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["ssdlite", "faster_rcnn", "pyramid"])
def test_int8_of_the_other_heads(
    head: str,
    run_child: Callable[[str], SimpleNamespace],
    exported: Callable[[str], Any],
    scenes: list[Image],
) -> None:
    int8 = run_child(head)
    assert_only_layers_are_quantised(int8.file)
    backend = OpenVINOBackend(int8.file)
    assert backend.batch == exported(head).batch
    assert_alike(OpenVINOBackend(exported(head).onnx), backend, scenes)


def assert_alike(one: OpenVINOBackend, other: OpenVINOBackend, scenes: list[Image]) -> None:
    """What 30 layers in 8 bits leave of a random network's scores: they are nearer its own than another scene's are."""
    preprocess = Preprocessor(one.metadata.input_hw, mode=one.metadata.resize)
    pixels = np.stack([preprocess(image)[0] for image in scenes])
    expected, found = one.candidates(pixels), other.candidates(pixels)
    assert np.corrcoef(expected.scores.ravel(), found.scores.ravel())[0, 1] > 0.9
    elsewhere = np.abs(expected.scores - np.roll(expected.scores, 1, axis=0)).mean()
    assert np.abs(expected.scores - found.scores).mean() < 0.8 * elsewhere
    if one.metadata.head != "faster_rcnn":  # whose candidates may rest on other proposals
        assert np.abs(expected.boxes_xyxy - found.boxes_xyxy).mean() < 1.0


# Which operations stay float32


def sources(operation: Any) -> list[Any]:
    return [port.get_source_output().get_node() for port in operation.inputs()]


def behind(*ends: Any) -> set[str]:
    """Kinds of these operations and all that they come of, up to the layers, which are not among them."""
    kinds, seen, waiting = set(), set(), list(ends)
    while waiting:
        operation = waiting.pop()
        kind, name = operation.get_type_name(), operation.get_friendly_name()
        if kind not in LAYERS and name not in seen:
            seen.add(name)
            kinds.add(kind)
            waiting += sources(operation)
    return kinds


def assert_only_layers_are_quantised(file: Path) -> None:
    operations = read_openvino_model(file).get_ordered_ops()
    layers = [operation for operation in operations if operation.get_type_name() in LAYERS]
    assert len(layers) > 30
    for layer in layers:
        features, weights = sources(layer)
        assert "FakeQuantize" in behind(features), layer
        while weights.get_type_name() != "Constant":
            weights = sources(weights)[0]
        assert weights.get_element_type().get_type_name() == "i8", layer
    quantised = sources(layers[0])[0]
    assert quantised.get_type_name() == "FakeQuantize"
    normalised = behind(sources(quantised)[0])
    assert "Subtract" in normalised
    assert "FakeQuantize" not in normalised
    results = [operation for operation in operations if operation.get_type_name() == "Result"]
    regions = [operation for operation in operations if operation.get_type_name() == "ROIAlign"]
    decoded = behind(*results, *(boxes for region in regions for boxes in sources(region)[1:]))
    assert {"Exp", "Concat"} <= decoded
    assert "FakeQuantize" not in decoded


FEATURES = {"Convolution", "GroupConvolution", "Clamp"}


@pytest.mark.parametrize(
    ("head", "kinds"),
    [
        ("ssd", FEATURES | {"Add"}),  # biases, which random weights have none of
        ("ssdlite", FEATURES),
        ("faster_rcnn", FEATURES | {"Relu", "ROIAlign", "ReduceMean", "MatMul"}),
        (
            "pyramid",
            FEATURES | {"Add", "Relu", "Interpolate", "MaxPool", "Pad", "Concat", "ROIAlign", "Reshape", "MatMul"},
        ),
    ],
)
def test_between_layers_lie_features_and_nothing_else(
    head: str, kinds: set[str], exported: Callable[[str], Any]
) -> None:
    model = import_openvino().convert_model(exported(head).onnx)
    kept = set(float_operations(model))
    rest = [operation for operation in model.get_ordered_ops() if operation.get_friendly_name() not in kept]
    assert {operation.get_type_name() for operation in rest} - {"Parameter", "Constant", "Result"} == kinds
    assert all(operation.get_type_name() not in LAYERS for operation in model.get_ops() if operation not in rest)


# What it is calibrated and scored on; nothing is quantised here


class Asked:
    """Stands in for `quantize`: keeps the pixels it is given, and gives the model back as it is."""

    pixels: NDArray[np.uint8]

    def __call__(self, model: Any, pixels: NDArray[np.uint8]) -> Any:
        self.pixels = pixels
        return model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, toy_model: Path) -> Asked:
    stand_in = Asked()
    monkeypatch.setattr(module, "quantize", stand_in)
    monkeypatch.setattr(module, "_import_nncf", lambda: None)
    monkeypatch.setattr(export, "write_onnx", lambda d, m, path, *, batch: shutil.copyfile(toy_model, path))
    return stand_in


@pytest.fixture
def elsewhere(toy_run: Path, tmp_path: Path) -> Path:
    """The toy run's checkpoint on a machine that lacks its data."""
    checkpoint = load_checkpoint(toy_run / "best.pt")
    data = checkpoint.config.data.model_copy(update={"root": tmp_path / "gone"})
    path = tmp_path / "elsewhere.pt"
    save_checkpoint(path, replace(checkpoint, config=checkpoint.config.model_copy(update={"data": data})))
    return path


def network_pixels(paths: Iterable[Path]) -> NDArray[np.uint8]:
    preprocess = Preprocessor((64, 64), mode="stretch")
    return np.stack([preprocess(read_image(path))[0] for path in paths])


def test_it_calibrates_on_training_images_of_its_own(toy_run: Path, toy: Path, asked: Asked, tmp_path: Path) -> None:
    export_int8(toy_run / "best.pt", tmp_path / "a.xml")
    np.testing.assert_array_equal(asked.pixels, network_pixels(list_images(toy / "train2017")))


def test_it_calibrates_on_validation_images_where_there_are_no_others(
    elsewhere: Path, toy: Path, asked: Asked, tmp_path: Path
) -> None:
    shutil.copytree(toy / "val2017", tmp_path / "gone" / "val2017")
    export_int8(elsewhere, tmp_path / "a.xml")
    np.testing.assert_array_equal(asked.pixels, network_pixels(list_images(toy / "val2017")))


def test_too_many_images_are_thinned_out_evenly_and_damaged_ones_left_out(
    elsewhere: Path, toy: Path, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_CALIBRATION_IMAGES", 4)
    folder = shutil.copytree(toy / "train2017", tmp_path / "photos")
    paths = list_images(folder)
    paths[3].write_bytes(b"no image")
    result = export_int8(elsewhere, tmp_path / "a.xml", calibration=folder)
    chosen = [0, 2, 5]  # of 0…5 every 5/3rd: 0, 1.67, 3.33, 5; and the fourth cannot be read
    np.testing.assert_array_equal(asked.pixels, network_pixels([paths[index] for index in chosen]))
    assert result.quantization.calibration_images == 3


def test_without_images_to_calibrate_on_it_says_how_to_give_some(
    elsewhere: Path, toy: Path, asked: Asked, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="the model's own are not here: give --calibration DIR"):
        export_int8(elsewhere, tmp_path / "a.xml")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="photos: none of its images can be read"):
        export_int8(elsewhere, tmp_path / "a.xml", calibration=tmp_path / "photos")
    assert {path.name for path in tmp_path.iterdir()} == {"elsewhere.pt", "photos"}


def test_without_annotations_ap_is_not_measured_and_that_is_said(
    elsewhere: Path, toy: Path, asked: Asked, tmp_path: Path
) -> None:
    result = export_int8(elsewhere, tmp_path / "a.xml", calibration=toy / "train2017")
    assert result.drop is None
    assert "AP was not measured" in str(result)
    assert "give --images DIR --annotations FILE" in str(result)
    assert read_metadata(tmp_path / "a.xml").quantization == Quantization(calibration_images=6)


def test_ap_is_measured_on_the_images_that_are_named(elsewhere: Path, toy: Path, asked: Asked, tmp_path: Path) -> None:
    result = export_int8(
        elsewhere,
        tmp_path / "a.xml",
        calibration=toy / "train2017",
        images=toy / "train2017",
        annotations=toy / "annotations" / "instances_train2017.json",
    )
    assert result.quantization.scored_images == 6
    assert result.drop == 0  # nothing was quantised
    with pytest.raises(DataError, match="images are missing"):
        export_int8(
            elsewhere,
            tmp_path / "b.xml",
            calibration=toy / "train2017",
            images=toy / "val2017",
            annotations=toy / "annotations" / "instances_train2017.json",
        )


def test_a_float_model_that_differs_from_torch_leaves_no_int8(
    toy_run: Path, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "compare", lambda *_, **__: Parity(8, 30, 12.0, 0.5))
    with pytest.raises(ExportError, match=r"^a\.xml: not kept, the exported model differs from torch: 12 px"):
        export_int8(toy_run / "best.pt", tmp_path / "a.xml")
    assert list(tmp_path.iterdir()) == []


def test_only_openvino_has_int8(toy_run: Path, asked: Asked, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.onnx: expected a name that ends in \.xml"):
        export_int8(toy_run / "best.pt", tmp_path / "a.onnx")


def test_a_missing_nncf_is_told_at_once_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingPackageError, match=r"int8 needs the package nncf, .* int8$"):
        export_int8(tmp_path / "gone.pt", tmp_path / "a.xml")


def test_samples_are_batches_of_the_graphs_own_size(
    exported: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, NDArray[np.uint8]]] = []
    nncf = SimpleNamespace(
        set_log_level=lambda level: None,
        Dataset=list,
        QuantizationPreset=SimpleNamespace(MIXED="mixed"),
        IgnoredScope=lambda names: names,
        quantize=lambda model, samples, **options: given.extend(samples),
    )
    monkeypatch.setitem(sys.modules, "nncf", nncf)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 96), np.uint8)
    quantize(read_openvino_model(exported("ssdlite").onnx), pixels)
    first, second = (sample["images"] for sample in given)
    np.testing.assert_array_equal(first, pixels[:3])
    np.testing.assert_array_equal(second, pixels[[3, 0, 1]])  # filled from the start


def test_the_drop_is_before_less_after() -> None:
    quantization = Quantization(calibration_images=300, scored_images=5000, ap_float32=0.2, ap_int8=0.1875)
    result = Int8Export(Parity(8, 30, 0.1, 1e-4), quantization)
    assert result.drop == pytest.approx(0.0125)
    assert str(result) == "int8, calibrated on 300 images: AP 0.200 before, 0.188 after, on 5000 images"


def test_nothing_marked_is_not_an_ap_of_0() -> None:
    result = Int8Export(Parity(8, 30, 0.1, 1e-4), Quantization(calibration_images=300, scored_images=40))
    assert result.drop is None
    assert str(result).endswith("AP was not measured, nothing is marked in the 40 images")


@pytest.mark.slow
@pytest.mark.shared
def test_the_published_detector_keeps_its_ap(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "coco_tiny"
    command = [sys.executable, "-m", "mnet_det", "export", shared / "weights" / "ssd_mobilenet_v1_coco_quant.tflite"]
    command += ["--format", "openvino-int8", "--out", tmp_path / "int8.xml", "--calibration", data / "train2017"]
    command += ["--images", data / "val2017", "--annotations", data / "annotations" / "instances_val2017.json"]
    subprocess.run(command, check=True)
    quantization = read_metadata(tmp_path / "int8.xml").quantization
    assert quantization is not None
    assert quantization.ap_float32 == pytest.approx(0.234, abs=0.0005)
    assert quantization.ap_int8 == pytest.approx(quantization.ap_float32, abs=0.015)
