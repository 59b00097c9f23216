"""The catalogue agrees with itself and with the files at hand; pulling verifies, records and refuses."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import socket
import tarfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torchvision
from rich.console import Console

from mnet_det import download as downloading
from mnet_det.cache import cache_folder
from mnet_det.catalogue import (
    CATALOGUE,
    DEFAULT_DETECTOR,
    FIRST_BYTES,
    Entry,
    find_detector,
    find_entry,
    find_model,
    is_model,
    local_path,
    pull,
    weights_folder,
)
from mnet_det.errors import CheckpointError, DataError, DownloadError
from mnet_det.models.torchvision_backbones import TORCHVISION_BACKBONES

H5 = b"\x89HDF\r\n\x1a\n"
TFLITE = b"\0\0\0\0TFL3 and the rest"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MNET_DET_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file fetched by hand."""
    path = tmp_path / "by-hand.tflite"
    path.write_bytes(TFLITE)
    return path


def pinned(content: bytes = TFLITE) -> Entry:
    digest = hashlib.sha256(content).hexdigest()
    return replace(find_entry(DEFAULT_DETECTOR), sha256=digest, size=len(content))


def archived() -> Entry:
    return find_entry("mobilenet_v1_0.75_128")


def make_tgz(path: Path, name: str, content: bytes) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return path


def record_of(entry: Entry) -> Path:
    return local_path(entry).with_name(f"{local_path(entry).name}.sha256")


def test_names_and_addresses_are_unique() -> None:
    assert len({entry.name for entry in CATALOGUE}) == len({entry.url for entry in CATALOGUE}) == len(CATALOGUE)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_an_entry_agrees_with_itself(entry: Entry) -> None:
    parts = urlsplit(entry.url)
    assert parts.scheme == "https"
    assert entry.suffix in FIRST_BYTES or entry.sha256_start
    assert parts.path.endswith(".tgz" if entry.member else entry.suffix)
    assert entry.member in (None, f"{entry.name}{entry.suffix}")
    assert entry.sha256 is None or (len(entry.sha256) == 64 and set(entry.sha256) <= set("0123456789abcdef"))
    assert entry.input_hw[0] == entry.input_hw[1]
    named = re.match(r"mobilenet_(?:v1_)?(\d[._]\d+)_(\d+)_?", entry.name)
    if named:  # Keras writes 7_5 for 0.75
        number = float(named[1].replace("_", "."))
        assert entry.alpha == (number / 10 if number > 1 else number)
        assert entry.input_hw[0] == int(named[2])


def test_keras_has_sixteen_classifiers_and_as_many_backbones() -> None:
    keras = [entry for entry in CATALOGUE if entry.suffix == ".h5"]
    for kind, ending in (("classifier", "_tf"), ("backbone", "_tf_no_top")):
        sizes = {(entry.alpha, entry.input_hw[0]) for entry in keras if entry.kind == kind}
        assert sizes == {(alpha, side) for alpha in (1.0, 0.75, 0.5, 0.25) for side in (224, 192, 160, 128)}
        assert sum(entry.name.endswith(ending) for entry in keras) == 16


def test_torchvisions_files_are_those_that_torchvision_names() -> None:
    """It knows some files more: the features of another VGG16, without a classifier."""
    theirs = {}
    for family in ("MobileNet_V2", "MobileNet_V3_Large", "MobileNet_V3_Small", "VGG16", "GoogLeNet", "Inception_V3"):
        theirs |= {weights.url: weights for weights in getattr(torchvision.models, f"{family}_Weights")}
    theirs |= {weights.url: weights for weights in torchvision.models.SqueezeNet1_1_Weights}
    ours = [entry for entry in CATALOGUE if "torchvision" in entry.name]
    for entry in ours:
        weights = theirs[entry.url]
        assert entry.name.endswith(f".torchvision_{weights.name.lower()}")
        assert entry.accuracy == f"top-1 {weights.meta['_metrics']['ImageNet-1K']['acc@1']}, ILSVRC val, torchvision"
        assert entry.input_hw == (weights.transforms().crop_size[0],) * 2
        assert re.fullmatch("[0-9a-f]{8}", entry.sha256_start)
        assert entry.name.partition(".")[0] in TORCHVISION_BACKBONES
    assert len(ours) == len(theirs) - 1


