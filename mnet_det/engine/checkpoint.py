"""Checkpoints: written whole or not at all, loadable with `weights_only=True`, and complete in themselves."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mnet_det.config import Config, parse_config
from mnet_det.errors import CheckpointError, ConfigError
from mnet_det.files import whole_file
from mnet_det.models import build_detector
from mnet_det.models.detector import Detector
from mnet_det.runtime.postprocess import VIEWING_SCORE
from mnet_det.weights import SUFFIXES as PUBLISHED_SUFFIXES
from mnet_det.weights import read_published
from mnet_det.weights.published import Kind

FORMAT = 3
READ_FORMATS = (2, 3)
"""Of the first, all but what a run needs to go on."""
RUN_CHECKPOINTS = ("best", "last", "previous")
"""Names that every run gives its checkpoints; the run's own is its folder's."""


@dataclass(frozen=True)
class Checkpoint:
    """A network and where it came from.

    Attributes:
        config: the resolved settings of its run.
        class_names: K names; none of a backbone.
        category_ids: the training data's own ids, in the same order.
        weights: the state to detect with (the averaged one where the run averages).
        training: what a run needs to go on (raw weights, optimiser, step …); None in a finished `best.pt`.
        kind: a detector, or published ImageNet weights that training can start from.
        folded: batch norm is folded into the convolutions (`weights.Published`); training has to undo that.
        class_scores: K least probabilities to show its detections with, 0…1: those of the best F1 that was measured;
            None if nobody did.
    """

    config: Config
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    weights: dict[str, Tensor]
    training: dict[str, Any] | None = None
    kind: Kind = "detector"
    folded: bool = False
    class_scores: tuple[float, ...] | None = None

    def __str__(self) -> str:
        model = self.config.model
        height, width = model.input_hw
        classes = f", {len(self.class_names)} classes" if self.class_names else ""
        ours = model.backbone in ("mobilenet_v1", "inception_v2")  # torchvision's and timm's have theirs built in
        style = f"padding {model.padding}, {model.activation}, " if ours else ""
        return (
            f"{self.kind}, {model.backbone}, alpha {model.alpha:g}, input {width}x{height}{classes}; {style}pixels "
            f"(x - {_channels(model.pixel_mean)}) / {_channels(model.pixel_std)}"
        )

    def build(self) -> Detector:
        """The detector with its weights, in eval mode, on the CPU.

        Raises:
            CheckpointError: weights and config contradict each other.
        """
        detector = build_detector(
            self.config.model,
            num_classes=len(self.class_names),
            stored_anchors=self.weights.get("stored_anchors"),
        )
        try:
            detector.load_state_dict(self.weights)
        except RuntimeError as error:  # torch lists every tensor
            raise CheckpointError(
                f"the weights do not fit the model that their config describes ({str(error).splitlines()[1].strip()}); "
                "was the checkpoint written by another version?"
            ) from None
        return detector.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; `path` is always whole, even if the power goes.

    Raises:
        MnetDetError: the disk is full or the folder cannot be written; what was at `path` is still there.
    """
    content = {
        "mnet_det": FORMAT,
        "config": checkpoint.config.model_dump(mode="json"),
        "class_names": list(checkpoint.class_names),
        "category_ids": list(checkpoint.category_ids),
        "weights": checkpoint.weights,
        "training": checkpoint.training,
        "kind": checkpoint.kind,
        "folded": checkpoint.folded,
        "class_scores": None if checkpoint.class_scores is None else list(checkpoint.class_scores),
    }
    save_tensors(path, content)


