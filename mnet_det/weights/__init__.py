"""Published weights in our networks: one file per source format, without TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mnet_det.errors import CheckpointError, DataError
from mnet_det.weights.published import Published

SUFFIXES = (".tflite", ".h5", ".safetensors", ".pth")
"""Formats that are read here."""


def read_published(path: Path, *, labels: Sequence[str] | None = None) -> Published:
    """Read published weights of any known format.

    Args:
        path: `.tflite` (COCO SSD, classifier or embedding extractor), `.h5` (Keras Applications), `.safetensors` or
            `.pth` (timm and torchvision).
        labels: one for each output of the file, background first or left out, `???` for outputs without a class.
            Needed only where the file does not hold them and they are neither COCO's nor ImageNet's.

    Raises:
        CheckpointError: missing, damaged, of another kind, or a network that is not ours.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file")
    try:
        published = _read(path, labels)
        if labels is not None and published.kind == "backbone":
            raise CheckpointError("a backbone without a classifier: there is nothing for the labels to name")
        return published
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read(path: Path, labels: Sequence[str] | None) -> Published:
    # Each format's package is imported only where its files are read.
    suffix = path.suffix.lower()
    if suffix == ".tflite":
        from mnet_det.weights.tflite import read_tflite

        return read_tflite(path, labels=labels)
    if suffix == ".h5":
        from mnet_det.weights.keras import read_keras

        return read_keras(path, labels=labels)
    if suffix in (".safetensors", ".pth"):
        from mnet_det.weights.state_dict import read_state_dict
        from mnet_det.weights.timm import read_timm
        from mnet_det.weights.torchvision import read_torchvision, torchvision_name

        tensors = read_state_dict(path)
        if torchvision_name(tensors) is not None:
            return read_torchvision(tensors, labels=labels)
        return read_timm(tensors, file_name=path.name, labels=labels)
    raise CheckpointError(f"not a format of published weights that we read; known: {', '.join(SUFFIXES)}")


def read_labels(path: Path) -> list[str]:
    """A list of labels, one a line.

    Raises:
        DataError: the file cannot be read as text.
    """
    try:
        return path.read_text(encoding="utf-8-sig").strip("\r\n").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of labels ({error})") from None
