"""Model files that need converting: exported into the user's cache once, and found again."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mnet_det import __version__
from mnet_det.cache import cache_folder
from mnet_det.doctor import install_line
from mnet_det.errors import CheckpointError, DownloadError, MissingPackageError
from mnet_det.files import sha256_of

Loaded = TypeVar("Loaded")

EXPORT_FORMAT = 3
"""Raise it with any change of what an export holds (graph, weights or metadata): the caches make theirs again."""
EXPORTED_SUFFIXES = (".onnx", ".xml")
CONVERTED_SUFFIXES = (".pt", ".tflite")
"""Forms that only the torch side reads; the runtime gets them through `mnet-det export`."""
BACKBONE_SUFFIXES = (".h5", ".safetensors", ".pth")
"""Forms in which only backbones and classifiers are published."""


def load_exported(path: Path, load: Callable[[Path], Loaded], *, rho: float | None = None) -> Loaded:
    """What `load` makes of the file that `exported` names; an export in the cache that it refuses is made again, once.

    Raises:
        CheckpointError: see `exported`; or `load` refuses a file that is not from the cache, or is new there.
        MissingPackageError: see `exported`.
    """
    file = exported(path, rho=rho)
    try:
        return load(file)
    except CheckpointError as fault:
        if file == path:
            raise
        print(f"{fault} (so it is made again)", file=sys.stderr, flush=True)
    _export(path, file, rho=rho, again=True)  # over it: if that fails, it is still there
    return load(file)


def exported(path: Path, *, rho: float | None = None) -> Path:
    """The file a runtime can load: the path itself, or its export in the user's cache, made at the first call.

    The export is keyed by the content, `rho`, our version and `EXPORT_FORMAT`. It is made by a child process, so that
    torch never enters this one; a second process that asks for the same meanwhile waits for the first.

    Args:
        path: the model file.
        rho: resolution multiplier; unless given, the one that the model was made with.

    Raises:
        CheckpointError: no such file, an unknown kind of file, no room for the export, or it failed; or `rho` for a
            file that is exported already, and so has one input size.
        MissingPackageError: an export is needed and torch is not installed.
    """
    suffix = path.suffix.lower()
    if suffix in BACKBONE_SUFFIXES:
        raise CheckpointError(f"{path}: ImageNet weights, not a detector; train one with model.init={path}")
    if suffix not in EXPORTED_SUFFIXES + CONVERTED_SUFFIXES:
        known = ", ".join(EXPORTED_SUFFIXES + CONVERTED_SUFFIXES)
        raise CheckpointError(f"{path}: not a kind of model file we know; known: {known}")
    if not path.is_file():
        raise CheckpointError(f"{path}: {'a folder, not a' if path.is_dir() else 'no such'} model file")
    if suffix in EXPORTED_SUFFIXES:
        if rho is not None:
            raise CheckpointError(f"{path}: an exported file has one input size; for --rho, give its checkpoint")
        return path
    cached = cache_folder() / "exported" / f"{_key(path, rho)}.onnx"
    if not cached.is_file():
        _export(path, cached, rho=rho)
    return cached


def _key(path: Path, rho: float | None) -> str:
    resolution = "" if rho is None else f" rho {rho}"
    return hashlib.sha256(f"{sha256_of(path)} {__version__} {EXPORT_FORMAT}{resolution}".encode()).hexdigest()


def _export(path: Path, cached: Path, *, rho: float | None, again: bool = False) -> None:
    if importlib.util.find_spec("torch") is None:
        raise MissingPackageError(
            f"{path}: converting it for the runtime needs torch, once; an exported .onnx file does not. To install it: "
            f"{install_line('train')}"
        )
    from rich.console import Console  # both are slow to import, and the demo's start is watched

    from mnet_det.download import one_at_a_time

    try:
        with one_at_a_time(cached, console=Console(stderr=True, soft_wrap=True)):
            if again or not cached.is_file():
                _convert(path, cached, rho)
    except DownloadError as error:
        raise CheckpointError(f"{error}; set MNET_DET_CACHE to a folder that can be written") from None


def _convert(path: Path, cached: Path, rho: float | None) -> None:
    at = "" if rho is None else f" at rho {rho:g}"
    print(f"converting {path}{at} once, into {cached}", file=sys.stderr, flush=True)
    resolution = [] if rho is None else ["--rho", str(rho)]
    words = ["export", str(path), "--format", "onnx", *resolution, "--out", str(cached)]
    command = [sys.executable, "-m", "mnet_det", *words]
    child = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if child.returncode or not cached.is_file():
        lines = [line.strip() for line in child.stderr.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("error: ") if lines else f"no message, exit status {child.returncode}"
        raise CheckpointError(f"{path}: cannot be converted: {reason}")
