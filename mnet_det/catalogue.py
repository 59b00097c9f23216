"""Published weights: what there is, where it lies, and the way into the user's cache.

Accuracies are those that the sources state; none is ours. The networks in these files differ in padding, input scaling
and labels: `weights/` knows how, one file a format.
"""

from __future__ import annotations

import difflib
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from mnet_det.cache import cache_folder
from mnet_det.errors import CheckpointError, DownloadError, MnetDetError
from mnet_det.files import sha256_of, whole_file, write_text

if TYPE_CHECKING:
    from rich.console import Console

MODEL_SUFFIXES = (".pt", ".onnx", ".xml", ".tflite", ".h5", ".safetensors", ".pth")
ARCHIVE_SUFFIXES = (".zip", ".tgz", ".tar.gz")
FIRST_BYTES: Mapping[str, tuple[int, bytes]] = {
    ".tflite": (4, b"TFL3"),
    ".h5": (0, b"\x89HDF\r\n\x1a\n"),
    ".safetensors": (8, b"{"),
}
"""Where each format says what it is: the login page of a network is not to become the weights we know."""

APACHE = "Apache-2.0"
BSD = "BSD-3-Clause"
TFLITE_SUPPORT = (
    "https://raw.githubusercontent.com/tensorflow/tflite-support/dd3362ea685bb7ab1f7268c81ec567d3b720ae57/"
    "tensorflow_lite_support/"
)
CORAL = "https://raw.githubusercontent.com/google-coral/test_data/104342d2d3480b3e66203073dac24f4e2dbb4c41/"
TF_SLIM = "https://storage.googleapis.com/download.tensorflow.org/models/mobilenet_v1_2018_08_02/"
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/"
TORCHVISION = "https://download.pytorch.org/models/"


Kind = Literal["detector", "classifier", "backbone"]


@dataclass(frozen=True)
class Entry:
    """One published file.

    Attributes:
        name: what it is called here: the source's own file name without its suffix, where that tells the truth.
        description: what it was trained on and how its numbers are stored.
        kind: a classifier has ImageNet's classes on top, a backbone nothing.
        alpha: the width multiplier.
        input_hw: what it was trained at; the weights fit any size.
        accuracy: figure, split and source in words; None where the source states none for this file.
        licence: SPDX identifier.
        url: the file, or an archive with the file in it.
        suffix: of the file.
        size: bytes at `url`, None where not known.
        sha256: of what lies at `url`, None where not known.
        sha256_start: its first digits, where the source publishes no more.
        member: the file's name in the archive; None where `url` is the file.
        note: what else a user should know.
        backbone: as `model.backbone` calls it.
    """

    name: str
    description: str
    kind: Kind
    alpha: float
    input_hw: tuple[int, int]
    accuracy: str | None
    licence: str
    url: str
    suffix: str
    size: int | None = None
    sha256: str | None = None
    sha256_start: str = ""
    member: str | None = None
    note: str = ""
    backbone: str = "mobilenet_v1"


DEFAULT_DETECTOR = "ssd_mobilenet_v1_0.75_coco"


def _imagenet(
    name: str,
    alpha: float,
    side: int,
    *,
    url: str,
    suffix: str = ".tflite",
    numbers: str = "8-bit",
    kind: Kind = "classifier",
    accuracy: str | None = None,
    size: int | None = None,
    sha256: str | None = None,
    member: str | None = None,
    note: str = "",
) -> Entry:
    """A network trained on ImageNet at `side` x `side` pixels."""
    return Entry(
        name=name,
        description=f"ImageNet, {numbers}",
        kind=kind,
        alpha=alpha,
        input_hw=(side, side),
        accuracy=accuracy,
        licence=APACHE,
        url=url,
        suffix=suffix,
        size=size,
        sha256=sha256,
        member=member,
        note=note,
    )


