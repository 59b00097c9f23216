"""What `mnet-det bench` measures: given models, and any config with random weights."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mnet_det.config import Config, load_config
from mnet_det.data.toy import draw_scene
from mnet_det.errors import ConfigError
from mnet_det.images import list_images, read_image
from mnet_det.preprocess import plan_resize, resize_pixels
from mnet_det.runtime import Predictor
from mnet_det.runtime.backends import physical_cores
from mnet_det.runtime.benchmark import Benchmark, MatrixProduct, StageSummary, looking, row_of
from mnet_det.runtime.interleave import ROUNDS, interleave
from mnet_det.runtime.postprocess import VIEWING_SCORE
from mnet_det.structures import Image

Load = Callable[..., Predictor]

CLASSES = 80
"""Of the models with random weights: COCO's, since predictors and postprocessing grow with the classes."""
SCENE_HW = (480, 640)
LIVE_SCORE = VIEWING_SCORE
"""Measured is what a person watches, not what AP needs."""
MOST_IMAGES = 64
"""Of a folder."""
PRODUCT_SIZE = 1024
"""About as many multiply-adds as SSD300 at alpha 1, and 4 MB a matrix: more than the nearest caches hold."""


@dataclass(frozen=True)
class Frames:
    """What every model of a benchmark looks at.

    Attributes:
        images: RGB uint8 [H, W, 3].
        what: they are, in words.
        frame_hw: the size of all of them; None where each has its own.
    """

    images: Sequence[Image]
    what: str
    frame_hw: tuple[int, int] | None


@dataclass(frozen=True)
class Multiplication:
    """A product of two square float32 matrices that waits to be computed.

    Attributes:
        library: what computes it, with its version.
        threads: how many it is told to compute with; None where the library chooses.
        run: computes it once.
    """

    library: str
    threads: int | None
    run: Callable[[], object]


def widths_to_measure(alphas: Sequence[float], rhos: Sequence[float]) -> dict[str, Config]:
    """SSD300 at each width and resolution, by name."""
    return {
        f"ssd300 alpha {alpha:g} rho {rho:g} (random weights)": load_config(
            None, [f"model.alpha={alpha}", f"model.rho={rho}"]
        )
        for alpha, rho in itertools.product(alphas, rhos)
    }


def recipes_to_measure(
    recipes: Sequence[Path], *, backbones: Sequence[str] = (), settings: Sequence[str] = ()
) -> dict[str, Config]:
    """Each config file, on each of the backbones or on its own, by name.

    Raises:
        ConfigError: no such file, or a setting that does not fit.
    """
    stems = [recipe.stem for recipe in recipes]
    names = [str(recipe) if stems.count(recipe.stem) > 1 else recipe.stem for recipe in recipes]
    if not backbones:
        pairs = zip(names, recipes, strict=True)
        return {f"{name} (random weights)": load_config(recipe, settings) for name, recipe in pairs}
    return {
        f"{name} on {backbone} (random weights)": load_config(recipe, [*settings, f"model.backbone={backbone}"])
        for (name, recipe), backbone in itertools.product(zip(names, recipes, strict=True), backbones)
    }


def run_bench(
    models: Sequence[str | Path],
    *,
    configs: Mapping[str, Config],
    runtimes: Sequence[str],
    threads: int | None,
    load: Load,
    frames: Frames | None = None,
    score: float = LIVE_SCORE,
    rounds: int = ROUNDS,
) -> Benchmark:
    """Measure all models on all runtimes and the machine's own limit, all of them in turns.

    Args:
        models: model files, or names of published weights.
        configs: networks to measure with random weights as well, by name (speed hardly depends on their values).
        runtimes: names that `load` knows.
        threads: how many to compute with; the runtimes' own choice unless given.
        load: `load(path, runtime=…, threads=…, score=…)` gives a predictor.
        frames: what to look at; drawn 640×480 scenes unless given.
        score: the least probability of a detection.
        rounds: see `interleave`.

    Raises:
        ConfigError: nothing to measure, or a network that cannot be built.
    """
    if not models and not configs:
        raise ConfigError("nothing to measure: give a MODEL, a config file or --alpha")
    if not runtimes:
        raise ConfigError("nothing to measure in: name a runtime, such as --runtime openvino,torch")
    frames = frames or drawn_frames()
    with _random_models(configs) as random_models:
        named: dict[str, str | Path] = {**{str(model): model for model in models}, **random_models}
        product = multiplication(threads=threads)  # before the models: torch has one number of threads for all it does
        predictors = [
            (
                name,
                load(
                    _form_for(random_models[name], runtime) if name in random_models else model,
                    runtime=runtime,
                    threads=threads,
                    score=score,
                ),
            )
            for (name, model), runtime in itertools.product(named.items(), runtimes)
        ]
        contestants: list[Callable[[int], Any]] = [looking(predictor, frames.images) for _, predictor in predictors]
        *looks, product_ms = interleave([*contestants, _timing(product.run)], rounds=rounds)
    return Benchmark(
        rows=[row_of(name, predictor, taken) for (name, predictor), taken in zip(predictors, looks, strict=True)],
        product=MatrixProduct(product.library, PRODUCT_SIZE, product.threads, StageSummary.of(product_ms)),
        images=frames.what,
        frame_hw=frames.frame_hw,
        score=score,
    )


