"""Where a training starts from other weights: what is taken, what is left, and what the network takes over for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from mnet_det.catalogue import find_model
from mnet_det.config import Config
from mnet_det.engine.checkpoint import Checkpoint, open_checkpoint
from mnet_det.errors import CheckpointError, ConfigError
from mnet_det.models import tap_names
from mnet_det.models.detector import Detector
from mnet_det.models.layers import ConvBNAct
from mnet_det.models.losses import SIGMOID_LOSSES
from mnet_det.models.unfold import unfold_batch_norm
from mnet_det.weights.timm import fetch_timm

PIXEL_NEEDS = ("pixel_mean", "pixel_std")
NEEDS = ("padding", "activation", *PIXEL_NEEDS, "bn_eps")
"""Settings of `model` that belong to weights: with others, the same weights give other outputs."""
BACKBONE_SHAPES = ("alpha", "reduced_tail", "separable")
"""Settings of `model` that decide which tensors a backbone has, and of which shapes."""

PRETRAINED = "pretrained"
"""As `model.init`, with a backbone of timm: the weights that timm has for it."""


def open_start(config: Config, *, console: Console | None = None) -> Checkpoint | None:
    """What `model.init` names, if anything: a file, a published name, which is pulled, or `PRETRAINED`.

    Raises:
        CheckpointError: see `open_checkpoint` and `find_model`.
        DownloadError: see `pull` and `fetch_timm`.
        ConfigError: `PRETRAINED` without a backbone of timm.
    """
    init = config.model.init
    if init is None:
        return None
    if str(init) != PRETRAINED:
        return open_checkpoint(find_model(init, console=console))
    if not config.model.backbone.startswith("timm:"):
        raise ConfigError(
            f"model.init={PRETRAINED} asks timm for its weights, which has none for model.backbone="
            f"{config.model.backbone}; `mnet-det weights list` shows what there is"
        )
    published = fetch_timm(config.model)
    return Checkpoint(Config(model=published.model), (), (), published.weights, kind=published.kind)


def adopt_needs(config: Config, checkpoint: Checkpoint) -> tuple[Config, list[str]]:
    """Take over what a checkpoint's weights need, whatever the config says.

    Networks of torchvision and timm have their convolutions' settings built in, so that their ImageNet weights need
    their pixels only.

    Returns:
        The config, and a note on each setting that changed.
    """
    ours, theirs = config.model.model_dump(), checkpoint.config.model.model_dump()
    built_in = checkpoint.kind != "detector" and checkpoint.config.model.backbone != "mobilenet_v1"
    changed = {key: theirs[key] for key in (PIXEL_NEEDS if built_in else NEEDS) if theirs[key] != ours[key]}
    notes = [f"model.{key}={plain(value)} (was {plain(ours[key])})" for key, value in changed.items()]
    return config.model_copy(update={"model": config.model.model_copy(update=changed)}), notes


@dataclass(frozen=True)
class Start:
    """What a detector took from a checkpoint.

    Attributes:
        loaded: names of the tensors that were taken, whole or in part.
        total: how many the detector has.
        notes: why others were not, and what is odd about those that were; one sentence a kind.
    """

    loaded: frozenset[str]
    total: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join([f"{len(self.loaded)} of {self.total} tensors loaded", *self.notes])


@torch.no_grad()
def start_from(
    detector: Detector, checkpoint: Checkpoint, config: Config, *, class_names: Sequence[str], source: Path
) -> Start:
    """Copy what fits from a checkpoint into a detector with random weights, each layer whole or not at all.

    Class layers are made anew where the classes differ, and rows of classes with the same name are copied, as
    `_ClassRows` says; so are Faster R-CNN's boxes where each class has its own.

    Args:
        detector: of `config`, for `class_names`.
        checkpoint: a detector, classifier or backbone.
        config: the run's.
        class_names: of the detector.
        source: named in errors.

    Raises:
        CheckpointError: the backbones differ; the message names the first tensor and the likely width.
    """
    state = detector.state_dict()
    _require_same_backbone(state, checkpoint, config, source=source)
    rows_of = _rows_of(detector, checkpoint, config, class_names=class_names)
    loaded: dict[str, Tensor] = {}
    reasons: dict[str, list[str]] = {}  # a reason, and the tensors that it is about
    examples: dict[str, str] = {}
    for layer, group in groupby(state, key=_layer_of):
        names = list(group)
        part = layer.partition(".")[0]
        ours = {name: state[name] for name in names}
        theirs = {name: checkpoint.weights[name] for name in names if name in checkpoint.weights}
        rows = rows_of.get(layer)
        fits = _same_shape if rows is None else rows.fit
        different = next((name for name in theirs if not fits(ours[name], theirs[name])), None)
        if len(theirs) < len(ours):
            reasons.setdefault(f"of {part} not in the file", []).extend(names)
        elif rows is not None and (different is None or not rows.pairs):
            if rows.pairs:
                loaded |= {name: rows.copy(ours[name], theirs[name]) for name in names}
            reasons.setdefault(f"of {part} {rows.reason}", []).extend(names)
        elif different is not None:
            reason = f"of {part} of another shape"
            reasons.setdefault(reason, []).extend(names)
            shapes = f"{list(theirs[different].shape)} there, {list(ours[different].shape)} here"
            examples.setdefault(reason, f", such as {different}: {shapes}")
        else:
            loaded |= theirs
    detector.load_state_dict(loaded, strict=False)
    notes = [f"{len(names)} {reason}{examples.get(reason, '')}" for reason, names in reasons.items()]
    if any(name.startswith(("box_predictors.", "rpn.", "roi_head.box_predictor.")) for name in loaded):
        notes += _anchor_notes(config, checkpoint)
    return Start(frozenset(loaded), len(state), tuple(notes))


def unfold(detector: Detector, start: Start, batches: Iterable[Tensor]) -> int:
    """Undo the folding of the layers that a start from folded weights brought; see `unfold_batch_norm`.

    Returns:
        How many images the new statistics come from.
    """
    layers = [
        name
        for name, module in detector.named_modules()
        if isinstance(module, ConvBNAct) and f"{name}.bn.running_var" in start.loaded
    ]
    return unfold_batch_norm(detector, batches, layers=layers)


class _ClassRows:
    """How the rows of class layers, one for each anchor's background and classes, come from another detector.

    Where both name the same classes in the same order and read them alike, by sigmoids or by a softmax, they are taken
    as they are. Else rows of the same name are copied. From sigmoids to a softmax, the background's row becomes 0: then
    softmax gives e^l / (1 + Σ e^l), which is close to sigmoid(l) where the other classes are unlikely. The other way,
    the background's row is subtracted from each.
    """

    def __init__(self, class_names: Sequence[str], class_loss: str, checkpoint: Checkpoint) -> None:
        self.pairs = [
            (label, checkpoint.class_names.index(name))
            for label, name in enumerate(class_names)
            if name in checkpoint.class_names
        ]
        self.columns_here, self.columns_there = len(class_names) + 1, len(checkpoint.class_names) + 1
        loss_there = checkpoint.config.model.class_loss
        self.sigmoid_here, self.sigmoid_there = (loss in SIGMOID_LOSSES for loss in (class_loss, loss_there))
        same_classes = tuple(class_names) == checkpoint.class_names
        self.as_they_are = same_classes and self.sigmoid_here == self.sigmoid_there
        converted = "" if self.sigmoid_here == self.sigmoid_there else f", from {loss_there} to {class_loss} loss"
        self.reason = (
            f"turned{converted.removeprefix(',')}"
            if same_classes
            else f"made anew for {len(class_names)} classes (there {len(checkpoint.class_names)}), "
            f"rows of {len(self.pairs)} with the same name copied{converted if self.pairs else ''}"
        )

    def fit(self, ours: Tensor, theirs: Tensor) -> bool:
        """Whether both have as many anchors a cell, on as many channels."""
        per_cell, rest = divmod(len(ours), self.columns_here)
        return not rest and len(theirs) == per_cell * self.columns_there and theirs.shape[1:] == ours.shape[1:]

    def copy(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """`ours` with the rows of `pairs`, of which there must be some, from `theirs`, which must fit."""
        here = ours.clone().unflatten(0, (-1, self.columns_here))
        there = theirs.to(ours).unflatten(0, (-1, self.columns_there))
        background = there[:, :1]
        mine, other = ([label + 1 for label in side] for side in zip(*self.pairs, strict=True))
        if self.sigmoid_here == self.sigmoid_there:
            here[:, :1], here[:, mine] = background, there[:, other]
        elif self.sigmoid_there:
            here[:, :1], here[:, mine] = torch.zeros_like(background), there[:, other]
        else:
            here[:, mine] = there[:, other] - background
        return here.flatten(0, 1)


class _BoxRows(_ClassRows):
    """The same of Faster R-CNN's boxes: four rows for each class, and none for the background."""

    def fit(self, ours: Tensor, theirs: Tensor) -> bool:
        """Whether both have a box for each of their classes, on as many channels."""
        here, there = 4 * (self.columns_here - 1), 4 * (self.columns_there - 1)
        return len(ours) == here and len(theirs) == there and theirs.shape[1:] == ours.shape[1:]

    def copy(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """See `_ClassRows.copy`."""
        here, there = ours.clone().unflatten(0, (-1, 4)), theirs.to(ours).unflatten(0, (-1, 4))
        mine, other = map(list, zip(*self.pairs, strict=True))
        here[mine] = there[other]
        return here.flatten(0, 1)


def _rows_of(
    detector: Detector, checkpoint: Checkpoint, config: Config, *, class_names: Sequence[str]
) -> dict[str, _ClassRows]:
    """How to copy each layer whose rows cannot be taken as they are, because they stand for other classes."""
    rows = _ClassRows(class_names, config.model.class_loss, checkpoint)
    if rows.as_they_are:
        return {}
    boxes = _BoxRows(class_names, config.model.class_loss, checkpoint)
    return dict.fromkeys(detector.class_layers, rows) | dict.fromkeys(detector.box_layers, boxes)


def _same_shape(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape


def _layer_of(name: str) -> str:
    """The convolution, with its batch norm, that a tensor belongs to."""
    layer = name.rpartition(".")[0]
    return layer.removesuffix(".conv").removesuffix(".bn")


def _anchor_notes(config: Config, checkpoint: Checkpoint) -> list[str]:
    """What changes the anchors' sizes, of which boxes are multiples, or the maps that boxes are read off."""
    ours, theirs = config.model, checkpoint.config.model
    values: dict[str, tuple[object, object]] = {"taps": (tap_names(theirs), tap_names(ours))}
    if ours.head == "faster_rcnn":
        values |= {"anchor_sizes": (theirs.anchor_sizes, ours.anchor_sizes), "fpn": (theirs.fpn, ours.fpn)}
    else:
        values |= {
            "input_hw": (theirs.input_hw, ours.input_hw),
            "anchor_scales": (theirs.anchor_scales, ours.anchor_scales),
        }
    changed = [f"{key} {plain(there)} (here {plain(here)})" for key, (there, here) in values.items() if there != here]
    if not changed:
        return []
    return [f"boxes were learned with {', '.join(changed)}: they are off until they have learned the new anchors"]


def _require_same_backbone(
    state: Mapping[str, Tensor], checkpoint: Checkpoint, config: Config, *, source: Path
) -> None:
    ours, theirs = config.model.model_dump(), checkpoint.config.model.model_dump()
    if theirs["backbone"] != ours["backbone"]:
        raise CheckpointError(
            f"{source}: does not fit: the file is {theirs['backbone']}, the model has {ours['backbone']}; set "
            f"model.backbone={theirs['backbone']}, or start from weights of {ours['backbone']}"
        )
    shared = [
        name
        for name, tensor in state.items()
        if name.startswith("backbone.") and tensor.ndim > 1 and name in checkpoint.weights
    ]
    misfits = [name for name in shared if state[name].shape != checkpoint.weights[name].shape]
    if misfits:
        there, here = list(checkpoint.weights[misfits[0]].shape), list(state[misfits[0]].shape)
        what = f"{misfits[0]} is {there} there and {here} in this model"
    else:
        what = "it has no convolution of this model's backbone, but perhaps the first"
    changed = [f"{key}={plain(theirs[key])}" for key in BACKBONE_SHAPES if theirs[key] != ours[key]]
    few = len(shared) - len(misfits) < 2  # every MobileNetV1 has the same stem, whatever its blocks are
    if few or (misfits and changed):
        has = " and ".join(word.replace("=", " ") for word in changed)
        mend = f"; the file has {has}, so set {' '.join(f'model.{word}' for word in changed)}" if changed else ""
        raise CheckpointError(f"{source}: does not fit: {what}{mend}")


def plain(value: object) -> str:
    """A setting as one would type it."""
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(plain, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.10g}" if isinstance(value, float) else str(value)