def _pinned() -> list[Entry]:
    """Files at commits that do not change."""
    vision = f"{TFLITE_SUPPORT}cc/test/testdata/task/vision/"
    return [
        Entry(
            name=DEFAULT_DETECTOR,
            description="SSD300, COCO, 8-bit",
            kind="detector",
            alpha=0.75,
            input_hw=(300, 300),
            accuracy=None,
            licence=APACHE,
            url=f"{TFLITE_SUPPORT}metadata/python/tests/testdata/object_detector/ssd_mobilenet_v1.tflite",
            suffix=".tflite",
            size=4_183_312,
            sha256="e4b118e5e4531945de2e659742c7c590f7536f8d0ed26d135abcfe83b4779d13",
            note="circulates as coco_ssd_mobilenet_v1_1.0_quant_2018_06_29, but its width is 0.75",
        ),
        _imagenet(
            "mobilenet_v1_1.0_224_quant_embedding_extractor",
            1.0,
            224,
            kind="backbone",
            url=f"{CORAL}mobilenet_v1_1.0_224_quant_embedding_extractor.tflite",
            size=3_251_736,
            sha256="f409ef4f73fcbb9667841965623c5c8524aac33d41b9bf5f3667161fb4a76319",
        ),
        _imagenet(
            "mobilenet_v1_0.75_192_quant",
            0.75,
            192,
            accuracy=_slim_accuracy("66.2", revision="2018-02"),
            url=f"{CORAL}mobilenet_v1_0.75_192_quant.tflite",
            size=2_652_542,
            sha256="41daeb22fdcf947e0e5ec32373aa9df7c31f3ef45dbd0ef7b5940fbce3c20f6a",
        ),
        _imagenet(
            "mobilenet_v1_0.5_160_quant",
            0.5,
            160,
            accuracy=_slim_accuracy("57.7", revision="2018-02"),
            url=f"{CORAL}mobilenet_v1_0.5_160_quant.tflite",
            size=1_392_846,
            sha256="3cc6d2ca460abd2e0f699a6d0d2550c6b61c6e3b0e27a3616e384ea74cb86f43",
        ),
        _imagenet(
            "mobilenet_v1_0.25_128_quant",
            0.25,
            128,
            accuracy=_slim_accuracy("39.9", revision="2018-02"),
            url=f"{CORAL}mobilenet_v1_0.25_128_quant.tflite",
            size=525_598,
            sha256="cb273c23ee76374b05b9583177e28aa19744858a7679c56a250e83d0333da785",
        ),
        _imagenet(
            "mobilenet_v1_0.25_224_quant",
            0.25,
            224,
            url=f"{vision}mobilenet_v1_0.25_224_quant.tflite",
            size=508_786,
            sha256="e480eb15572f86d3d5f1be6e83e35b3c7d509ab2bcec353707d1f614e14edca2",
            note="TF-slim's table gives such a network top-1 48.0 or 48.2, by revision",
        ),
        _imagenet(
            "mobilenet_v1_0.25_224_float",
            0.25,
            224,
            numbers="float32",
            accuracy=_slim_accuracy("49.8", revision="2018-02"),
            url=f"{vision}mobilenet_v1_0.25_224_1_default_1.tflite",
            size=1_882_904,
            sha256="446ec673881cd46371a8726075b714194ada39d144762260cb76d15318597df7",
        ),
    ]


SLIM_TOP_1: Mapping[str, tuple[str, str]] = {
    "1.0_224": ("70.9", "70.1"),
    "1.0_192": ("70.0", "69.2"),
    "1.0_160": ("68.0", "67.2"),
    "1.0_128": ("65.2", "63.4"),
    "0.75_224": ("68.4", "66.8"),
    "0.75_192": ("67.2", "66.1"),
    "0.75_160": ("65.3", "62.3"),
    "0.75_128": ("62.1", "55.8"),
    "0.5_224": ("63.3", "60.7"),
    "0.5_192": ("61.7", "60.0"),
    "0.5_160": ("59.1", "57.7"),
    "0.5_128": ("56.3", "54.5"),
    "0.25_224": ("49.8", "48.0"),
    "0.25_192": ("47.7", "46.0"),
    "0.25_160": ("45.5", "43.4"),
    "0.25_128": ("41.5", "39.5"),
}
"""Top-1 in float32 and in 8 bits: research/slim/nets/mobilenet_v1.md of tensorflow/models, revision of August 2018."""

SLIM_SHA256 = {
    "mobilenet_v1_1.0_224": "2fadeabb9968ec6833bee903900dda6e61b3947200535874ce2fe42a8493abc0",
    "mobilenet_v1_1.0_224_quant": "d32432d28673a936b2d6281ab0600c71cf7226dfe4cdcef3012555f691744166",
}
"""Of the archives that TensorFlow's own build pins (tensorflow/workspace2.bzl)."""