def test_a_file_is_compared_with_the_start_of_its_sha256(file: Path) -> None:
    entry = replace(find_entry("vgg16.torchvision_imagenet1k_v1"), sha256_start=hashlib.sha256(TFLITE).hexdigest()[:8])
    with pytest.raises(DownloadError, match=r"sha256 \w{8}, expected 397923af; nothing was kept"):
        pull(find_entry(entry.name), source=str(file))
    assert not local_path(entry).exists()
    shown = Console(file=io.StringIO(), width=200)
    assert pull(entry, source=str(file), console=shown).read_bytes() == TFLITE
    assert isinstance(shown.file, io.StringIO)
    assert "no whole sha256 of vgg16.torchvision_imagenet1k_v1.pth is published" in shown.file.getvalue()
    assert record_of(entry).read_text().startswith(hashlib.sha256(TFLITE).hexdigest())
    local_path(entry).write_bytes(TFLITE[:-1])
    with pytest.raises(DownloadError, match="to accept the other file, delete"):
        pull(entry)


def test_what_no_source_states_is_none() -> None:
    assert find_entry(DEFAULT_DETECTOR).accuracy is None
    assert find_entry("mobilenet_1_0_224_tf").accuracy == "top-1 70.4, ILSVRC val, Keras"
    assert find_entry("mobilenet_7_5_224_tf").accuracy is None
    assert find_entry("mobilenet_v1_0.25_128_quant").accuracy == "top-1 39.9, ILSVRC val, TF-slim 2018-02"


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "file_name"),
    [
        (DEFAULT_DETECTOR, "ssd_mobilenet_v1_coco_quant"),
        *(
            (name, name)
            for name in (
                "mobilenet_v1_0.25_128_quant",
                "mobilenet_v1_0.5_160_quant",
                "mobilenet_v1_0.75_192_quant",
                "mobilenet_v1_1.0_224_quant_embedding_extractor",
                "mobilenet_v1_0.25_224_float",
            )
        ),
    ],
)
def test_the_published_files_are_those_of_the_catalogue(shared: Path, name: str, file_name: str) -> None:
    source = shared / "weights" / f"{file_name}.tflite"
    entry = find_entry(name)
    assert entry.size == source.stat().st_size
    assert pull(entry, source=str(source)).read_bytes() == source.read_bytes()


def test_a_name_with_a_slip_is_answered_with_the_name() -> None:
    with pytest.raises(CheckpointError, match=r"did you mean ssd_mobilenet_v1_0\.75_coco\?"):
        find_entry("ssd_mobilenet_v1_0.75_cocoo")
    with pytest.raises(CheckpointError, match="`mnet-det weights list`"):
        find_entry("xyz")


def test_a_file_lies_in_the_cache_under_its_whole_name() -> None:
    """`Path.with_suffix` took `.75_coco` for the suffix."""
    path = local_path(find_entry(DEFAULT_DETECTOR))
    assert path == cache_folder() / "weights" / "ssd_mobilenet_v1_0.75_coco.tflite"


def test_a_file_fetched_by_hand_is_verified_and_kept(file: Path) -> None:
    entry = pinned()
    assert pull(entry, source=str(file)) == local_path(entry)
    assert local_path(entry).read_bytes() == TFLITE
    file.unlink()
    assert pull(entry) == local_path(entry)  # no network needed any more


def test_a_file_put_into_the_cache_by_hand_is_verified() -> None:
    entry = pinned()
    local_path(entry).parent.mkdir(parents=True)
    local_path(entry).write_bytes(TFLITE)
    assert pull(entry) == local_path(entry)
    local_path(entry).write_bytes(TFLITE[:-1])
    with pytest.raises(DownloadError, match=f"expected {entry.sha256}; delete it, and pull it again"):
        pull(entry)


def test_another_file_than_the_published_one_is_refused(file: Path) -> None:
    entry = pinned(b"the published one")
    found = hashlib.sha256(TFLITE).hexdigest()
    with pytest.raises(DownloadError, match=f"sha256 {found}, expected {entry.sha256}"):
        pull(entry, source=str(file))
    assert not local_path(entry).exists()


def test_a_source_that_is_not_there_is_named() -> None:
    with pytest.raises(
        CheckpointError, match=r"nowhere\.tgz: no such file; expected mobilenet_v1_0\.75_128\.tflite or"
    ):
        pull(archived(), source="nowhere.tgz")


