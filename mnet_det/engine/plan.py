"""The plan of a sweep: which networks are trained, with which seeds, from which weights; what tells runs apart."""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnet_det.catalogue import imagenet_weights
from mnet_det.config import Config, ModelConfig, Split, load_config
from mnet_det.data import open_data
from mnet_det.data.coco import CocoData
from mnet_det.engine.claim import turn
from mnet_det.engine.start import PRETRAINED
from mnet_det.errors import ConfigError, DataError, MnetDetError
from mnet_det.files import sha256_of, write_json
from mnet_det.models import build_detector
from mnet_det.models.cost import Cost, count_cost
from mnet_det.sweep_folder import PLAN_FILE

FORMAT = 1
KEY_DIGITS = 6
"""Of a run's key in its folder's name."""
SWEPT = ("head", "backbone", "alpha", "rho")
"""Settings of `model` that a sweep varies."""
PLACES = ("root", "train_images", "train_annotations", "val_images", "val_annotations")
"""Settings of `data` that say where it is; what counts is its content."""
OPTIONS = {"alphas": "--alpha", "rhos": "--rho", "seeds": "--seeds", "heads": "--head", "backbones": "--backbone"}
"""Which words of the command line give an axis."""
MOST_TIMES = 10
"""Largest alpha and rho: who types 50 means 50 %, and so large an input takes all memory while it is timed."""
EVEN_SIDE = 32
"""The stride of a backbone's last map. Cells share an input evenly, while convolutions step by the stride: where a side
is no multiple, the two drift apart across the image."""
OF_THE_MACHINE = {"data": ("workers", "cache"), "train": ("device", "save_minutes")}
"""Settings that a result does not depend on, or no more than on the machine."""


@dataclass(frozen=True)
class Axes:
    """What is swept; None leaves a setting as the config has it."""

    alphas: Sequence[float] | None = None
    rhos: Sequence[float] | None = None
    seeds: Sequence[int] | None = None
    heads: Sequence[str] | None = None
    backbones: Sequence[str] | None = None


@dataclass(frozen=True)
class Point:
    """A network of the study."""

    head: str
    backbone: str
    alpha: float
    rho: float

    @classmethod
    def of(cls, model: ModelConfig) -> Point:
        """The point that a config's network is."""
        return cls(model.head, model.backbone, model.alpha, model.rho)

    def __str__(self) -> str:
        return f"{self.head} on {self.backbone}, alpha {self.alpha:g}, rho {self.rho:g}"