SLIM_ELSEWHERE = {"mobilenet_v1_0.25_224"} | {
    f"mobilenet_v1_{form}_quant" for form in ("0.75_192", "0.5_160", "0.25_128", "0.25_224")
}
"""Networks of TF-slim that `_pinned` has without an archive around them."""


def _tf_slim() -> list[Entry]:
    """Google's own ImageNet networks, each in an archive with a checkpoint many times its size."""
    return [
        _imagenet(
            name,
            float(form.split("_")[0]),
            int(form.split("_")[1]),
            numbers=numbers,
            accuracy=_slim_accuracy(top_1),
            url=f"{TF_SLIM}{name}.tgz",
            sha256=SLIM_SHA256.get(name),
            member=f"{name}.tflite",
        )
        for form, both in SLIM_TOP_1.items()
        for top_1, numbers, ending in zip(both, ("float32", "8-bit"), ("", "_quant"), strict=True)
        if (name := f"mobilenet_v1_{form}{ending}") not in SLIM_ELSEWHERE
    ]


def _slim_accuracy(top_1: str, *, revision: str = "2018-08") -> str:
    return f"top-1 {top_1}, ILSVRC val, TF-slim {revision}"


def _keras() -> list[Entry]:
    """Keras Applications' files, at the addresses that keras/src/applications/mobilenet.py builds."""
    kinds: dict[str, Kind] = {"tf": "classifier", "tf_no_top": "backbone"}
    stated = {"mobilenet_1_0_224_tf": "top-1 70.4, ILSVRC val, Keras"}  # the only one in its table of applications
    return [
        _imagenet(
            name,
            alpha,
            side,
            numbers="float32",
            kind=kind,
            accuracy=stated.get(name),
            url=f"{KERAS}{name}.h5",
            suffix=".h5",
        )
        for ending, kind in kinds.items()
        for text, alpha in (("1_0", 1.0), ("7_5", 0.75), ("5_0", 0.5), ("2_5", 0.25))
        for side in (224, 192, 160, 128)
        for name in (f"mobilenet_{text}_{side}_{ending}",)
    ]


def _timm() -> list[Entry]:
    """Newer trainings of the same network; accuracies from timm's results-imagenet.csv."""
    return [
        _imagenet(
            name,
            alpha,
            224,
            numbers="float32",
            accuracy=f"top-1 {top_1}, ILSVRC val, timm",
            url=f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors",
            suffix=".safetensors",
        )
        for name, alpha, top_1 in (
            ("mobilenetv1_100.ra4_e3600_r224_in1k", 1.0, "75.39"),
            ("mobilenetv1_100h.ra4_e3600_r224_in1k", 1.0, "75.66"),
            ("mobilenetv1_125.ra4_e3600_r224_in1k", 1.25, "76.92"),
        )
    ]


TORCHVISION_FILES = (
    ("mobilenet_v2", "v1", 224, "71.878", "mobilenet_v2-b0353104"),
    ("mobilenet_v2", "v2", 224, "72.154", "mobilenet_v2-7ebf99e0"),
    ("mobilenet_v3_large", "v1", 224, "74.042", "mobilenet_v3_large-8738ca79"),
    ("mobilenet_v3_large", "v2", 224, "75.274", "mobilenet_v3_large-5c1a4163"),
    ("mobilenet_v3_small", "v1", 224, "67.668", "mobilenet_v3_small-047dcff4"),
    ("vgg16", "v1", 224, "71.592", "vgg16-397923af"),
    ("googlenet", "v1", 224, "69.778", "googlenet-1378be20"),
    ("inception_v3", "v1", 299, "77.294", "inception_v3_google-0cc3c7bd"),
    ("squeezenet", "v1", 224, "58.178", "squeezenet1_1-b8a52dc0"),
)
"""Backbone, version of the weights, side of the input, top-1 and file, from torchvision.models' `…_Weights`. The file's
name ends with the start of its sha256."""


def _torchvision() -> list[Entry]:
    """Networks of other families than MobileNetV1, as torchvision publishes them."""
    return [
        Entry(
            name=f"{backbone}.torchvision_imagenet1k_{version}",
            description="ImageNet, float32",
            kind="classifier",
            alpha=1.0,
            input_hw=(side, side),
            accuracy=f"top-1 {top_1}, ILSVRC val, torchvision",
            licence=BSD,
            url=f"{TORCHVISION}{file}.pth",
            suffix=".pth",
            sha256_start=file.rpartition("-")[2],
            note=f"of model.backbone={backbone}; the licence is that of torchvision's code, it states none for weights",
            backbone=backbone,
        )
        for backbone, version, side, top_1, file in TORCHVISION_FILES
    ]


