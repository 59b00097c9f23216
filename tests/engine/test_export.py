"""Export: the file carries all it needs, detects what torch detects, and is not there if it does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from mnet_det.config import Config, load_config
from mnet_det.engine import export as module
from mnet_det.engine.checkpoint import load_checkpoint, save_checkpoint
from mnet_det.engine.export import Parity, compare, export_detector
from mnet_det.engine.torch_backend import TorchBackend, describe, describe_checkpoint, load_torch_predictor
from mnet_det.errors import ConfigError, DataError, ExportError, MnetDetError
from mnet_det.images import list_images, read_image
from mnet_det.models.faster_rcnn import FasterRCNN
from mnet_det.runtime import load_predictor
from mnet_det.runtime.backends import Backend, ONNXRuntimeBackend, OpenVINOBackend, read_metadata
from mnet_det.runtime.metadata import ModelMetadata
from mnet_det.structures import Candidates, Image

HEADS = ("ssd", "ssdlite", "faster_rcnn", pytest.param("pyramid", marks=pytest.mark.slow))
"""That the fixture `exported` knows; the last one takes as long as the others together."""


@pytest.fixture
def pictures(toy: Path) -> list[Image]:
    return [read_image(path) for path in list_images(toy / "val2017")]


def copier(onnx_file: Path) -> Callable[..., None]:
    """Stands in for `write_onnx`."""

    def copy(detector: Any, metadata: Any, path: Path, *, batch: int = 1) -> None:
        shutil.copyfile(onnx_file, path)

    return copy


def torch_backend(model: Any) -> TorchBackend:
    checkpoint = load_checkpoint(model.checkpoint)
    detector = checkpoint.build()
    if isinstance(detector, FasterRCNN):
        detector.proposals = model.proposals or detector.proposals
    return TorchBackend(detector, describe_checkpoint(checkpoint, model.checkpoint))


@pytest.fixture
def _copied(toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting takes seconds; these tests are about what comes after it, and take the file that is there."""

    monkeypatch.setattr(module, "write_onnx", copier(toy_model))


@pytest.mark.parametrize("form", ["onnx in openvino", "onnx in onnxruntime", "openvino"])
@pytest.mark.parametrize("head", HEADS)
def test_each_form_of_each_head_detects_what_torch_detects(
    head: str,
    form: str,
    exported: Callable[[str], Any],
    pictures: list[Image],
    scenes: list[Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = exported(head)
    backend: Backend
    if form == "openvino":
        monkeypatch.setattr(module, "write_onnx", copier(model.onnx))
        export_detector(model.checkpoint, tmp_path / "model.xml", batch=model.batch, proposals=model.proposals)
        backend = OpenVINOBackend(tmp_path / "model.xml")
    else:
        backend = OpenVINOBackend(model.onnx) if form == "onnx in openvino" else ONNXRuntimeBackend(model.onnx)
    reference = torch_backend(model)
    assert backend.metadata == reference.metadata
    # None that the export was compared on, and a number that is no multiple of any batch but 1.
    apart = compare(reference, backend, [*pictures, *scenes], batch=7)
    assert (apart.images, apart.unpaired) == (7, 0)
    assert apart.box_px < 1e-2
    assert apart.score < 1e-4
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, *backend.metadata.input_hw), np.uint8)
    for count in (1, 3, 4):
        found = backend.candidates(pixels[:count])
        expected = reference.candidates(pixels[:count])
        assert found.boxes_xyxy.shape == expected.boxes_xyxy.shape
        assert found.scores.shape == expected.scores.shape
        if model.proposals is not None:
            assert found.scores.shape == (count, model.proposals, 6)


