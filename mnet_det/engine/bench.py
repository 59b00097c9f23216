"""What `mnet-det bench` measures: given models, and any config with random weights."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mnet_det.config import Config, load_config
from mnet_det.data.toy import draw_scene
from mnet_det.errors import ConfigError
from mnet_det.runtime import Predictor
from mnet_det.runtime.benchmark import BenchmarkRow, benchmark
from mnet_det.structures import Image

Load = Callable[..., Predictor]

CLASSES = 80
"""Of the models with random weights: COCO's, since predictors and postprocessing grow with the classes."""
SCENE_HW = (480, 640)
LIVE_SCORE = 0.5
"""The demo's threshold: measured is what a person watches, not what AP needs."""


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
) -> list[BenchmarkRow]:
    """Measure all models on all runtimes, interleaved, on drawn 640×480 scenes.

    Args:
        models: model files, or names of published weights.
        configs: networks to measure with random weights as well, by name (speed hardly depends on their values).
        runtimes: names that `load` knows.
        threads: how many to compute with; the runtimes' own choice unless given.
        load: `load(path, runtime=…, threads=…, score=…)` gives a predictor.

    Raises:
        ConfigError: nothing to measure, or a network that cannot be built.
    """
    if not models and not configs:
        raise ConfigError("nothing to measure: give a MODEL, a config file or --alpha")
    with _random_models(configs) as random_models:
        named: dict[str, str | Path] = {**{str(model): model for model in models}, **random_models}
        predictors = [
            (
                name,
                load(
                    _form_for(random_models[name], runtime) if name in random_models else model,
                    runtime=runtime,
                    threads=threads,
                    score=LIVE_SCORE,
                ),
            )
            for (name, model), runtime in itertools.product(named.items(), runtimes)
        ]
        return benchmark(predictors, bench_images())


def bench_images() -> list[Image]:
    """The scenes that every benchmark of ours looks at."""
    return [draw_scene(np.random.default_rng(index), image_hw=SCENE_HW).image for index in range(8)]


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
    from mnet_det.engine.checkpoint import Checkpoint, save_checkpoint
    from mnet_det.engine.export import write_onnx
    from mnet_det.engine.torch_backend import describe
    from mnet_det.models import build_detector

    class_names = tuple(f"class {number}" for number in range(CLASSES))
    category_ids = tuple(range(CLASSES))
    detector = build_detector(config.model, num_classes=CLASSES)
    save_checkpoint(path, Checkpoint(config, class_names, category_ids, detector.state_dict()))
    metadata = describe(config, name="random weights", class_names=class_names, category_ids=category_ids)
    write_onnx(detector, metadata, path.with_suffix(".onnx"))


def _form_for(path: Path, runtime: str) -> Path:
    """The export beside a random model's checkpoint, which torch itself takes."""
    return path if runtime == "torch" else path.with_suffix(".onnx")
