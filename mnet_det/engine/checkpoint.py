"""Checkpoints: written whole or not at all, loadable with `weights_only=True`, and complete in themselves."""

from __future__ import annotations

import pickle
import zipfile
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

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A detector and where it came from.

    Attributes:
        config: the resolved settings of its run.
        class_names: K names.
        category_ids: the training data's own ids, in the same order.
        weights: the state to detect with (the averaged one where the run averages).
        training: what a run needs to go on (raw weights, optimiser, step …); None in a finished `best.pt`.
    """

    config: Config
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    weights: dict[str, Tensor]
    training: dict[str, Any] | None = None

    def build(self) -> Detector:
        """The detector with its weights, in eval mode, on the CPU.

        Raises:
            CheckpointError: weights and config contradict each other.
        """
        detector = build_detector(self.config.model, num_classes=len(self.class_names))
        try:
            detector.load_state_dict(self.weights)
        except RuntimeError as error:  # torch lists every tensor
            raise CheckpointError(
                f"the weights do not fit the model that their config describes ({str(error).splitlines()[1].strip()}); "
                "was the checkpoint written by another version?"
            ) from None
        return detector.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; `path` is always whole.

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
    }
    with whole_file(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(str(error).splitlines()[0]) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: missing, damaged, or not a checkpoint of mnet-det.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # as torch.save writes it; torch.load leaves the checksums unread
            if archive.testzip() is not None:
                raise zipfile.BadZipFile("a checksum does not fit")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not a checkpoint that can be read ({reason[:120]}); is the file whole?"
        ) from None
    if not isinstance(content, dict) or "mnet_det" not in content:
        raise CheckpointError(f"{path}: not a checkpoint of mnet-det; expected one written by `mnet-det train`")
    if content["mnet_det"] != FORMAT:
        raise CheckpointError(f"{path}: format {content['mnet_det']}, this version reads {FORMAT}")
    try:
        return Checkpoint(
            config=parse_config(content["config"], source=str(path)),
            class_names=tuple(content["class_names"]),
            category_ids=tuple(content["category_ids"]),
            weights=content["weights"],
            training=content["training"],
        )
    except (KeyError, ConfigError) as error:
        raise CheckpointError(f"{path}: a checkpoint of another version ({error})") from None


def load_fitting(detector: Detector, path: Path) -> tuple[int, int]:
    """Copy the tensors of a checkpoint whose name and shape fit into `detector`; the others keep their start.

    Returns:
        How many were copied, and how many the detector has.

    Raises:
        CheckpointError: the file cannot be used, or nothing in it fits.
    """
    state = detector.state_dict()
    weights = load_checkpoint(path).weights
    fitting = {name: tensor for name, tensor in weights.items() if name in state and tensor.shape == state[name].shape}
    if not any(tensor.ndim > 1 for tensor in fitting.values()):  # a few scalars fit every model
        raise CheckpointError(f"{path}: none of its convolutions fits this model; do alpha and head agree?")
    detector.load_state_dict(fitting, strict=False)
    return len(fitting), len(state)