def store_class_scores(path: Path, scores: Mapping[str, float | None]) -> None:
    """Write into a checkpoint which scores to show its detections with; all else in it stays as it is.

    Args:
        path: the file; it is always whole, even if the power goes.
        scores: the least probability by class name, 0…1; a class without one gets `VIEWING_SCORE`.

    Raises:
        ValueError: a class that the checkpoint does not have, or a score beyond 0…1.
        CheckpointError: see `load_checkpoint`.
        MnetDetError: see `save_checkpoint`.
    """
    content = _read(path)
    names = _checkpoint(content, path).class_names
    strangers = sorted(set(scores) - set(names))
    if strangers:
        raise ValueError(f"{path}: no class {strangers[0]!r}; it has {', '.join(names)}")
    by_name = {name: VIEWING_SCORE if score is None else float(score) for name, score in scores.items()}
    if not all(0 <= score <= 1 for score in by_name.values()):  # NaN is not
        raise ValueError(f"expected scores of 0 to 1, got {by_name}")
    # What was read, not a checkpoint made of it: one of an earlier format lacks what a new one has to have.
    save_tensors(path, {**content, "class_scores": [by_name.get(name, VIEWING_SCORE) for name in names]})


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values; see `save_checkpoint`."""
    # Given a name in the place of a file, torch tells of a full disk in words of its own.
    with whole_file(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of the file's end, which could not be written either
            first = error.__context__
            raise first if isinstance(first, OSError) else OSError(str(error).splitlines()[0]) from None
        file.flush()
        os.fsync(file.fileno())  # else the name could reach the disk before the content does


def load_resumable(path: Path) -> tuple[Checkpoint, Path, str | None]:
    """A checkpoint to go on from; of a damaged `last.pt`, the `previous.pt` beside it.

    Returns:
        The checkpoint, its file, and what was wrong with the other one, if anything.

    Raises:
        CheckpointError: neither can be read.
    """
    try:
        return load_checkpoint(path), path, None
    except CheckpointError as error:
        previous = path.parent / "previous.pt"
        if path.name != "last.pt" or not previous.exists():
            raise
        try:
            return load_checkpoint(previous), previous, str(error)
        except CheckpointError as other:
            raise CheckpointError(f"{error}; nor can the one before it be read: {other}") from None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: missing, damaged, or not a checkpoint of mnet-det; one that would run code is not loaded.
    """
    return _checkpoint(_read(path), path)


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint's file, of a format that we read."""
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder; a run goes on from its last.pt, and detects with its best.pt")
    try:
        with zipfile.ZipFile(path) as archive:  # as torch.save writes it; torch.load leaves the checksums unread
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum does not fit")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # torch's word for anything but tensors and plain values
            raise CheckpointError(
                f"{path}: holds more than tensors and plain values, which could run code as it is loaded; refused. No "
                "checkpoint of mnet-det does: get it again from where it came from"
            ) from None
        raise CheckpointError(f"{path}: not a checkpoint that can be read; is the file whole?") from None
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not a checkpoint that can be read ({reason[:120]}); is the file whole?"
        ) from None
    if not isinstance(content, dict) or "mnet_det" not in content:
        raise CheckpointError(f"{path}: not a checkpoint of mnet-det; expected one written by `mnet-det train`")
    if content["mnet_det"] not in READ_FORMATS:
        raise CheckpointError(
            f"{path}: format {content['mnet_det']}, this version reads {' and '.join(map(str, READ_FORMATS))}; use the "
            "version that wrote it, or train it again"
        )
    return content


def _checkpoint(content: Mapping[str, Any], path: Path) -> Checkpoint:
    """The checkpoint that was read from a file."""
    try:
        return Checkpoint(
            config=parse_config(content["config"], source=str(path)),
            class_names=tuple(content["class_names"]),
            category_ids=tuple(content["category_ids"]),
            weights=content["weights"],
            training=content["training"],
            kind=content["kind"],
            folded=content["folded"],
            class_scores=_class_scores(content, path),
        )
    except (KeyError, ConfigError) as error:
        raise CheckpointError(f"{path}: a checkpoint of another version ({error})") from None


def _class_scores(content: Mapping[str, Any], path: Path) -> tuple[float, ...] | None:
    scores, names = content.get("class_scores"), content["class_names"]
    if scores is None:  # nobody measured them, or the file is older than they are
        return None
    good = isinstance(scores, list) and all(isinstance(score, float) and 0 <= score <= 1 for score in scores)
    if not good or len(scores) != len(names):
        raise CheckpointError(
            f"{path}: damaged: class_scores are {scores!r:.80}, expected {len(names)} numbers from 0 to 1; get "
            "the file again from where it came from"
        )
    return tuple(scores)


def open_checkpoint(path: Path, *, labels: Sequence[str] | None = None) -> Checkpoint:
    """A checkpoint, or published weights in a format of their own.

    Args:
        path: `.pt`, or a file that `weights.read_published` knows.
        labels: names of a published file's outputs, where it brings none.

    Raises:
        CheckpointError: missing, damaged, or not a network that we know.
    """
    suffix = path.suffix.lower()
    if suffix == ".pt":
        if labels is not None:
            raise CheckpointError(f"{path}: a checkpoint has class names of its own, labels are for published files")
        return load_checkpoint(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder; a run's checkpoint is {path / 'best.pt'}")
    if suffix not in PUBLISHED_SUFFIXES:
        known = ", ".join((".pt", *PUBLISHED_SUFFIXES))
        raise CheckpointError(f"{path}: neither a checkpoint nor published weights that we read; known: {known}")
    published = read_published(path, labels=labels)
    return Checkpoint(
        config=Config(model=published.model),
        class_names=published.class_names,
        category_ids=published.category_ids,
        weights=published.weights,
        kind=published.kind,
        folded=published.folded,
    )


def open_detector(path: Path) -> Checkpoint:
    """As `open_checkpoint`, of a detector only.

    Raises:
        CheckpointError: see there, or the weights are no whole detector.
    """
    checkpoint = open_checkpoint(path)
    if checkpoint.kind != "detector":
        raise CheckpointError(
            f"{path}: is an ImageNet {checkpoint.kind}, not a detector; train one from it with model.init={path}"
        )
    return checkpoint


def _channels(values: tuple[float, float, float]) -> str:
    """One number where all channels have the same."""
    return f"{values[0]:g}" if len(set(values)) == 1 else f"[{', '.join(f'{value:g}' for value in values)}]"


def name_of(path: Path) -> str:
    """What a model in this file is called: its file's name, or its run's where every run has such a file."""
    return path.parent.name if path.stem in RUN_CHECKPOINTS and path.parent.name else path.stem
