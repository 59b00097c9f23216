"""Where a training starts from other weights: what is taken, what is left, and what the network takes over for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mnet_det.config import Config
from mnet_det.engine.checkpoint import Checkpoint
from mnet_det.errors import CheckpointError
from mnet_det.models.detector import Detector
from mnet_det.models.layers import ConvBNAct
from mnet_det.models.unfold import unfold_batch_norm

NEEDS = ("padding", "activation", "pixel_mean", "pixel_std", "bn_eps")
"""Settings of `model` that belong to weights: with others, the same weights give other outputs."""


def adopt_needs(config: Config, checkpoint: Checkpoint) -> tuple[Config, list[str]]:
    """Take over what a checkpoint's weights need, whatever the config says.

    Returns:
        The config, and a note on each setting that changed.
    """
    ours, theirs = config.model.model_dump(), checkpoint.config.model.model_dump()
    changed = {key: theirs[key] for key in NEEDS if theirs[key] != ours[key]}
    notes = [f"model.{key}={_plain(value)} (was {_plain(ours[key])})" for key, value in changed.items()]
    return config.model_copy(update={"model": config.model.model_copy(update=changed)}), notes


@dataclass(frozen=True)
class Start:
    """What a detector took from a checkpoint.

    Attributes:
        loaded: names of the tensors that were taken, whole or in part.
        total: how many the detector has.
        left: why others were not, one sentence a kind.
    """

    loaded: frozenset[str]
    total: int
    left: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join([f"{len(self.loaded)} of {self.total} tensors loaded", *self.left])


@torch.no_grad()
def start_from(
    detector: Detector, checkpoint: Checkpoint, config: Config, *, class_names: Sequence[str], source: Path
) -> Start:
    """Copy what fits from a checkpoint into a detector with random weights.

    The class layers are taken whole if both name the same classes in the same order. If not, they are made anew, and
    rows of the background and of classes with the same name are copied.

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
    _require_same_backbone(state, checkpoint, source=source)
    loaded: dict[str, Tensor] = {}
    reasons: Counter[str] = Counter()
    class_tensors = {f"{layer}.{leaf}" for layer in detector.class_layers for leaf in ("weight", "bias")}
    same_loss = checkpoint.config.model.class_loss == config.model.class_loss
    pairs = _same_names(class_names, checkpoint.class_names)
    for name, ours in state.items():
        theirs = checkpoint.weights.get(name)
        part = name.partition(".")[0]
        if theirs is None:
            reasons[f"of {part} not in the file"] += 1
        elif name in class_tensors and not same_loss:
            reasons[
                f"of {part} made anew, as they were trained with class_loss {checkpoint.config.model.class_loss}"
            ] += 1
        elif name in class_tensors and tuple(class_names) != checkpoint.class_names:
            rows = _copy_rows(ours, theirs, pairs, checkpoint)
            if rows is not None and pairs:
                loaded[name] = rows
            reasons[
                f"of {part} made anew for {len(class_names)} classes (there {len(checkpoint.class_names)}), "
                f"rows of {len(pairs)} with the same name copied"
            ] += 1
        elif theirs.shape != ours.shape:
            reasons[
                f"of {part} of another shape, such as {name}: {list(theirs.shape)} there, {list(ours.shape)} here"
            ] += 1
        else:
            loaded[name] = theirs
    detector.load_state_dict(loaded, strict=False)
    left = tuple(f"{count} {reason}" for reason, count in reasons.items())
    return Start(frozenset(loaded), len(state), left)


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


def _require_same_backbone(state: dict[str, Tensor], checkpoint: Checkpoint, *, source: Path) -> None:
    shared = [name for name in state if name.startswith("backbone.") and name in checkpoint.weights]
    for name in shared:
        ours, theirs = state[name].shape, checkpoint.weights[name].shape
        if ours != theirs:
            raise CheckpointError(
                f"{source}: does not fit: {name} is {list(theirs)} there and {list(ours)} in this model; the file has "
                f"alpha {checkpoint.config.model.alpha:g}, so set model.alpha={checkpoint.config.model.alpha:g}"
            )
    if not any(state[name].ndim == 4 for name in shared):
        raise CheckpointError(f"{source}: has no convolution of this model's backbone; are both MobileNetV1 blocks?")


def _same_names(ours: Sequence[str], theirs: Sequence[str]) -> list[tuple[int, int]]:
    """Label here and label there of each class that both name."""
    return [(label, theirs.index(name)) for label, name in enumerate(ours) if name in theirs]


def _copy_rows(ours: Tensor, theirs: Tensor, pairs: Sequence[tuple[int, int]], checkpoint: Checkpoint) -> Tensor | None:
    """`ours` with the rows of the background and of `pairs` from `theirs`; None where the anchors differ."""
    there = theirs.unflatten(0, (-1, len(checkpoint.class_names) + 1))
    per_cell = len(there)
    if len(ours) % per_cell or theirs.shape[1:] != ours.shape[1:]:
        return None
    here = ours.clone().unflatten(0, (per_cell, -1))
    columns = [(0, 0), *((mine + 1, other + 1) for mine, other in pairs)]
    mine, other = (list(side) for side in zip(*columns, strict=True))
    here[:, mine] = there[:, other].to(here)
    return here.flatten(0, 1)


def _plain(value: object) -> str:
    if isinstance(value, tuple | list):
        return "[" + ",".join(map(_plain, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
