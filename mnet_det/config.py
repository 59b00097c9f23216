"""Settings: pydantic models (frozen, no unknown key), YAML files, `key=value` overrides with "did you mean".

A config becomes constructor arguments in one builder; it never enters a class.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from mnet_det.errors import ConfigError


def _number(value: Any) -> Any:
    """Refuse true and false where a number is meant; pydantic would read them as 1 and 0."""
    if isinstance(value, bool):
        raise ValueError("a number is expected, not true or false")
    return value


def _off(value: Any) -> Any:
    """Take a bare `off` for the word; YAML reads it as false."""
    return "off" if value is False else value


Float = Annotated[float, BeforeValidator(_number)]
Int = Annotated[int, BeforeValidator(_number)]
PositiveFloat = Annotated[Float, Field(gt=0, allow_inf_nan=False)]
NotNegativeFloat = Annotated[Float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[Float, Field(ge=0, le=1)]
PositiveInt = Annotated[Int, Field(ge=1)]
Proposals = Annotated[Int, Field(ge=1, le=1000)]  # as many of a map enter suppression
NotNegativeInt = Annotated[Int, Field(ge=0)]


def _known_backbone(value: str) -> str:
    """Refuse a backbone that nobody has heard of; whether timm has a name, only timm can say."""
    if value in BACKBONES or (value.startswith("timm:") and value != "timm:"):
        return value
    near = difflib.get_close_matches(value, BACKBONES, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"expected timm:NAME or one of {', '.join(BACKBONES)}"
    raise ValueError(f"no such backbone; {hint}")


BACKBONES = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "vgg16",
    "googlenet",
    "inception_v2",
    "inception_v3",
    "squeezenet",
)
"""Beside these, `timm:NAME` is any network of timm that gives its feature maps."""
ONE_FAMILY = {"separable": "mobilenet_v1", "shallow": "mobilenet_v1", "reduced_tail": "mobilenet_v3"}
"""Settings of `model` that only backbones of this name have."""
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
"""A path in which `~` is the home folder; no shell expands it inside `data.root=~/coco`."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Section):
    """The network. `alpha` scales its channels, `rho` its input size and never its weights."""

    head: Literal["ssd", "ssdlite", "faster_rcnn"] = "ssd"
    backbone: Annotated[str, AfterValidator(_known_backbone)] = "mobilenet_v1"
    alpha: PositiveFloat = 1.0
    rho: PositiveFloat = 1.0
    base_hw: tuple[PositiveInt, PositiveInt] = (300, 300)
    resize: Literal["stretch", "letterbox"] = "stretch"
    init: UserPath | None = Field(default=None, description="published name, weights file, or pretrained (timm)")
    taps: tuple[Int | str, ...] | None = Field(default=None, description="maps of the backbone; its own choice if null")
    padding: Literal["symmetric", "same"] = "symmetric"
    activation: Literal["relu6", "relu"] = "relu6"
    pixel_mean: tuple[Float, Float, Float] = (127.5, 127.5, 127.5)  # RGB, subtracted from 0…255
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (127.5, 127.5, 127.5)  # RGB, divided by
    separable: bool = True
    shallow: bool = False
    reduced_tail: bool = False  # of MobileNetV3: its last layers at half their width, as its detectors have them
    bn_eps: PositiveFloat = 1e-3
    bn_momentum: PositiveFloat = 0.03
    box_weight: PositiveFloat = 1.0
    # SSD and SSDLite
    anchor_scales: tuple[Fraction, Fraction] = (0.2, 0.95)
    reduce_boxes_in_lowest_layer: bool = True  # three anchors a cell on the first map and not six, as TensorFlow has it
    predictor_kernel: Literal[1, 3] = 1
    class_loss: Literal["softmax", "focal", "quality_focal"] = "softmax"
    box_loss: Literal["smooth_l1", "giou"] = "smooth_l1"
    # Faster R-CNN
    fpn: bool = False
    anchor_sizes: tuple[PositiveFloat, ...] = Field(default=(32, 64, 128, 256), min_length=1, description="pixels")
    proposals: Proposals = 300
    train_proposals: Proposals = 1000
    roi_samples: PositiveInt = 64
    shared_boxes: bool = False

    @property
    def input_hw(self) -> tuple[int, int]:
        """Height and width of the network's input: base size × rho, to the nearest integer (halves go up)."""
        height, width = (max(1, int(side * self.rho + 0.5)) for side in self.base_hw)
        return height, width

    @model_validator(mode="after")
    def _input_is_large_enough(self) -> ModelConfig:
        if min(self.input_hw) < 32:
            raise ValueError(
                f"the input would be {self.input_hw[0]}x{self.input_hw[1]} pixels (base_hw × rho), less than one "
                "cell of the stride-32 map; at least 32 a side are needed"
            )
        if not self.anchor_scales[0] < self.anchor_scales[1]:
            raise ValueError(f"anchor_scales must rise, got {list(self.anchor_scales)}")
        return self

    @model_validator(mode="after")
    def _settings_belong_to_the_head(self) -> ModelConfig:
        for setting, backbones in ONE_FAMILY.items():
            default = type(self).model_fields[setting].default
            if getattr(self, setting) != default and not self.backbone.startswith(backbones):
                raise ValueError(f"{setting} is for {backbones}, {self.backbone} has no such choice")
        if self.head == "faster_rcnn":
            if (self.class_loss, self.box_loss) != ("softmax", "smooth_l1"):
                raise ValueError(
                    "faster_rcnn is trained with class_loss softmax and box_loss smooth_l1, "
                    f"got {self.class_loss} and {self.box_loss}; set them so"
                )
        elif self.fpn:
            raise ValueError(f"fpn goes with head faster_rcnn, not with {self.head}; set model.fpn=false")
        return self


