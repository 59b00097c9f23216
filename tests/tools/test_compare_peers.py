"""The peers run our weights: each detects what our network detects, or says by name why it is not measured."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from mnet_det.config import load_config
from mnet_det.engine.bench import bench_images
from mnet_det.engine.checkpoint import open_detector
from mnet_det.engine.torch_backend import describe_checkpoint
from mnet_det.images import read_image
from mnet_det.preprocess import Preprocessor
from mnet_det.runtime.postprocess import Thresholds, postprocess
from mnet_det.structures import Detections, Image

SIDE = 64
WORDS = ["model.alpha=0.1", f"model.base_hw=[{SIDE},{SIDE}]"]
OPENCV_READS_IT = int(cv2.__version__.partition(".")[0]) >= 5  # 4.11 does not read what torch 2.9 writes
STAGES = {"preprocess_ms", "network_ms", "postprocess_ms", "total_ms"}


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    path = Path(__file__).parents[2] / "tools" / "compare_peers.py"
    spec = importlib.util.spec_from_file_location("compare_peers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "compare_peers", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def network(tool: ModuleType, toy_run: Path, toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The toy run's, whose scores are all low; its export is not made again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "write_onnx", lambda _, __, path: shutil.copy(toy_model, path))
        onnx = tmp_path_factory.mktemp("peers") / "toy.onnx"
        return tool.open_network(toy_run / "best.pt", "toy", onnx, score=0.1, threads=torch.get_num_threads())


@pytest.fixture(scope="module")
def frames(tool: ModuleType) -> list[Image]:
    return [tool.enlarge(frame, (SIDE, SIDE)) for frame in bench_images()[:4]]


@pytest.fixture(scope="module")
def reference(tool: ModuleType, network: Any) -> Any:
    return tool.REFERENCE.make(network)


def entry_of(tool: ModuleType, name: str) -> Any:
    return next(entry for entry in tool.ENTRIES if entry.name.startswith(name))


@pytest.mark.parametrize("name", ["mnet-det, OpenVINO", "mnet-det, ONNX Runtime", "OpenCV DNN", "torchvision's SSD"])
def test_each_runtime_detects_what_ours_does(
    tool: ModuleType, network: Any, reference: Any, frames: list[Image], name: str
) -> None:
    if "ONNX Runtime" in name:
        pytest.importorskip("onnxruntime")
    if name == "OpenCV DNN" and not OPENCV_READS_IT:
        pytest.skip(f"OpenCV {cv2.__version__} cannot read what this torch exports")
    entry = entry_of(tool, name)
    contestant = entry.make(network)
    agreement = tool.agree(reference, contestant, frames, entry.tolerance)
    assert agreement.holds
    assert agreement.compared > 300
    assert agreement.paired >= 0.99 * agreement.compared
    detections, times = contestant.timed(frames[0])
    assert len(detections) > 0
    assert detections.scores.min() >= 0.1
    assert min(times.preprocess_ms, times.network_ms, times.postprocess_ms) > 0


def test_torchvision_differs_only_in_clipping_before_it_suppresses(
    tool: ModuleType, network: Any, frames: list[Image]
) -> None:
    """With our candidates clipped first, boxes over the edge meet the same rivals: not one detection differs."""
    loose = replace(network, thresholds=replace(network.thresholds, max_detections=2000))  # where nothing is cut off
    detector = network.detector
    for frame in frames:
        pixels, resize = Preprocessor((SIDE, SIDE), mode="stretch")(frame)
        with torch.no_grad():
            boxes_xyxy, scores = (found[0].numpy() for found in detector(torch.from_numpy(pixels)[None]))
        expected = resize.undo(postprocess(boxes_xyxy.clip(0, SIDE), scores, loose.thresholds))
        found, _ = tool.TorchvisionSSD(loose).timed(frame)
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        assert tool._have_partners(found, expected, tool.FLOAT32).all()


def test_another_network_is_told_apart(tool: ModuleType, network: Any, reference: Any, frames: list[Image]) -> None:
    """A tenth more of one class's bias: its scores are near, but not ours."""
    other = replace(network, detector=open_detector(network.file).build())
    with torch.no_grad():
        other.detector.class_predictors[0].bias[1] += 0.1
    agreement = tool.agree(reference, tool.TorchvisionSSD(other), frames, tool.FLOAT32)
    assert not agreement.holds
    assert str(agreement) == f"NO: {agreement.paired} of {agreement.compared}"