@dataclass(frozen=True)
class PlannedRun:
    """One training of a point.

    Attributes:
        config: all settings, those of the machine included.
        key: tells it from every run that may come to another result.
        mult_adds, params: of the network for one image; None where it cannot be built.
        fault: why it cannot be built, or None.
    """

    config: Config
    key: str
    mult_adds: int | None
    params: int | None
    fault: str | None = None

    @property
    def point(self) -> Point:
        return Point.of(self.config.model)

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def input_hw(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return self.config.model.input_hw

    @property
    def start(self) -> str | None:
        """The weights it begins from; None: random ones."""
        return None if self.config.model.init is None else str(self.config.model.init)

    @property
    def name(self) -> str:
        """Of its folder."""
        head, backbone = self.point.head, self.point.backbone.replace(":", "-").replace("/", "-")
        network = f"{head}-{backbone}-alpha{self.point.alpha:g}-rho{self.point.rho:g}"
        return f"{network}-seed{self.seed}-{self.key[:KEY_DIGITS]}"

    def __str__(self) -> str:
        return f"{self.point}, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Its entry in the plan's file."""
        point = self.point
        return {
            "name": self.name,
            "key": self.key,
            "point": {"head": point.head, "backbone": point.backbone, "alpha": point.alpha, "rho": point.rho},
            "seed": self.seed,
            "input_hw": list(self.input_hw),
            "start": self.start,
            "mult_adds": self.mult_adds,
            "params": self.params,
            "fault": self.fault,
        }


@dataclass(frozen=True)
class Plan:
    """A sweep before it is run.

    Attributes:
        title: the config file's name.
        words: the settings given beside it.
        base: the config of which the runs are variants.
        base_key: the same for all sweeps whose runs may stand in one table.
        runs: in the order of training: seed after seed, so that an unfinished sweep has every point once first.
        training_images, validation_images: how many there are.
        set_aside: the weights that the config file names, if the runs start from others.
    """

    title: str
    words: tuple[str, ...]
    base: Config
    base_key: str
    runs: tuple[PlannedRun, ...]
    class_names: tuple[str, ...]
    training_images: int
    validation_images: int
    set_aside: str | None = None

    def notes(self) -> list[str]:
        """What its user may not have meant, a line each."""
        notes = []
        if self.set_aside is not None:
            notes.append(
                f"{self.title}: its model.init={self.set_aside} is of one width, and set aside for ImageNet weights of "
                "each; model.init=… on the command line holds for all"
            )
        sizes_hw = dict.fromkeys(run.input_hw for run in self.runs if run.fault is None)
        uneven = [size_hw for size_hw in sizes_hw if any(side % EVEN_SIDE for side in size_hw)]
        if uneven:
            sizes = ", ".join(f"{width}x{height}" for height, width in uneven)
            near = ", ".join(f"{width}x{height}" for height, width in dict.fromkeys(map(_nearest_even, uneven)))
            notes.append(
                f"inputs of {sizes}: no multiples of {EVEN_SIDE}, so that anchors and the network's steps drift apart, "
                f"which may cost AP (README, what width and resolution cost); near ones: {near}"
            )
        return notes

    def to_json(self) -> dict[str, Any]:
        """The content of the plan's file."""
        data = self.base.data
        return {
            "format": FORMAT,
            "base_key": self.base_key,
            "title": self.title,
            "words": list(self.words),
            "base": self.base.model_dump(mode="json"),
            "data": {
                "train": str(data.annotations("train")),
                "val": str(data.annotations("val")),
                "training_images": self.training_images,
                "validation_images": self.validation_images,
                "class_names": list(self.class_names),
            },
            "runs": [run.to_json() for run in self.runs],
        }


def plan_sweep(path: Path, words: Sequence[str], axes: Axes) -> Plan:
    """Lay out every combination of the axes.

    Each run starts from the ImageNet weights that the catalogue has for its backbone and width, else from random ones;
    `model.init` among the words holds for all of them instead. The config file's own is of one width, and is not used.

    Args:
        path: the recipe.
        words: settings that hold for every run.
        axes: what differs.

    Raises:
        ConfigError: a setting that does not exist, one that is swept too, an axis without a value, or no combination
            that can be built.
        DataError: the data cannot be used.
    """
    _require_values(axes)
    _refuse_swept(words, axes)
    base = load_config(path, words)
    data = open_data(base.data, "train")
    val_data = open_data(base.data, "val", joined_to=data)
    prints: dict[Split, str] = {"train": fingerprint(data), "val": fingerprint(val_data)}
    given = any(word.startswith("model.init=") for word in words)
    runs: list[PlannedRun] = []
    costs: dict[ModelConfig, Cost] = {}  # each network is built once, however many seeds it has
    for words_of_run in _combinations(axes):
        all_words = [*words, *words_of_run]
        runs.append(_planned(path, all_words, base, given, prints, classes=len(data.class_names), costs=costs))
    if all(run.fault for run in runs):
        raise ConfigError(f"none of these networks can be built; the first: {runs[0].fault}")
    _require_distinct(runs)
    return Plan(
        title=path.name,
        words=tuple(words),
        base=base,
        base_key=_key(base, prints, without=(*SWEPT, *(() if given else ("init",))), seed=False),
        runs=tuple(runs),
        class_names=data.class_names,
        training_images=len(data),
        validation_images=len(val_data),
        set_aside=None if given else _set_aside(base.model),
    )


def _set_aside(model: ModelConfig) -> str | None:
    """The weights that a config file names for one width; timm's own are those of any."""
    return None if model.init is None or str(model.init) == PRETRAINED else str(model.init)


def _require_values(axes: Axes) -> None:
    for name, values in vars(axes).items():
        if values is not None and not values:
            raise ConfigError(f"{OPTIONS[name]}: no value is given; expected at least one, with commas between")
    for name, numbers in (("alphas", axes.alphas), ("rhos", axes.rhos)):
        wrong = [number for number in numbers or () if not 0 < number <= MOST_TIMES]  # NaN is not
        if wrong:
            raise ConfigError(f"{OPTIONS[name]} {wrong[0]:g}: expected numbers above 0, at most {MOST_TIMES}")


def _nearest_even(input_hw: tuple[int, int]) -> tuple[int, int]:
    height, width = (max(1, round(side / EVEN_SIDE)) * EVEN_SIDE for side in input_hw)
    return height, width


def _refuse_swept(words: Sequence[str], axes: Axes) -> None:
    swept = {
        "model.alpha": axes.alphas,
        "model.rho": axes.rhos,
        "model.head": axes.heads,
        "model.backbone": axes.backbones,
        "train.seed": axes.seeds,
    }
    for word in words:
        setting = word.partition("=")[0]
        if swept.get(setting) is not None:
            option = f"--{setting.partition('.')[2]}{'s' if setting == 'train.seed' else ''}"
            raise ConfigError(f"{word}: {option} varies that; leave one of them out")


def _combinations(axes: Axes) -> list[list[str]]:
    """The words of each run; seeds change last."""
    settings = {
        "train.seed": axes.seeds,
        "model.head": axes.heads,
        "model.backbone": axes.backbones,
        "model.rho": axes.rhos,
        "model.alpha": axes.alphas,
    }
    varied = {setting: values for setting, values in settings.items() if values is not None}
    return [
        [f"{setting}={value}" for setting, value in zip(varied, values, strict=True)]
        for values in itertools.product(*varied.values())
    ]


def _planned(
    path: Path,
    words: Sequence[str],
    base: Config,
    given: bool,
    prints: Mapping[Split, str],
    *,
    classes: int,
    costs: dict[ModelConfig, Cost],
) -> PlannedRun:
    """One run; a network that cannot be built is no reason not to train the others.

    `costs` are those of the networks that were counted already; that of this one comes to them.
    """
    fault, mult_adds, params = None, None, None
    try:
        config = load_config(path, words)
        if not given:
            config = _with_init(config, starting_weights(config.model))
        if config.model not in costs:
            costs[config.model] = _cost(config.model, classes=classes)
        mult_adds, params = costs[config.model].mult_adds, costs[config.model].params
    except MnetDetError as error:
        fault = str(error)
        config = _forced(base, words)
    return PlannedRun(config, _key(config, prints), mult_adds, params, fault)


def _cost(model: ModelConfig, *, classes: int) -> Cost:
    """What a network costs.

    Raises:
        ConfigError: it cannot be built.
    """
    try:
        return count_cost(lambda: build_detector(model, num_classes=classes), input_hw=model.input_hw)
    except (RuntimeError, MemoryError) as error:  # a width that no memory holds, say
        raise ConfigError(f"{Point.of(model)}: {str(error).splitlines()[0] if str(error) else 'no memory'}") from None


def _forced(base: Config, words: Sequence[str]) -> Config:
    """The base with a run's axes, unchecked: it is for showing alone what could not be built."""
    kinds: dict[str, Callable[[str], Any]] = {"alpha": float, "rho": float, "seed": int, "head": str, "backbone": str}
    settings = {word.partition("=")[0].partition(".")[2]: word.partition("=")[2] for word in words}
    axes = {name: kinds[name](text) for name, text in settings.items() if name in kinds}
    model = {name: value for name, value in axes.items() if name in SWEPT}
    seed = {"seed": axes["seed"]} if "seed" in axes else {}
    return base.model_copy(
        update={"model": base.model.model_copy(update=model), "train": base.train.model_copy(update=seed)}
    )


def starting_weights(model: ModelConfig) -> str | None:
    """The published ImageNet weights for a network; None where there are none of its backbone, width and layers."""
    if model.backbone.startswith("timm:"):
        return PRETRAINED if str(model.init) == PRETRAINED else None
    if not model.separable or model.shallow or model.reduced_tail:
        return None
    entry = imagenet_weights(model.backbone, alpha=model.alpha)
    return None if entry is None else entry.name


def _with_init(config: Config, init: str | None) -> Config:
    path = None if init is None else Path(init)
    return config.model_copy(update={"model": config.model.model_copy(update={"init": path})})


def fingerprint(data: CocoData) -> str:
    """The sha256 of an annotation file and of the names and sizes of its images.

    Raises:
        DataError: an image cannot be looked at.
    """
    digest = hashlib.sha256(sha256_of(data.source).encode())
    for index in range(len(data)):
        try:
            size = data.path(index).stat().st_size
        except OSError as error:
            raise DataError(f"{data.path(index)}: cannot be read ({error.strerror or error})") from None
        digest.update(f"{data.file_name(index)} {size}\n".encode())
    return digest.hexdigest()


def _key(config: Config, prints: Mapping[Split, str], *, without: Sequence[str] = (), seed: bool = True) -> str:
    """The sha256 of all that a result depends on: settings, data, and weights that are files of the user's."""
    raw = config.model_dump(mode="json")
    for section, names in {**OF_THE_MACHINE, "model": without}.items():
        raw[section] = {name: value for name, value in raw[section].items() if name not in names}
    raw["data"] = {name: value for name, value in raw["data"].items() if name not in (*PLACES, *OF_THE_MACHINE["data"])}
    if not seed:
        del raw["train"]["seed"]
    files = {
        name: sha256_of(path)
        for name, path in (("init", config.model.init), ("teacher", config.train.teacher))
        if path is not None and path.is_file()
    }
    text = json.dumps({"config": raw, "data": dict(prints), "files": files}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _require_distinct(runs: Sequence[PlannedRun]) -> None:
    seen: dict[str, PlannedRun] = {}
    for run in runs:
        if run.key in seen:
            raise ConfigError(f"{run}: stands there twice; give every alpha, rho, seed, head and backbone once")
        seen[run.key] = run


def write_plan(folder: Path, plan: Plan, *, command: Sequence[str]) -> list[str]:
    """Write the plan's file; runs of an earlier plan stay in it if theirs and these may stand in one table.

    Returns:
        Names of the runs of an earlier plan that are not in this file any more; their folders stay as they are.

    Raises:
        DataError: what is there is no plan.
        MnetDetError: the file cannot be written.
    """
    with turn(folder / ".plan.lock"):  # two commands may extend one sweep at the same time
        before = read_plan(folder) if (folder / PLAN_FILE).exists() else None
        dropped = runs_left_out(folder, plan)
        content = plan.to_json() | {"command": shlex.join(command)}
        if before is not None and before["base_key"] == plan.base_key:
            now = {run["name"] for run in content["runs"]}
            others = [run for run in before["runs"] if run["name"] not in now]
            content["runs"] = sorted(content["runs"] + others, key=_order)
            content["command"] = _chained(before["command"], content["command"])
        write_json(folder / PLAN_FILE, content)
    return dropped


def runs_left_out(folder: Path, plan: Plan) -> list[str]:
    """Names of the runs of the plan in this folder that may not stand in one table with those of the new one.

    Raises:
        DataError: what is there is no plan.
    """
    if not (folder / PLAN_FILE).exists():
        return []
    before = read_plan(folder)
    if before["base_key"] == plan.base_key:
        return []
    now = {run.name for run in plan.runs}
    return [run["name"] for run in before["runs"] if run["name"] not in now]


def _chained(before: str, now: str) -> str:
    """All commands that made a sweep, each once, as a line that a shell would run."""
    commands = [command for command in before.split(" && ") if command != now]
    return " && ".join([*commands, now])


def read_plan(folder: Path) -> dict[str, Any]:
    """The content of a plan's file.

    Raises:
        DataError: it is missing, damaged or of another version.
    """
    path = folder / PLAN_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = content["format"] == FORMAT and isinstance(content["runs"], list) and content["base_key"]
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise DataError(f"{path}: not the plan of a sweep of this version; choose another --out")
    return content


def _order(run: Mapping[str, Any]) -> tuple[Any, ...]:
    point = run["point"]
    return (run["seed"], point["head"], point["backbone"], -point["rho"], -point["alpha"])