Split = Literal["train", "val"]


class DataConfig(_Section):
    """Where the images are. `root` is a folder laid out like COCO; the four paths override its parts."""

    root: UserPath | None = None
    train_images: UserPath | None = None
    train_annotations: UserPath | None = None
    val_images: UserPath | None = None
    val_annotations: UserPath | None = None
    augment: Literal["none", "flip", "ssd", "ssdlite"] = "ssd"
    workers: NotNegativeInt = 2
    classes: tuple[str, ...] | None = Field(default=None, min_length=1, description="a subset by name")
    cache: bool | UserPath = Field(default=False, description="resized training images: true, or a folder for them")
    mosaic: Fraction = Field(default=0.0, description="probability that four images make one")
    mixup: Fraction = Field(default=0.0, description="probability that another image shines through")
    plain_epochs: NotNegativeInt = Field(default=10, description="at the end, without mosaic and mixup")

    def images(self, split: Split) -> Path:
        """Folder of a split's images.

        Raises:
            ConfigError: neither `root` nor the split's own setting is given.
        """
        return self._path(split, "images", f"{split}2017")

    def annotations(self, split: Split) -> Path:
        """Annotation file of a split.

        Raises:
            ConfigError: neither `root` nor the split's own setting is given.
        """
        return self._path(split, "annotations", f"annotations/instances_{split}2017.json")

    def _path(self, split: str, part: str, inside_root: str) -> Path:
        path: Path | None = getattr(self, f"{split}_{part}")
        if path is not None:
            return path
        if self.root is None:
            raise ConfigError(
                f"no {split} {part}: set data.root=FOLDER (laid out like COCO: annotations/instances_"
                f"{{train,val}}2017.json, train2017/, val2017/) or data.{split}_{part}=PATH"
            )
        return self.root / inside_root


class TrainConfig(_Section):
    """How to train.

    `batch_size` counts the images of one optimiser step, over all processes and all `accumulate` parts. `lr` is for
    batches of `lr_batch_size`; where `batch_size` is another, it is scaled (`engine.schedule.scaled_lr`), unless
    `lr_batch_size` is null. `ema` is the decay, 0 for none.
    """

    epochs: PositiveInt = 120
    batch_size: Annotated[Int, Field(ge=2)] = 64  # batch norm needs two values on a 1×1 map
    accumulate: PositiveInt = Field(default=1, description="parts of a batch that go through the network in turn")
    lr: PositiveFloat = 0.05
    lr_batch_size: PositiveInt | None = Field(default=None, description="the batch that lr is for; null: as it stands")
    backbone_lr_factor: PositiveFloat = Field(default=1.0, description="the backbone's share of lr")
    freeze_blocks: NotNegativeInt = Field(default=0, description="first blocks of the backbone that do not learn")
    frozen_bn: bool = Field(default=False, description="batch norm stays as it starts, statistics, scale and shift")
    sync_bn: bool = Field(default=False, description="batch norm over the images of all GPUs")
    optimizer: Literal["sgd", "rmsprop", "adamw"] = "sgd"
    momentum: Fraction = 0.9
    weight_decay: NotNegativeFloat = 4e-5
    schedule: Literal["cosine", "steps"] = "cosine"
    step_epochs: tuple[PositiveInt, ...] = ()
    step_factor: PositiveFloat = 0.1
    warmup_epochs: NotNegativeFloat = 1.0
    clip_norm: NotNegativeFloat = Field(default=10.0, description="largest norm of the gradient; 0 for none")
    ema: Annotated[Float, Field(ge=0, lt=1)] = 0.9998
    amp: Annotated[Literal["auto", "off", "bf16", "fp16"], BeforeValidator(_off)] = "auto"
    seed: Annotated[Int, Field(ge=0, lt=2**63)] = 0
    device: str = "auto"
    compile: bool = Field(default=False, description="torch.compile the backbone")
    eval_every: PositiveInt = Field(
        default=5, description="epochs between validations; the last epoch is always scored"
    )
    patience: PositiveInt | None = Field(default=None, description="validations without a better AP before it stops")
    save_minutes: NotNegativeFloat = Field(default=10.0, description="between checkpoints within an epoch")
    teacher: UserPath | None = Field(default=None, description="a larger detector to learn from")
    distill_class: NotNegativeFloat = Field(default=1.0, description="weight of the teacher's classes")
    distill_box: NotNegativeFloat = Field(default=1.0, description="weight of the teacher's boxes")

    @model_validator(mode="after")
    def _steps_lie_inside(self) -> TrainConfig:
        if self.schedule == "steps" and not self.step_epochs:
            raise ValueError("schedule 'steps' needs step_epochs, for example step_epochs=[80,110]")
        if list(self.step_epochs) != sorted(set(self.step_epochs)) or max(self.step_epochs, default=0) > self.epochs:
            raise ValueError(f"step_epochs must rise and end by epoch {self.epochs}, got {list(self.step_epochs)}")
        return self