def test_same_weights_at_another_resolution(
    exported: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = exported("ssdlite"), []

    def stop(detector: Any, metadata: ModelMetadata, path: Path, *, batch: int) -> None:
        seen.append((detector, metadata))
        raise ExportError("seen enough")

    monkeypatch.setattr(module, "write_onnx", stop)
    with pytest.raises(ExportError, match="seen enough"):
        export_detector(model.checkpoint, tmp_path / "larger.onnx", rho=1.5)
    ((detector, metadata),) = seen
    assert metadata == read_metadata(model.onnx).model_copy(update={"rho": 1.5, "input_hw": (96, 144)})  # of 64x96
    weights = load_checkpoint(model.checkpoint).build().state_dict()
    assert all(value.equal(weights[name]) for name, value in detector.state_dict().items())


@pytest.mark.parametrize(("rho", "scores"), [(None, "own"), (1.0, "own"), (1.5, None)])
def test_scores_of_classes_go_along_at_the_size_they_were_measured_at(
    rho: float | None,
    scores: str | None,
    exported: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, seen = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), []

    def stop(detector: Any, metadata: ModelMetadata, path: Path, *, batch: int) -> None:
        seen.append(metadata.class_scores)
        raise ExportError("seen enough")

    save_checkpoint(tmp_path / "scored.pt", replace(load_checkpoint(exported("ssdlite").checkpoint), class_scores=own))
    monkeypatch.setattr(module, "write_onnx", stop)
    with pytest.raises(ExportError, match="seen enough"):
        export_detector(tmp_path / "scored.pt", tmp_path / "model.onnx", rho=rho)
    assert seen == [own if scores else None]


def test_resolution_that_leaves_nothing_of_the_input_is_refused(exported: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="less than one"):
        export_detector(exported("ssdlite").checkpoint, tmp_path / "tiny.onnx", rho=0.01)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("head", HEADS[1:])
def test_enough_was_detected_to_compare(head: str, exported: Callable[[str], Any]) -> None:
    """Else the comparisons of these random detectors would rest on nothing."""
    parity = exported(head).parity
    assert parity.holds
    assert parity.detections > 20 or parity.paired > 20


def test_the_file_says_all_about_itself(toy_run: Path, toy_model: Path) -> None:
    checkpoint = load_checkpoint(toy_run / "best.pt")
    metadata = read_metadata(toy_model)
    assert metadata == describe(
        checkpoint.config, name="toy", class_names=checkpoint.class_names, category_ids=checkpoint.category_ids
    )
    assert metadata.class_names == ("disc", "ring", "square", "triangle", "star", "cross")
    assert metadata.category_ids == (3, 7, 11, 18, 24, 40)
    assert (metadata.input_hw, metadata.resize, metadata.alpha) == ((64, 64), "stretch", 0.1)


def test_pixels_go_in_as_uint8_under_the_promised_names(toy_model: Path) -> None:
    graph = onnx.load(toy_model).graph
    (images,) = graph.input
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [side.dim_value for side in images.type.tensor_type.shape.dim] == [1, 3, 64, 64]
    assert [output.name for output in graph.output] == ["boxes_xyxy", "scores"]


def test_batch_norm_is_folded(toy_model: Path) -> None:
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(toy_model).graph.node}


