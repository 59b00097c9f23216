import dataclasses
import json

import numpy as np
import pytest

from mnet_det.runtime.benchmark import StageSummary, benchmark, machine
from mnet_det.runtime.metadata import ModelMetadata
from mnet_det.runtime.predictor import Times
from mnet_det.structures import Detections, Image

IMAGE = np.zeros((8, 8, 3), np.uint8)


class ScriptedPredictor:
    """Takes 1, 2, 3 … ms in the network, and notes who ran when."""

    runtime = "openvino"
    threads = 2

    def __init__(self, name: str, metadata: ModelMetadata, order: list[str]) -> None:
        self.name, self.metadata, self.order, self.calls = name, metadata, order, 0

    def timed(self, image: Image) -> tuple[Detections, Times]:
        self.order.append(self.name)
        self.calls += 1
        return Detections.empty(), Times(preprocess_ms=10.0, network_ms=float(self.calls), postprocess_ms=0.5)


def test_percentiles_are_interpolated() -> None:
    """Of 1…5 the middle is 3, and 95 % of the way along four steps is 1 + 0.95 x 4 = 4.8."""
    summary = StageSummary.of([5, 1, 4, 2, 3])
    assert (summary.p50, summary.p95) == (3, pytest.approx(4.8))


def test_models_take_turns_and_warm_up_is_not_counted(metadata: ModelMetadata) -> None:
    """Three warm-up calls, then network times 4…8 ms: median 6, p95 4 + 0.95 x 4 = 7.8; 10.5 ms more in total."""
    order: list[str] = []
    predictors = {name: ScriptedPredictor(name, metadata, order) for name in ("a", "b")}
    rows = benchmark(list(predictors.items()), [IMAGE], repeats=5, warmup=3)  # type: ignore[arg-type]
    assert order == ["a", "b"] * 8
    assert [row.model for row in rows] == ["a", "b"]
    assert rows[0].network_ms == StageSummary(6, pytest.approx(7.8))
    assert rows[0].total_ms == StageSummary(16.5, pytest.approx(18.3))


def test_a_row_has_the_keys_of_the_bench_json(metadata: ModelMetadata) -> None:
    (row,) = benchmark([("a", ScriptedPredictor("a", metadata, []))], [IMAGE], repeats=1, warmup=0)  # type: ignore[list-item]
    written = json.loads(json.dumps(dataclasses.asdict(row)))
    stages = {"preprocess_ms": 10.0, "network_ms": 1.0, "postprocess_ms": 0.5, "total_ms": 11.5}
    assert written == {
        "model": "a",
        "alpha": 0.5,
        "input_hw": [32, 32],
        "runtime": "openvino",
        "threads": 2,
        **{stage: {"p50": value, "p95": value} for stage, value in stages.items()},
    }


@pytest.mark.parametrize(("images", "repeats"), [([], 5), ([IMAGE], 0)], ids=["no image", "no repeat"])
def test_nothing_to_measure_is_refused(images: list[Image], repeats: int) -> None:
    with pytest.raises(ValueError, match="expected at least one image and one repeat"):
        benchmark([], images, repeats=repeats)


def test_the_machine_is_named() -> None:
    named = machine()
    assert set(named) == {"cpu", "logical_cores", "os", "python", "numpy", "opencv", "openvino"}
    assert named["cpu"]
    json.dumps(named)