class EvalConfig(_Section):
    """From candidates to detections when a model is scored (COCO's usual values)."""

    score: Fraction = 0.001
    nms: Fraction = 0.6
    pre_nms: PositiveInt = 1000
    max_detections: PositiveInt = 100
    scorer: Literal["pycocotools", "faster"] = Field(default="pycocotools", description="who computes AP in training")


class Config(_Section):
    """Everything a run depends on. The resolved file is saved in the run folder."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _something_is_mixed(self) -> Config:
        if (self.data.mosaic or self.data.mixup) and self.data.plain_epochs >= self.train.epochs:
            raise ValueError(
                f"data.plain_epochs={self.data.plain_epochs} leaves none of {self.train.epochs} epochs for data.mosaic "
                "and data.mixup; lower it"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved settings as YAML; loading it gives an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply `section.key=value` words to it.

    Args:
        path: the YAML file; without it, the defaults.
        overrides: words such as `model.alpha=0.5`; values are read as YAML.

    Raises:
        ConfigError: unknown or misspelt setting, wrong type, unreadable file.
    """
    raw = {} if path is None else _read_yaml(path)
    for word in overrides:
        _set(raw, word)
    return parse_config(raw, source=str(path) if path is not None else "settings")


def parse_config(raw: Mapping[str, Any], *, source: str = "settings") -> Config:
    """Turn nested plain values (from YAML, JSON or a checkpoint) into a `Config`.

    Raises:
        ConfigError: unknown or misspelt setting, or wrong type; all of them in one line.
    """
    try:
        return Config.model_validate({section: {} if value is None else value for section, value in raw.items()})
    except ValidationError as error:
        lines = [_explain(fault) for fault in error.errors(include_url=False)]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, such as a second `model:` pasted below the first: YAML lets it replace that."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        nodes = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in nodes]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.YAMLError(f"'{key}' stands there twice, the second time{nodes[number].start_mark}")
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file; the project's own are in configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections such as 'model:' and 'train:', got a {type(raw).__name__}")
    return raw


def _set(raw: dict[str, Any], word: str) -> None:
    key, separator, text = word.partition("=")
    sections = key.split(".")
    if not separator or not all(sections):
        raise ConfigError(f"{word}: expected a setting as section.key=value, for example model.alpha=0.5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{word}: the value is not YAML; quote it if it holds : or [") from None
    place = raw
    for section in sections[:-1]:
        if place.get(section) is None:  # absent, or a section whose settings are all commented out
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            raise ConfigError(f"{key}: '{section}' is a value, it has no settings below it")
    place[sections[-1]] = value


def _explain(fault: Any) -> str:
    place = [str(part) for part in fault["loc"]]
    name = ".".join(place)
    if fault["type"] == "extra_forbidden":
        return f"{name}: no such setting; {_suggest(place)}"
    message = fault["msg"].removeprefix("Value error, ")
    came = fault["input"]
    if not name or isinstance(came, dict):
        return f"{name}: {message}" if name else message
    return f"{name}: got {came!r}: {message[0].lower()}{message[1:]}"


def _suggest(place: list[str]) -> str:
    """The nearest name among the settings beside the unknown one, else anywhere, else the list."""
    siblings = list(_section_at(place[:-1]).model_fields)
    near = difflib.get_close_matches(place[-1], siblings, n=1)
    if near:
        return f"did you mean '{near[0]}'?"
    elsewhere = [f"{s}.{k}" for s in Config.model_fields for k in _section_at([s]).model_fields if k == place[-1]]
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    return f"known here: {', '.join(siblings)}"


def _section_at(place: list[str]) -> type[BaseModel]:
    section: type[BaseModel] = Config
    for name in place:
        annotation = section.model_fields[name].annotation
        if typing.get_origin(annotation) in (typing.Union, types.UnionType):
            break
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    return section