def test_an_unknown_hash_is_recorded_first_and_checked_from_then_on(tmp_path: Path) -> None:
    entry = find_entry("mobilenet_2_5_128_tf")
    first, other = tmp_path / "first.h5", tmp_path / "other.h5"
    first.write_bytes(H5 + b"first")
    other.write_bytes(H5 + b"other")
    path = pull(entry, source=str(first))
    assert record_of(entry).read_text() == f"{hashlib.sha256(H5 + b'first').hexdigest()}  {path.name}\n"
    path.unlink()
    with pytest.raises(DownloadError, match=r"to accept the other file, delete .*mobilenet_2_5_128_tf\.h5\.sha256"):
        pull(entry, source=str(other))
    assert not path.exists()
    record_of(entry).unlink()
    assert pull(entry, source=str(other)).read_bytes() == H5 + b"other"


def test_a_login_page_does_not_become_the_known_file(tmp_path: Path) -> None:
    entry = find_entry("mobilenet_2_5_128_tf")
    page = tmp_path / "page.h5"
    page.write_text("<!DOCTYPE html>")
    with pytest.raises(DownloadError, match=r"not a \.h5 file: it begins with b'<!DOCTYP'"):
        pull(entry, source=str(page))
    assert not record_of(entry).exists()


def test_the_member_comes_out_of_an_archive_and_alone(tmp_path: Path, file: Path) -> None:
    entry = archived()
    archive = make_tgz(tmp_path / "mine.tgz", f"./{entry.member}", TFLITE)
    assert pull(entry, source=str(archive)).read_bytes() == TFLITE
    local_path(entry).unlink()
    assert pull(entry, source=str(file)).read_bytes() == TFLITE  # the member itself, of the recorded hash
    local_path(entry).unlink()
    with pytest.raises(DataError, match="it holds other"):
        pull(entry, source=str(make_tgz(tmp_path / "other.tgz", "other", TFLITE)))


def test_an_archive_of_known_hash_is_verified_before_it_is_opened(tmp_path: Path) -> None:
    entry = find_entry("mobilenet_v1_1.0_224")
    archive = make_tgz(tmp_path / "mine.tgz", str(entry.member), TFLITE)
    with pytest.raises(DownloadError, match=f"expected {entry.sha256}"):
        pull(entry, source=str(archive))
    assert not local_path(entry).exists()
    known = replace(entry, sha256=hashlib.sha256(archive.read_bytes()).hexdigest())
    assert pull(known, source=str(archive)).read_bytes() == TFLITE


class Network:
    """Stands for `download`: remembers what was asked, and writes the file of that address."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked: list[tuple[str, str | None, int | None]] = []

    def __call__(self, url: str, path: Path, *, sha256: str | None, size: int | None, hint: str, console: None) -> str:
        self.asked.append((url, sha256, size))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.content)
        return hashlib.sha256(self.content).hexdigest()


def test_a_pull_asks_the_published_address_once(monkeypatch: pytest.MonkeyPatch) -> None:
    entry, network = pinned(), Network(TFLITE)
    monkeypatch.setattr(downloading, "download", network)
    assert pull(entry) == pull(entry) == local_path(entry)
    assert network.asked == [(entry.url, entry.sha256, len(TFLITE))]
    assert list((weights_folder() / "downloads").iterdir()) == []  # nothing is left of the way


def test_a_mirror_of_the_member_alone_has_not_the_hash_of_the_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    entry, network = find_entry("mobilenet_v1_1.0_224"), Network(TFLITE)
    monkeypatch.setattr(downloading, "download", network)
    pull(entry, source="https://mirror.invalid/net.tflite?raw=1")
    assert network.asked == [("https://mirror.invalid/net.tflite?raw=1", None, None)]


def test_files_of_one_name_at_the_source_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of timm's are called model.safetensors."""
    places: set[Path] = set()

    def download(url: str, path: Path, **_: object) -> str:
        places.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(8) + b"{}")
        return ""

    monkeypatch.setattr(downloading, "download", download)
    timm = [entry for entry in CATALOGUE if entry.suffix == ".safetensors"]
    for entry in timm:
        pull(entry)
    assert len(places) == len(timm) == 3