CATALOGUE: tuple[Entry, ...] = (*_pinned(), *_tf_slim(), *_keras(), *_timm(), *_torchvision())
_BY_NAME = {entry.name: entry for entry in CATALOGUE}


def weights_folder() -> Path:
    """Where published weights lie in the user's cache."""
    return cache_folder() / "weights"


def find_entry(name: str) -> Entry:
    """The published file of that name.

    Raises:
        CheckpointError: there is none.
    """
    entry = _BY_NAME.get(name)
    if entry is None:
        raise CheckpointError(f"{name}: no published weights of that name{_did_you_mean(name)}")
    return entry


def imagenet_weights(backbone: str, *, alpha: float) -> Entry | None:
    """The ImageNet weights to start a backbone of this width from: the first in the catalogue, if there are any.

    Of MobileNetV1, those at addresses that do not change come first: at every width 8-bit weights of one
    series, each trained at an input size of its own.
    """
    fitting = (entry for entry in CATALOGUE if entry.kind != "detector" and entry.backbone == backbone)
    return next((entry for entry in fitting if entry.alpha == alpha), None)


def local_path(entry: Entry) -> Path:
    """Where a published file lies in the cache, or is to lie."""
    return weights_folder() / f"{entry.name}{entry.suffix}"


def pull(entry: Entry, *, source: str | None = None, console: Console | None = None) -> Path:
    """A published file in the user's cache, fetched where it is not there yet.

    A file whose sha256 nobody published, or the start of it only, is trusted at first: its own is recorded beside it,
    in `FILE.sha256`, and checked from then on.

    Args:
        entry: what to fetch.
        source: another address, or a file fetched by hand: the file itself, or the archive it comes in. It is taken
            even where the cache has the file already, and verified alike.
        console: shows the progress where it is a terminal.

    Raises:
        CheckpointError: there is no file at `source`.
        DownloadError: no network, no room, or not the file that was published.
        DataError: a damaged archive.
    """
    path = local_path(entry)
    if path.is_file() and source is None:
        _verify(entry, path)
        return path
    _require_writable(path.parent)
    from mnet_det.download import one_at_a_time  # its network side is slow to import, and the demo's start is watched

    with one_at_a_time(path, console=console):
        if source is None and path.is_file():
            return path  # another process fetched it in the meantime
        recorded = _record(entry).is_file()
        if source is None or "://" in source:
            _pull_from_address(entry, source or entry.url, console=console)
        elif Path(source).is_file():
            _take(entry, Path(source))
        else:
            raise CheckpointError(f"{source}: no such file; expected {_expected_files(entry)}")
        if console is not None and _record(entry).is_file() and not recorded:
            known = "no whole sha256" if entry.sha256_start else "no sha256"
            note = f"{known} of {path.name} is published: this file's is recorded, and compared from now on"
            console.print(note, markup=False, highlight=False)
    return path


def find_model(word: str | Path, *, console: Console | None = None) -> Path:
    """The file that a word on the command line means: a path, or a published name, which is pulled.

    A path that does not exist comes back as it is: whoever reads it says what is missing.

    Raises:
        CheckpointError: neither looks like a file nor is a published name.
        DownloadError: see `pull`.
    """
    path, name = Path(word), str(word)
    if name in _BY_NAME:  # first: a folder that happens to be called so is no model, and ./NAME still means it
        return pull(_BY_NAME[name], console=console)
    if path.exists() or path.suffix.lower() in MODEL_SUFFIXES or "/" in name or os.sep in name:
        return path
    raise CheckpointError(f"{name}: neither a file nor the name of published weights{_did_you_mean(name)}")


def find_detector(word: str | Path, *, console: Console | None = None) -> Path:
    """As `find_model`, of a detector: a published name that is none is refused before anything is fetched.

    Raises:
        CheckpointError: see there, or the name is that of ImageNet weights.
        DownloadError: see `pull`.
    """
    entry = _BY_NAME.get(str(word))
    if entry is not None and entry.kind != "detector":
        raise CheckpointError(f"{word}: an ImageNet {entry.kind}, not a detector; train one with model.init={word}")
    return find_model(word, console=console)


