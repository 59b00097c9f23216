import dataclasses
import json

import numpy as np
import pytest

from mnet_det.runtime.benchmark import (
    Benchmark,
    Look,
    MatrixProduct,
    StageSummary,
    benchmark,
    looking,
    machine,
    row_of,
)
from mnet_det.runtime.metadata import ModelMetadata, Quantization
from mnet_det.runtime.predictor import Times
from mnet_det.structures import Detections, Image

IMAGE = np.zeros((8, 8, 3), np.uint8)


class ScriptedPredictor:
    """Takes 1, 2, 3 … ms in the network, and notes the brightness of what it sees."""

    runtime = "openvino"
    threads = 2

    def __init__(self, metadata: ModelMetadata) -> None:
        self.metadata = metadata
        self.seen: list[int] = []

    def timed(self, image: Image) -> tuple[Detections, Times]:
        self.seen.append(int(image[0, 0, 0]))
        return Detections.empty(), Times(preprocess_ms=10.0, network_ms=float(len(self.seen)), postprocess_ms=0.5)


def test_percentiles_are_interpolated() -> None:
    """Of 1…5 the middle is 3, and 95 % of the way along four steps is 1 + 0.95 x 4 = 4.8."""
    summary = StageSummary.of([5, 1, 4, 2, 3])
    assert (summary.p50, summary.p95) == (3, pytest.approx(4.8))


def test_models_are_measured_in_turns(metadata: ModelMetadata) -> None:
    """Calls 1…5 warm up; of 6…10 count 8, 9, 10 ms: median 9, p95 9.9; 10.5 ms more in total."""
    predictors = [(name, ScriptedPredictor(metadata)) for name in ("a", "b")]
    rows = benchmark(predictors, [IMAGE], rounds=1, rest_s=0)  # type: ignore[arg-type]
    assert [row.model for row in rows] == ["a", "b"]
    assert rows[0].network_ms == rows[1].network_ms == StageSummary(9, pytest.approx(9.9))
    assert rows[0].total_ms == StageSummary(19.5, pytest.approx(20.4))
    assert rows[0].fps == 1000 / 19.5


def test_a_row_has_the_keys_of_the_bench_json(metadata: ModelMetadata) -> None:
    looks = [Look(Times(10, 1, 0.5), detections) for detections in (2, 5)]
    written = json.loads(json.dumps(dataclasses.asdict(row_of("a", ScriptedPredictor(metadata), looks))))  # type: ignore[arg-type]
    stages = {"preprocess_ms": 10.0, "network_ms": 1.0, "postprocess_ms": 0.5, "total_ms": 11.5}
    assert written == {
        "model": "a",
        "alpha": 0.5,
        "input_hw": [32, 32],
        "runtime": "openvino",
        "threads": 2,
        "precision": "float32",
        "detections": 3.5,
        **{stage: {"p50": value, "p95": value} for stage, value in stages.items()},
    }


def test_images_are_taken_in_turn(metadata: ModelMetadata) -> None:
    predictor = ScriptedPredictor(metadata)
    look = looking(predictor, [IMAGE, IMAGE + 1, IMAGE + 2])  # type: ignore[arg-type]
    for call in range(5):
        look(call)
    assert predictor.seen == [0, 1, 2, 0, 1]


def test_no_image_is_refused(metadata: ModelMetadata) -> None:
    with pytest.raises(ValueError, match="expected at least one image"):
        benchmark([("a", ScriptedPredictor(metadata))], [])  # type: ignore[list-item]


def test_a_fraction_of_the_matrix_product_is_of_rates(metadata: ModelMetadata) -> None:
    """1000³ in 10 ms are 100 G a second; 0.3 G in 5 ms are 60. Nothing limits int8 to float32's rate."""
    product = MatrixProduct("a library", 1000, 2, StageSummary(10, 12))
    int8 = metadata.model_copy(update={"quantization": Quantization(calibration_images=1)})
    row, int8_row = (
        row_of("a", ScriptedPredictor(known), [Look(Times(1, 5, 1), 0)])  # type: ignore[arg-type]
        for known in (metadata, int8)
    )
    assert product.g_mult_adds_per_s == pytest.approx(100)
    assert product.fraction_of(row, mult_adds=300_000_000) == pytest.approx(0.6)
    assert int8_row.precision == "int8"
    assert product.fraction_of(int8_row, mult_adds=300_000_000) is None


def test_a_benchmark_says_what_it_looked_at_and_with_how_many_threads(metadata: ModelMetadata) -> None:
    product = MatrixProduct("a library", 1000, 2, StageSummary(10, 12))
    row = row_of("a", ScriptedPredictor(metadata), [Look(Times(1, 5, 1), 0)])  # type: ignore[arg-type]
    rows = [row, dataclasses.replace(row, threads=1), row]
    one_size, own = (Benchmark(rows, product, "3 images of val", hw, 0.3) for hw in ((360, 640), None))
    assert str(one_size) == "3 images of val, 640x360, score at least 0.3, threads: 1, 2"
    assert str(own) == "3 images of val, each in its own size, score at least 0.3, threads: 1, 2"


def test_the_machine_is_named() -> None:
    named = machine()
    always = {"cpu", "physical_cores", "logical_cores", "os", "python", "numpy", "opencv", "openvino"}
    assert always <= set(named) <= always | {"onnxruntime", "torch", "nncf"}
    assert named["cpu"]
    assert 1 <= int(named["physical_cores"]) <= int(named["logical_cores"])
    json.dumps(named)