def test_without_a_network_the_message_says_where_to_put_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        entry = replace(pinned(), url=f"http://127.0.0.1:{closed.getsockname()[1]}/file.tflite")
        with pytest.raises(DownloadError, match=r"^127\.0\.0\.1: cannot be reached") as error:
            pull(entry)
    assert f"put {entry.name}.tflite at {local_path(entry)} or run" in str(error.value)
    assert f"mnet-det weights pull {entry.name} --from FILE" in str(error.value)


def test_a_name_is_a_name_whatever_lies_here(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`predict --out NAME` made a folder, and from then on the published model could not be named in that place."""
    monkeypatch.chdir(tmp_path)
    pull(find_entry("mobilenet_v1_0.75_128"), source=str(file))
    assert find_model("mobilenet_v1_0.75_128") == local_path(archived())
    (tmp_path / "mobilenet_v1_0.75_128").mkdir()
    assert find_model("mobilenet_v1_0.75_128") == local_path(archived())
    assert find_model("./mobilenet_v1_0.75_128") == Path("mobilenet_v1_0.75_128")
    assert find_model(file) == file


@pytest.mark.parametrize("name", ["mobilenet_v1_0.75_128", "mobilenet_5_0_160_tf", "mobilenet_2_5_128_tf_no_top"])
def test_imagenet_weights_are_refused_as_a_detector_before_they_are_fetched(name: str) -> None:
    message = f"^{name}: an ImageNet (classifier|backbone), not a detector; train one with model.init={name}$"
    with pytest.raises(CheckpointError, match=message):
        find_detector(name)


def test_a_file_that_is_named_is_verified_though_the_cache_has_one(file: Path, tmp_path: Path) -> None:
    """`--from gone.tflite` was answered with the path in the cache, as if it had been taken."""
    entry = archived()
    path = pull(entry, source=str(file))
    with pytest.raises(CheckpointError, match=r"gone\.tflite: no such file"):
        pull(entry, source=str(tmp_path / "gone.tflite"))
    other = tmp_path / "other.tflite"
    other.write_bytes(TFLITE + b"more")
    with pytest.raises(DownloadError, match="not the file that is known"):
        pull(entry, source=str(other))
    assert path.read_bytes() == TFLITE


def test_a_flipped_bit_in_an_archive_is_found(tmp_path: Path) -> None:
    """tarfile stops before the checksum: the damaged file was taken, and its hash recorded as the one to trust."""
    plain = make_tgz(tmp_path / "whole.tgz", "mobilenet_v1_0.75_128.tflite", TFLITE + bytes(range(256)) * 40)
    content = gzip.compress(gzip.decompress(plain.read_bytes()), compresslevel=0)  # stored: any byte can be changed
    place = content.index(bytes(range(256))) + 300
    damaged = tmp_path / "damaged.tgz"
    damaged.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(DataError, match=r"no whole archive .*CRC"):
        pull(archived(), source=str(damaged))
    assert not local_path(archived()).exists()
    assert not record_of(archived()).exists()


def test_a_hash_that_nobody_published_is_said_to_be_trusted(file: Path) -> None:
    shown = Console(file=io.StringIO(), width=200)
    pull(archived(), source=str(file), console=shown)
    assert isinstance(shown.file, io.StringIO)
    assert "no sha256 of mobilenet_v1_0.75_128.tflite is published: this file's is recorded" in shown.file.getvalue()


def test_a_cache_that_cannot_be_written_is_named(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("MNET_DET_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(DownloadError, match=r"weights: cannot be written \(.*\); set MNET_DET_CACHE to a folder"):
        pull(archived(), source=str(file))


@pytest.mark.parametrize("word", ["missing.pt", "missing.ONNX", "runs/missing"])
def test_a_path_that_does_not_exist_comes_back_as_it_is(word: str) -> None:
    assert find_model(word) == Path(word)


def test_a_word_that_is_nothing_is_answered_with_a_name() -> None:
    with pytest.raises(CheckpointError, match=r"neither a file nor the name .*; did you mean mobilenet_v1_1\.0_224\?"):
        find_model("mobilenet_v1_1.0_22")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (DEFAULT_DETECTOR, True),
        ("runs/toy/best.pt", True),
        ("model.XML", True),
        ("cat.jpg", False),
        ("folder", False),
        ("0", False),
        ("rtsp://camera/1", False),
    ],
)
def test_a_model_is_told_from_a_source_by_its_name(word: str, expected: bool) -> None:
    assert is_model(word) is expected