def is_model(word: str) -> bool:
    """Whether a word means a model, by its name alone, and not an image, a film or a folder."""
    return word in _BY_NAME or Path(word).suffix.lower() in MODEL_SUFFIXES


def _pull_from_address(entry: Entry, url: str, *, console: Console | None) -> None:
    from mnet_det.download import check_address, download

    check_address(url)
    path = local_path(entry)
    # With the entry's name in front: all of timm's files are called model.safetensors.
    fetched = path.parent / "downloads" / f"{entry.name}-{PurePosixPath(urlsplit(url).path).name}"
    is_published = entry.member is None or _is_archive(fetched)  # else it is the member alone, whose hash is not known
    if console is not None:
        console.print(f"fetching {entry.name} from {urlsplit(url).hostname}", markup=False, highlight=False)
    try:
        download(
            url,
            fetched,
            sha256=entry.sha256 if is_published else None,
            size=entry.size if is_published else None,
            hint=(
                f"or fetch {url} elsewhere, and put {path.name} at {path} or run "
                f"`mnet-det weights pull {entry.name} --from FILE`"
            ),
            console=console,
        )
        if is_published and entry.member is not None:
            _take(entry, fetched)
        else:
            _verify(entry, fetched)
            os.replace(fetched, path)
    finally:
        fetched.unlink(missing_ok=True)  # what was refused is not to be found again


def _take(entry: Entry, fetched: Path) -> None:
    """Put a file, or what an archive holds of it, into the cache if it is what was published."""
    unpack = entry.member is not None and _is_archive(fetched)
    if unpack and entry.sha256 is not None:
        _compare(fetched, sha256_of(fetched), entry.sha256, mend="fetch it again")
    with whole_file(local_path(entry)) as temporary:
        if unpack and entry.member is not None:
            from mnet_det.download import extract_member

            extract_member(fetched, entry.member, temporary)
        else:
            shutil.copyfile(fetched, temporary)
        _verify(entry, temporary)


def _verify(entry: Entry, file: Path) -> None:
    """Compare with what was published, or with what was there the first time, or record that this is the first."""
    path, record, digest = local_path(entry), _record(entry), sha256_of(file)
    mend = "delete it, and pull it again" if file == path else "nothing was kept"
    if entry.member is None and entry.sha256 is not None:
        _compare(path, digest, entry.sha256, mend=mend)
    elif record.is_file():
        first = record.read_text(encoding="utf-8").partition(" ")[0].strip()
        _compare(path, digest, first, mend=f"to accept the other file, delete {record}")
    else:
        if entry.sha256_start:
            _compare(path, digest[: len(entry.sha256_start)], entry.sha256_start, mend=mend)
        else:
            _check_first_bytes(entry, file)
        # A file put by hand into a cache that cannot be written is usable all the same.
        with suppress(MnetDetError) if file == path else nullcontext():
            write_text(record, f"{digest}  {path.name}\n")  # as sha256sum writes and checks it


def _record(entry: Entry) -> Path:
    """Where the sha256 is kept that nobody published."""
    path = local_path(entry)
    return path.with_name(f"{path.name}.sha256")


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DownloadError(
            f"{folder}: cannot be written ({error.strerror}); set MNET_DET_CACHE to a folder that can"
        ) from None


def _check_first_bytes(entry: Entry, file: Path) -> None:
    offset, magic = FIRST_BYTES[entry.suffix]
    with file.open("rb") as opened:
        start = opened.read(offset + len(magic))
    if start[offset:] != magic:
        mend = (
            f"delete {file}, and pull it again" if file == local_path(entry) else f"expected {_expected_files(entry)}"
        )
        raise DownloadError(f"{entry.name}: not a {entry.suffix} file: it begins with {start!r}; {mend}")


def _compare(path: Path, digest: str, expected: str, *, mend: str) -> None:
    if digest != expected:
        raise DownloadError(f"{path}: not the file that is known: sha256 {digest}, expected {expected}; {mend}")


def _is_archive(path: Path) -> bool:
    return path.name.endswith(ARCHIVE_SUFFIXES)


def _expected_files(entry: Entry) -> str:
    file = f"{entry.name}{entry.suffix}"
    return file if entry.member is None else f"{file} or the archive {PurePosixPath(entry.url).name}"


def _did_you_mean(name: str) -> str:
    close = difflib.get_close_matches(name, _BY_NAME, n=1)
    return f"; did you mean {close[0]}?" if close else "; `mnet-det weights list` shows all names"