def test_the_file_runs_without_torch(toy_model: Path, toy_run: Path, toy: Path) -> None:
    picture = list_images(toy / "val2017")[0]
    code = f"""
import sys
from pathlib import Path
sys.modules["torch"] = None  # importing it fails
from mnet_det.images import read_image
from mnet_det.runtime import load_predictor
for runtime in ("openvino", "onnxruntime"):
    found = load_predictor({str(toy_model)!r}, runtime=runtime)(read_image(Path({str(picture)!r})))
    print(len(found), *found.boxes_xyxy[0], found.scores[0])
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert child.returncode == 0, child.stderr
    expected = load_torch_predictor(toy_run / "best.pt")(read_image(picture))
    lines = [[float(word) for word in line.split()] for line in child.stdout.splitlines()]
    assert len(lines) == 2
    for count, *box, score in lines:
        assert count == len(expected) == 100
        assert box == pytest.approx(expected.boxes_xyxy[0].tolist(), abs=0.05)
        assert score == pytest.approx(float(expected.scores[0]), abs=1e-4)


@pytest.mark.usefixtures("_copied")
def test_a_model_that_differs_from_torch_is_not_kept(toy_run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(toy_run / "best.pt")
    for name, tensor in checkpoint.weights.items():
        if name.startswith("box_predictors") and name.endswith("bias"):
            tensor += 0.5  # the graph that is copied has the old biases
    save_checkpoint(tmp_path / "other.pt", checkpoint)
    out = tmp_path / "other.onnx"
    out.write_bytes(b"an older export")
    with pytest.raises(ExportError, match=r"other\.onnx: not kept, the exported model differs from torch: [\d.]+ px"):
        export_detector(tmp_path / "other.pt", out)
    assert out.read_bytes() == b"an older export"
    assert {path.name for path in tmp_path.iterdir()} == {"other.pt", "other.onnx"}


@pytest.mark.usefixtures("_copied")
def test_a_model_that_agrees_is_kept_with_its_proof(toy_run: Path, toy_model: Path, tmp_path: Path) -> None:
    parity = export_detector(toy_run / "best.pt", tmp_path / "new" / "model.onnx")
    assert parity.images == 4  # the run's own validation images
    assert (tmp_path / "new" / "model.onnx").read_bytes() == toy_model.read_bytes()


@pytest.mark.usefixtures("_copied")
def test_the_images_to_compare_on_can_be_named(toy_run: Path, toy: Path, tmp_path: Path) -> None:
    assert export_detector(toy_run / "best.pt", tmp_path / "model.onnx", images=toy / "train2017").images == 6
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none: no image in it"):
        export_detector(toy_run / "best.pt", tmp_path / "other.onnx", images=tmp_path / "none")
    (tmp_path / "none" / "damaged.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="none: none of its images can be read"):
        export_detector(toy_run / "best.pt", tmp_path / "other.onnx", images=tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "none"]


@pytest.mark.usefixtures("_copied")
def test_without_the_validation_images_drawn_ones_are_compared(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_IMAGES", 3)
    checkpoint = load_checkpoint(toy_run / "best.pt")
    data = checkpoint.config.data.model_copy(update={"root": tmp_path / "on another machine"})
    save_checkpoint(
        tmp_path / "moved.pt", replace(checkpoint, config=checkpoint.config.model_copy(update={"data": data}))
    )
    parity = export_detector(tmp_path / "moved.pt", tmp_path / "moved.onnx")
    assert parity.images == 3
    assert "on 3 drawn images" in str(parity)  # it did not say so


@pytest.mark.parametrize("name", ["model.engine", "model.XML"])  # OpenVINO's saver takes no capital letters
def test_a_name_of_another_kind_is_refused(name: str, toy_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: expected a name that ends in \.onnx or \.xml"):
        export_detector(toy_run / "best.pt", tmp_path / name)
    assert list(tmp_path.iterdir()) == []


class Fixed(Backend):
    """Gives one candidate, the same for every image."""

    name, threads = "fixed", 1

    def __init__(self, metadata: ModelMetadata, *, box: Sequence[float], score: float) -> None:
        self.metadata = metadata
        self._found = Candidates(np.array([[[box]]], np.float32), np.full((1, 1, 6), score, np.float32))

    def candidates(self, images: NDArray[np.uint8]) -> Candidates:
        return self._found


@pytest.fixture
def metadata(toy_model: Path) -> ModelMetadata:
    return read_metadata(toy_model)


def test_the_largest_differences_are_reported(metadata: ModelMetadata, pictures: list[Image]) -> None:
    one = Fixed(metadata, box=[1, 2, 30, 40], score=0.9)
    other = Fixed(metadata, box=[1, 2.25, 30, 39], score=0.875)
    # Six classes share one box: six detections an image.
    assert compare(one, other, pictures) == Parity(4, 24, pytest.approx(1), pytest.approx(0.025))


def test_boxes_that_nobody_sees_are_not_compared(metadata: ModelMetadata, pictures: list[Image]) -> None:
    one = Fixed(metadata, box=[1, 2, 30, 40], score=0.04)
    other = Fixed(metadata, box=[1, 2, 30, 4000], score=0.04)
    assert compare(one, other, pictures) == Parity(4, 0, 0, 0)


@pytest.mark.parametrize(
    ("score", "images"),
    [
        (0.9, 8),  # six detections an image: 20 are there after four, but eight images are wanted
        (0.31, 8),
        (0.29, 64),  # none at all: all images that are allowed
    ],
)
def test_images_are_compared_until_enough_detections_were(
    score: float, images: int, metadata: ModelMetadata, pictures: list[Image]
) -> None:
    one = Fixed(metadata, box=[1, 2, 30, 40], score=score)
    assert compare(one, one, pictures[:1] * 100).images == images


def test_a_parity_that_proves_little_says_so() -> None:
    assert str(Parity(8, 25, 0.00123, 0.0000456)) == (
        "compared with torch on 8 images: 25 detections above 0.3, boxes within 0.0012 px, scores within 5e-05"
    )
    assert "fewer than 20 detections prove little" in str(Parity(64, 3, 0, 0))


def test_a_checkpoint_is_converted_by_a_child_once_and_then_found(
    toy_run: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MNET_DET_CACHE", str(tmp_path))
    predictor = load_predictor(toy_run / "best.pt", runtime="openvino")
    assert capfd.readouterr().err.startswith(f"converting {toy_run / 'best.pt'} once, into ")
    assert predictor.runtime == "openvino"
    (exported,) = (tmp_path / "exported").glob("*.onnx")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("converted again"))
    again = load_predictor(toy_run / "best.pt", runtime="onnxruntime")
    assert capfd.readouterr().err == ""
    assert list((tmp_path / "exported").glob("*.onnx")) == [exported]
    image = read_image(list_images(toy / "val2017")[0])
    np.testing.assert_allclose(predictor(image).boxes_xyxy[0], again(image).boxes_xyxy[0], atol=0.05)


def test_nan_is_a_difference() -> None:
    """`max(0.0, nan)` is 0.0: a model that gave nothing but NaN compared as equal."""

    class Scripted(Backend):
        def __init__(self, value: float) -> None:
            self.metadata = describe(Config(), name="x", class_names=("a",), category_ids=(1,))
            self.value = value

        def candidates(self, images: np.ndarray) -> Candidates:
            scores = np.full((1, 2, 1), self.value, np.float32)
            return Candidates(np.full((1, 2, 1, 4), self.value, np.float32), scores)

    parity = compare(Scripted(0.9), Scripted(float("nan")), [np.zeros((8, 8, 3), np.uint8)])
    assert (parity.box_px, parity.score) == (float("inf"), float("inf"))


@pytest.mark.usefixtures("_copied")
def test_an_openvino_model_is_two_files_in_float32(toy_run: Path, tmp_path: Path) -> None:
    export_detector(toy_run / "best.pt", tmp_path / "toy.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.bin", "toy.xml"]
    weights = sum(tensor.numel() for tensor in load_checkpoint(toy_run / "best.pt").weights.values())
    assert (tmp_path / "toy.bin").stat().st_size > 4 * 0.8 * weights  # OpenVINO's own default halves them


@pytest.mark.usefixtures("_copied")
def test_a_model_that_cannot_take_its_place_leaves_the_old_weights(toy_run: Path, tmp_path: Path) -> None:
    """The weights were renamed first, and stayed where the graph beside them was another's, or none."""
    (tmp_path / "toy.xml").mkdir()
    (tmp_path / "toy.bin").write_bytes(b"of an older export")
    with pytest.raises(MnetDetError, match=r"toy\.xml: cannot be written"):
        export_detector(toy_run / "best.pt", tmp_path / "toy.xml")
    assert (tmp_path / "toy.bin").read_bytes() == b"of an older export"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy.bin", "toy.xml"]


