"""What `bench` measures: given models as they are, and random ones of any width on every runtime."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mnet_det.engine import bench as module
from mnet_det.engine.bench import (
    Frames,
    Multiplication,
    bench_images,
    multiplication,
    read_frames,
    recipes_to_measure,
    run_bench,
    widths_to_measure,
)
from mnet_det.errors import ConfigError, DataError
from mnet_det.images import write_image
from mnet_det.runtime.backends import physical_cores
from mnet_det.runtime.benchmark import BenchmarkRow
from mnet_det.runtime.interleave import interleave


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
    """What is measured of each model is replaced by its name."""
    monkeypatch.setattr(module, "multiplication", lambda *, threads: Multiplication("a library", threads, int))
    monkeypatch.setattr(module, "looking", lambda predictor, images: lambda call: len(images))
    monkeypatch.setattr(module, "row_of", lambda name, predictor, looks: (name, set(looks)))
    monkeypatch.setattr(module, "interleave", functools.partial(interleave, rest_s=0))
    return Loads()


def test_every_model_is_measured_on_every_runtime(loads: Loads, tmp_path: Path) -> None:
    models = [tmp_path / "a.onnx", tmp_path / "b.pt"]
    measured = run_bench(models, configs={}, runtimes=["openvino", "torch"], threads=3, load=loads)
    assert measured.rows == [(str(path), {8}) for path in models for _ in range(2)]
    assert (measured.product.library, measured.product.threads) == ("a library", 3)
    assert (measured.images, measured.frame_hw, measured.score) == ("8 drawn scenes", (480, 640), 0.5)
    assert loads.asked == [(path.name, runtime, 3, 0.5) for path in models for runtime in ("openvino", "torch")]


def test_a_given_checkpoint_is_measured_itself(loads: Loads, tmp_path: Path) -> None:
    """An .onnx file beside it was measured in its place, though it may be an older model's export."""
    (tmp_path / "best.onnx").touch()
    run_bench([tmp_path / "best.pt"], configs={}, runtimes=["openvino"], threads=None, load=loads)
    assert loads.asked == [("best.pt", "openvino", None, 0.5)]


def test_no_runtime_is_refused(loads: Loads, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to measure in: name a runtime"):
        run_bench([tmp_path / "a.onnx"], configs={}, runtimes=[], threads=None, load=loads)


def test_frames_score_and_rounds_can_be_chosen(loads: Loads, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One round: each is called five times to warm up and five times more."""
    calls: list[int] = []
    monkeypatch.setattr(module, "looking", lambda predictor, images: calls.append)
    frames = Frames([np.zeros((8, 8, 3), np.uint8)], "1 image of mine", None)
    words = {"configs": {}, "runtimes": ["openvino"], "threads": None, "load": loads}
    measured = run_bench([tmp_path / "a.onnx"], frames=frames, score=0.3, rounds=1, **words)  # type: ignore[arg-type]
    assert calls == [0, 0, 0, 1, 2, 3, 3, 3, 4, 5]
    assert loads.asked[0][3] == 0.3
    assert (measured.images, measured.frame_hw, measured.score) == ("1 image of mine", None, 0.3)


def test_random_models_come_in_the_form_that_the_runtime_takes(loads: Loads, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(config: Any, path: Path) -> None:
        path.touch()
        path.with_suffix(".onnx").touch()

    monkeypatch.setattr(module, "_write_random_model", write)
    configs = widths_to_measure([0.5, 0.25], [1, 0.64])
    measured = run_bench([], configs=configs, runtimes=["auto", "torch"], threads=None, load=loads)
    names = [name for name, _ in measured.rows]  # type: ignore[misc, has-type]
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
    assert bench_images((90, 160))[0].shape == (90, 160, 3)


def test_images_of_a_folder_keep_their_sizes_or_are_brought_to_one(tmp_path: Path) -> None:
    for name, hw in (("a", (20, 40)), ("b", (30, 30))):
        write_image(tmp_path / f"{name}.png", np.full((*hw, 3), 7, np.uint8))
    own, one_size = read_frames(tmp_path), read_frames(tmp_path, frame_hw=(10, 16))
    assert ([image.shape[:2] for image in own.images], own.frame_hw) == ([(20, 40), (30, 30)], None)
    assert [image.shape[:2] for image in one_size.images] == [(10, 16), (10, 16)] == [one_size.frame_hw] * 2
    assert all((image == 7).all() for image in one_size.images)
    assert own.what == f"2 images of {tmp_path}"


def test_of_a_large_folder_the_first_images_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        write_image(tmp_path / f"{number}.png", np.full((4, 4, 3), number, np.uint8))
    monkeypatch.setattr(module, "MOST_IMAGES", 3)
    assert [image[0, 0, 0] for image in read_frames(tmp_path).images] == [0, 1, 2]


def test_a_folder_without_images_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image in it"):
        read_frames(tmp_path)


@pytest.fixture
def _same_threads_after() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_same_threads_after")
@pytest.mark.parametrize(("given", "expected"), [(1, 1), (None, physical_cores())], ids=["given", "not given"])
def test_the_matrix_product_is_torch_s_with_as_many_threads_as_asked(given: int | None, expected: int) -> None:
    product = multiplication(threads=given)
    assert product.threads == torch.get_num_threads() == expected
    assert product.library.startswith(f"torch {torch.__version__}")
    out = product.run()
    assert isinstance(out, torch.Tensor)
    assert (out.shape, out.dtype) == ((1024, 1024), torch.float32)


def test_without_torch_the_matrix_product_is_numpy_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails as if it were not there
    product = multiplication(threads=1)
    assert product.threads is None
    assert product.library.startswith(f"numpy {np.__version__} (")
    assert product.library.endswith(", its own threads)")
    out = product.run()
    assert isinstance(out, np.ndarray)
    assert (out.shape, out.dtype) == ((1024, 1024), np.float32)


@pytest.mark.slow
def test_a_random_model_is_ssd300_with_coco_s_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnet_det.cli import _load

    monkeypatch.setattr(module, "bench_images", lambda frame_hw: [np.zeros((48, 64, 3), np.uint8)])
    configs = widths_to_measure([0.1], [0.25])
    measured = run_bench([], configs=configs, runtimes=["openvino", "torch"], threads=1, load=_load, rounds=1)
    assert measured.product.library.startswith("torch ")
    assert [row.runtime for row in measured.rows] == ["openvino", "torch"]
    for row in measured.rows:
        assert isinstance(row, BenchmarkRow)
        assert (row.alpha, row.input_hw, row.threads) == (0.1, (75, 75), 1)  # 300 × 0.25
        stages = [stage.p50 for stage in (row.preprocess_ms, row.network_ms, row.postprocess_ms)]
        assert all(stage > 0 for stage in stages)
        assert row.network_ms.p50 <= row.network_ms.p95
        assert row.total_ms.p50 >= max(stages)
