"""What `bench` measures: given models as they are, and random ones of any width on every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnet_det.engine import bench as module
from mnet_det.engine.bench import bench_images, run_bench
from mnet_det.errors import ConfigError
from mnet_det.runtime.benchmark import BenchmarkRow


class Loads:
    """A `load` that only notes what it was asked for, and what lay there then."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int | None, float]] = []
        self.there: list[bool] = []

    def __call__(self, path: Path, *, runtime: str, threads: int | None, score: float) -> Any:
        self.asked.append((path.name, runtime, threads, score))
        self.there.append(path.exists())
        return self


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Loads:
    monkeypatch.setattr(module, "benchmark", lambda predictors, images: [(name, len(images)) for name, _ in predictors])
    return Loads()


def test_every_model_is_measured_on_every_runtime(loads: Loads, tmp_path: Path) -> None:
    models = [tmp_path / "a.onnx", tmp_path / "b.pt"]
    rows = run_bench(models, alphas=[], rhos=[1.0], runtimes=["openvino", "torch"], threads=3, load=loads)
    assert rows == [(str(path), 8) for path in models for _ in range(2)]
    assert loads.asked == [(path.name, runtime, 3, 0.5) for path in models for runtime in ("openvino", "torch")]


def test_a_given_checkpoint_is_measured_itself(loads: Loads, tmp_path: Path) -> None:
    """An .onnx file beside it was measured in its place, though it may be an older model's export."""
    (tmp_path / "best.onnx").touch()
    run_bench([tmp_path / "best.pt"], alphas=[], rhos=[1.0], runtimes=["openvino"], threads=None, load=loads)
    assert loads.asked == [("best.pt", "openvino", None, 0.5)]


def test_random_models_come_in_the_form_that_the_runtime_takes(loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(config: Any, path: Path) -> None:
        path.touch()
        path.with_suffix(".onnx").touch()

    monkeypatch.setattr(module, "_write_random_model", write)
    rows = run_bench([], alphas=[0.5, 0.25], rhos=[1, 0.64], runtimes=["auto", "torch"], threads=None, load=loads)
    names = [name for name, _ in rows]
    assert len(names) == 8
    assert names[2] == names[3] == "ssd300 alpha 0.5 rho 0.64 (random weights)"
    assert [asked[:2] for asked in loads.asked[2:4]] == [("0.5-0.64.onnx", "auto"), ("0.5-0.64.pt", "torch")]
    assert all(loads.there)


def test_nothing_to_measure_is_a_mistake(loads: Loads) -> None:
    with pytest.raises(ConfigError, match="nothing to measure: give a MODEL or --alpha"):
        run_bench([], alphas=[], rhos=[1.0], runtimes=["auto"], threads=None, load=loads)


def test_all_models_see_the_same_drawn_scenes() -> None:
    images = bench_images()
    assert [image.shape for image in images] == [(480, 640, 3)] * 8
    assert all(np.array_equal(one, other) for one, other in zip(images, bench_images(), strict=True))
    assert not np.array_equal(images[0], images[1])


def test_a_random_model_is_ssd300_with_coco_s_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnet_det.cli import _load

    monkeypatch.setattr(module, "bench_images", lambda: [np.zeros((48, 64, 3), np.uint8)])
    rows = run_bench([], alphas=[0.1], rhos=[0.25], runtimes=["openvino", "torch"], threads=1, load=_load)
    assert [row.runtime for row in rows] == ["openvino", "torch"]
    for row in rows:
        assert isinstance(row, BenchmarkRow)
        assert (row.alpha, row.input_hw, row.threads) == (0.1, (75, 75), 1)  # 300 × 0.25
        stages = [stage.p50 for stage in (row.preprocess_ms, row.network_ms, row.postprocess_ms)]
        assert all(stage > 0 for stage in stages)
        assert row.network_ms.p50 <= row.network_ms.p95
        assert row.total_ms.p50 >= max(stages)