def test_an_enlarged_frame_gives_the_network_s_own_pixels_back(tool: ModuleType) -> None:
    frame = bench_images()[0]
    expected, _ = Preprocessor((SIDE, SIDE), mode="stretch")(frame)
    enlarged = tool.enlarge(frame, (SIDE, SIDE))
    assert enlarged.shape == (2 * SIDE, 4 * SIDE, 3)
    np.testing.assert_array_equal(Preprocessor((SIDE, SIDE), mode="stretch")(enlarged)[0], expected)
    np.testing.assert_array_equal(cv2.dnn.blobFromImage(enlarged, size=(SIDE, SIDE), ddepth=cv2.CV_8U)[0], expected)
    floats = torch.from_numpy(enlarged).permute(2, 0, 1)[None].float()
    resized = interpolate(floats, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(resized.numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("count", [1, 3])
def test_random_weights_score_as_few_anchors_high_as_asked(tool: ModuleType, count: int) -> None:
    frames = bench_images()[:count]
    checkpoint = tool.random_checkpoint(load_config(None, WORDS), frames)
    preprocess = Preprocessor((SIDE, SIDE), mode="stretch")
    pixels = torch.from_numpy(np.stack([preprocess(frame)[0] for frame in frames]))
    with torch.no_grad():
        scores = checkpoint.build()(pixels).scores
    above = int((scores.amax(dim=-1) >= 0.5 - 1e-4).sum())  # the last of them has exactly 0.5, but for rounding
    assert above == count * tool.SEEN_OBJECTS
    again = tool.random_checkpoint(checkpoint.config, frames).weights
    assert all(torch.equal(again[name], tensor) for name, tensor in checkpoint.weights.items())


def test_detections_pair_within_the_tolerance_only(tool: ModuleType) -> None:
    """Frames are 2 times as high and 4 times as wide as the input: 0.5 px there are 1 px down and 2 px across here."""
    mine = Detections(np.array([[0, 0, 40, 20]], np.float32), np.array([0.5], np.float32), np.array([3]))

    def paired(
        *, by_xyxy: tuple[float, float, float, float] = (0, 0, 0, 0), score: float = 0.5, label: int = 3
    ) -> bool:
        boxes_xyxy = mine.boxes_xyxy + np.array(by_xyxy, np.float32)
        theirs = Detections(boxes_xyxy, np.array([score], np.float32), np.array([label]))
        return bool(tool._have_partners(mine, theirs, tool.FLOAT32)[0])

    assert paired()
    assert paired(by_xyxy=(1.9, 0, 0, 0))
    assert not paired(by_xyxy=(2.1, 0, 0, 0))
    assert paired(by_xyxy=(0, 0.9, 0, 0))
    assert not paired(by_xyxy=(0, 1.1, 0, 0))
    assert not paired(score=0.502)
    assert not paired(label=4)
    assert not tool._have_partners(mine, Detections.empty(), tool.FLOAT32)[0]


def test_nothing_to_compare_is_not_agreement(tool: ModuleType, reference: Any) -> None:
    agreement = tool.agree(reference, reference, [], tool.FLOAT32)
    assert not agreement.holds
    assert str(agreement) == "nothing to compare"


@pytest.mark.parametrize(
    ("module", "name", "suffix"),
    [("onnxruntime", "mnet-det, ONNX Runtime", ".pt"), ("ai_edge_litert.interpreter", "LiteRT", ".tflite")],
)
def test_what_is_not_installed_is_skipped_by_name(
    tool: ModuleType, network: Any, module: str, name: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    entry = entry_of(tool, name)
    contestants, skipped = tool.load_all(replace(network, file=network.file.with_suffix(suffix)), [entry])
    assert not contestants
    assert list(skipped) == [entry.name]
    assert "not installed" in skipped[entry.name]


def test_sigmoid_scores_are_not_for_torchvision(tool: ModuleType, network: Any) -> None:
    focal = open_detector(network.file).build()
    focal.class_loss = "focal"
    with pytest.raises(tool.Skipped, match="softmax"):
        tool.TorchvisionSSD(replace(network, detector=focal))


def test_a_run_prints_and_writes_every_row(
    tool: ModuleType,
    toy_run: Path,
    toy: Path,
    toy_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tool, "write_onnx", lambda _, __, path: shutil.copy(toy_model, path))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    threads, path = torch.get_num_threads(), tmp_path / "peers.json"
    monkeypatch.setattr(tool, "int8_entry", lambda frames: replace(entry_of(tool, "mnet-det, OpenVINO"), name="int8"))
    words = ["--model", str(toy_run / "best.pt"), "--images", str(toy / "val2017")]
    assert tool.main([*words, "--rounds", "1", "--threads", str(threads), "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(path.read_text())
    assert {"machine", "threads", "rounds", "score", "images", "networks", "notes"} <= set(content)
    (written,) = content["networks"]
    assert [row["runtime"] for row in written["rows"]] == [
        "int8",
        "mnet-det, OpenVINO",
        "mnet-det, torch",
        *(["OpenCV DNN"] if OPENCV_READS_IT else []),
        "torchvision's SSD, eager",
    ]
    ours = min(
        (row["total_ms"]["p50"], row["runtime"])
        for row in written["rows"]
        if row["runtime"] in ("int8", "mnet-det, OpenVINO", "mnet-det, torch")
    )
    for row in written["rows"]:
        assert set(row) >= STAGES
        assert row["total_ratio"] == pytest.approx(row["total_ms"]["p50"] / ours[0])
        assert f"{row['runtime']} {row['version']}" in printed
    skipped = {"mnet-det, ONNX Runtime", "LiteRT, 8-bit file"} | (set() if OPENCV_READS_IT else {"OpenCV DNN"})
    assert set(written["skipped"]) == skipped
    for name in written["skipped"]:
        assert f"skipped: {name} (" in printed
    assert "…" not in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nothing"], "nothing: neither a file nor the name of published weights"),
        (["--alpha", "1.0", "--images", "missing"], "missing"),
    ],
    ids=["model", "images"],
)
def test_a_mistake_is_said_in_a_line(
    tool: ModuleType, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([*words, "--threads", str(torch.get_num_threads())]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("words", [["--threads", "0"], ["--rounds", "x"], ["--score", "2"], ["--alpha", "nan"]])
def test_a_number_that_makes_no_sense_is_refused(
    tool: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        tool.main(words)
    assert stop.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.shared
def test_litert_on_the_published_file_sees_what_our_import_sees(tool: ModuleType, shared: Path) -> None:
    """Whose own published test expects three cats and a dog in this picture, the dog just at 0.5."""
    pytest.importorskip("ai_edge_litert.interpreter")
    file = shared / "weights" / "ssd_mobilenet_v1_coco_quant.tflite"
    checkpoint = open_detector(file)
    described = describe_checkpoint(checkpoint, file)
    network = tool.Network(
        title="published",
        file=file,
        onnx=Path("none.onnx"),
        detector=checkpoint.build(),
        metadata=described,
        thresholds=replace(Thresholds.of(described), score=0.5),
        threads=torch.get_num_threads(),
    )
    image = read_image(shared / "weights" / "cats_and_dogs.jpg")
    found, _ = tool.LiteRT(network).timed(image)
    expected, _ = tool.REFERENCE.make(network).timed(image)
    assert [described.class_names[label] for label in found.labels] == ["cat", "cat", "cat", "dog"]
    np.testing.assert_array_equal(expected.labels, found.labels)
    np.testing.assert_allclose(expected.scores, found.scores, atol=0.02)
    np.testing.assert_allclose(expected.boxes_xyxy, found.boxes_xyxy, atol=6)


@pytest.mark.slow
def test_our_8_bit_row_is_made_from_the_frames(tool: ModuleType, network: Any) -> None:
    frames = tool.bench_images()[:2]
    predictor = tool.int8_entry(frames).make(network)
    assert predictor.metadata.precision == "int8"
    assert predictor.metadata.quantization.calibration_images == 2
    assert len(predictor(frames[0], score=0.0)) == network.thresholds.max_detections