def bench_images(frame_hw: tuple[int, int] = SCENE_HW) -> list[Image]:
    """The scenes that every benchmark of ours looks at unless told otherwise."""
    return [draw_scene(np.random.default_rng(index), image_hw=frame_hw).image for index in range(8)]


def drawn_frames(frame_hw: tuple[int, int] = SCENE_HW) -> Frames:
    """`bench_images` with what is said of them."""
    images = bench_images(frame_hw)
    return Frames(images, f"{len(images)} drawn scenes", frame_hw)


def read_frames(folder: Path, *, frame_hw: tuple[int, int] | None = None) -> Frames:
    """The first images of a folder, stretched to one size where that is given.

    Raises:
        DataError: no such folder, no image in it, or one that cannot be read.
    """
    images = [read_image(path) for path in list_images(folder)[:MOST_IMAGES]]
    if frame_hw is not None:
        images = [
            resize_pixels(image, plan_resize((image.shape[0], image.shape[1]), frame_hw, "stretch")) for image in images
        ]
    return Frames(images, f"{len(images)} images of {folder}", frame_hw)


def multiplication(*, threads: int | None = None) -> Multiplication:
    """The product by torch where that is installed, else by numpy.

    torch can be told a number of threads, numpy's BLAS cannot once it is loaded. All that torch computes in this
    process uses as many threads from then on.

    Args:
        threads: how many to compute with; physical cores unless given.
    """
    try:
        import torch
    except ImportError:
        return _numpy_multiplication()
    threads = threads or physical_cores()
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, PRODUCT_SIZE, PRODUCT_SIZE), generator=generator)
    out = torch.empty_like(a)
    kernels = " (MKL)" if torch.backends.mkl.is_available() else ""
    return Multiplication(f"torch {torch.__version__}{kernels}", threads, lambda: torch.mm(a, b, out=out))


def _numpy_multiplication() -> Multiplication:
    a, b = np.random.default_rng(0).standard_normal((2, PRODUCT_SIZE, PRODUCT_SIZE), dtype=np.float32)
    out = np.empty_like(a)
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    return Multiplication(f"numpy {np.__version__} ({blas}, its own threads)", None, lambda: np.matmul(a, b, out=out))


def _timing(run: Callable[[], object]) -> Callable[[int], float]:
    """A contestant for `interleave` that says how many milliseconds a run took."""

    def timed(call: int) -> float:
        started = time.perf_counter()
        run()
        return (time.perf_counter() - started) * 1000

    return timed


@contextmanager
def _random_models(configs: Mapping[str, Config]) -> Iterator[dict[str, Path]]:
    """A checkpoint of each config, with its export beside it, until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for number, (name, config) in enumerate(configs.items()):
            made[name] = Path(folder) / f"{number}.pt"
            _write_random_model(config, made[name])
        yield made


def _write_random_model(config: Config, path: Path) -> None:
    import torch

    from mnet_det.engine.checkpoint import Checkpoint, save_checkpoint
    from mnet_det.engine.export import write_onnx
    from mnet_det.engine.torch_backend import describe
    from mnet_det.models import build_detector

    class_names = tuple(f"class {number}" for number in range(CLASSES))
    category_ids = tuple(range(CLASSES))
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the same weights in each run, whose compiled form is in the cache then
        detector = build_detector(config.model, num_classes=CLASSES)
    save_checkpoint(path, Checkpoint(config, class_names, category_ids, detector.state_dict()))
    metadata = describe(config, name="random weights", class_names=class_names, category_ids=category_ids)
    write_onnx(detector, metadata, path.with_suffix(".onnx"))


def _form_for(path: Path, runtime: str) -> Path:
    """The export beside a random model's checkpoint, which torch itself takes."""
    return path if runtime == "torch" else path.with_suffix(".onnx")
