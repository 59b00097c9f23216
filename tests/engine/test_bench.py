"""What `bench` measures: given models as they are, and random ones of any width on every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnet_det.engine import bench as module
from mnet_det.engine.bench import bench_images, recipes_to_measure, run_bench, widths_to_measure
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
    rows = run_bench(models, configs={}, runtimes=["openvino", "torch"], threads=3, load=loads)
    assert rows == [(str(path), 8) for path in models for _ in range(2)]
    assert loads.asked == [(path.name, runtime, 3, 0.5) for path in models for runtime in ("openvino", "torch")]


def test_a_given_checkpoint_is_measured_itself(loads: Loads, tmp_path: Path) -> None:
    """An .onnx file beside it was measured in its place, though it may be an older model's export."""
    (tmp_path / "best.onnx").touch()
    run_bench([tmp_path / "best.pt"], configs={}, runtimes=["openvino"], threads=None, load=loads)
    assert loads.asked == [("best.pt", "openvino", None, 0.5)]


def test_random_models_come_in_the_form_that_the_runtime_takes(loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(config: Any, path: Path) -> None:
        path.touch()
        path.with_suffix(".onnx").touch()

    monkeypatch.setattr(module, "_write_random_model", write)
    configs = widths_to_measure([0.5, 0.25], [1, 0.64])
    rows = run_bench([], configs=configs, runtimes=["auto", "torch"], threads=None, load=loads)
    names = [name for name, _ in rows]
    assert len(names) == 8
    assert names[2] == names[3] == "ssd300 alpha 0.5 rho 0.64 (random weights)"
    assert [asked[:2] for asked in loads.asked[2:4]] == [("1.onnx", "auto"), ("1.pt", "torch")]
    assert all(loads.there)


def test_nothing_to_measure_is_a_mistake(loads: Loads) -> None:
    with pytest.raises(ConfigError, match="nothing to measure: give a MODEL, a config file or --alpha"):
        run_bench([], configs={}, runtimes=["auto"], threads=None, load=loads)


def test_recipes_are_put_on_every_backbone(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("model: {head: ssdlite}")
    (tmp_path / "two.yaml").write_text("model: {head: faster_rcnn, fpn: true}")
    recipes = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    alone = recipes_to_measure(recipes, settings=["model.rho=0.5"])
    assert list(alone) == ["one (random weights)", "two (random weights)"]
    assert [config.model.rho for config in alone.values()] == [0.5, 0.5]
    on_two = recipes_to_measure(recipes, backbones=["mobilenet_v1", "vgg16"])
    assert [(name.split()[2], config.model.backbone, config.model.head) for name, config in on_two.items()] == [
        ("mobilenet_v1", "mobilenet_v1", "ssdlite"),
        ("vgg16", "vgg16", "ssdlite"),
        ("mobilenet_v1", "mobilenet_v1", "faster_rcnn"),
        ("vgg16", "vgg16", "faster_rcnn"),
    ]


def test_all_models_see_the_same_drawn_scenes() -> None:
    images = bench_images()
    assert [image.shape for image in images] == [(480, 640, 3)] * 8
    assert all(np.array_equal(one, other) for one, other in zip(images, bench_images(), strict=True))
    assert not np.array_equal(images[0], images[1])


def test_a_random_model_is_ssd300_with_coco_s_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnet_det.cli import _load

    monkeypatch.setattr(module, "bench_images", lambda: [np.zeros((48, 64, 3), np.uint8)])
    configs = widths_to_measure([0.1], [0.25])
    rows = run_bench([], configs=configs, runtimes=["openvino", "torch"], threads=1, load=_load)
    assert [row.runtime for row in rows] == ["openvino", "torch"]
    for row in rows:
        assert isinstance(row, BenchmarkRow)
        assert (row.alpha, row.input_hw, row.threads) == (0.1, (75, 75), 1)  # 300 × 0.25
        stages = [stage.p50 for stage in (row.preprocess_ms, row.network_ms, row.postprocess_ms)]
        assert all(stage > 0 for stage in stages)
        assert row.network_ms.p50 <= row.network_ms.p95
        assert row.total_ms.p50 >= max(stages)