@pytest.mark.usefixtures("_copied")
def test_a_refused_openvino_model_leaves_nothing(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "compare", lambda *_, **__: Parity(8, 30, 12.0, 0.5))
    with pytest.raises(ExportError, match="not kept"):
        export_detector(toy_run / "best.pt", tmp_path / "toy.xml")
    assert list(tmp_path.iterdir()) == []


def test_only_two_stages_have_proposals(toy_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--proposals 7: only Faster R-CNN has proposals, this is ssd"):
        export_detector(toy_run / "best.pt", tmp_path / "x.onnx", proposals=7)


class Shown(Backend):
    """A two-stage detector that finds these boxes, all of one class, whatever it sees."""

    def __init__(self, *found: tuple[list[float], float]) -> None:
        config = load_config(None, ["model.head=faster_rcnn"])
        self.metadata = describe(config, name="x", class_names=("a",), category_ids=(1,))
        self.found = found

    def candidates(self, images: np.ndarray) -> Candidates:
        boxes = np.array([[[box] for box, _ in self.found]] * len(images), np.float32)
        return Candidates(boxes, np.array([[[score] for _, score in self.found]] * len(images), np.float32))


NEAR, FAR = [10.0, 10, 50, 50], [100.0, 100, 180, 180]


def test_two_stage_detections_are_paired_whatever_slots_they_lie_in(pictures: list[Image]) -> None:
    shifted = [10.0, 10, 50, 50.25]
    parity = compare(Shown((NEAR, 0.9), (FAR, 0.8)), Shown((FAR, 0.8005), (shifted, 0.9)), pictures)
    assert (parity.box_px, parity.score) == (pytest.approx(0.25), pytest.approx(0.0005, abs=1e-6))
    assert (parity.paired, parity.unpaired) == (16, 0)  # 4 images, 2 detections each, both ways
    assert parity.holds


@pytest.mark.parametrize(
    "other",
    [
        Shown((NEAR, 0.9)),  # one is missing
        Shown((NEAR, 0.9), (FAR, 0.8), ([100.0, 10, 180, 50], 0.7)),  # one too many
        Shown((NEAR, 0.9), ([100.0, 100, 180, 181], 0.8)),  # a box one pixel off
        Shown((NEAR, 0.9), (FAR, 0.79)),
        Shown((NEAR, float("nan")), (FAR, 0.8)),
        Shown(([0.0] * 4, 0.0)),
    ],
    ids=["missing", "surplus", "box", "score", "nan", "nothing"],
)
def test_a_two_stage_export_that_detects_otherwise_is_refused(other: Shown, pictures: list[Image]) -> None:
    parity = compare(Shown((NEAR, 0.9), (FAR, 0.8)), other, pictures)
    assert parity.unpaired >= 4
    assert not parity.holds


def test_two_stages_that_find_nothing_are_compared_by_their_best_scores(pictures: list[Image]) -> None:
    """With no detection to pair, any export held."""
    quiet = Shown((NEAR, 0.03), (FAR, 0.02))
    assert compare(quiet, Shown((FAR, 0.02), (NEAR, 0.03)), pictures).holds
    parity = compare(quiet, Shown((NEAR, 0.0), (FAR, 0.02)), pictures)
    assert parity.score == pytest.approx(0.01)
    assert not parity.holds


def test_one_near_tie_in_a_hundred_is_no_reason_to_refuse() -> None:
    assert Parity(8, 30, 0.1, 1e-4, paired=99, unpaired=1).holds
    assert not Parity(8, 30, 0.1, 1e-4, paired=98, unpaired=2).holds
    assert "1 of 100 detections have no counterpart so close" in str(Parity(8, 30, 0.1, 1e-4, paired=99, unpaired=1))
