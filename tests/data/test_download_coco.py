"""COCO from a server in this process: archives of three small images, with hashes of their own."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from mnet_det.config import DataConfig, Split
from mnet_det.data import download_coco as module
from mnet_det.data import open_data
from mnet_det.data.download_coco import PARTS, Part, download_coco
from mnet_det.download import download
from mnet_det.errors import ConfigError, DataError, DownloadError

IMAGES: dict[Split, tuple[str, ...]] = {
    "train": ("000000000009.jpg", "000000000025.jpg", "000000000030.jpg"),
    "val": ("000000000139.jpg", "000000000285.jpg"),
}
BOXES = {split: f"annotations/instances_{split}2017.json" for split in IMAGES}


@dataclass
class Coco:
    """A small COCO on a server.

    Attributes:
        files: what is served, by path.
        cuts: how many bytes of each of the next answers arrive.
        asked: path and Range of each request.
        slept: the seconds waited between tries.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)


@pytest.fixture
def coco(monkeypatch: pytest.MonkeyPatch) -> Iterator[Coco]:
    """The server, and PARTS with the sizes and sums of what it has."""
    state = Coco()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers.get("Range")))
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            body = content[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"one"')
            self.end_headers()
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(module, "download", partial(download, sleep=state.slept.append))
    serve(state, archives(), monkeypatch)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        state.url = f"http://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        listening.shutdown()
        thread.join()


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def annotation_file(split: Split) -> bytes:
    images = [{"id": int(Path(name).stem), "file_name": name, "width": 32, "height": 24} for name in IMAGES[split]]
    box = {"id": 1, "image_id": images[0]["id"], "category_id": 18, "bbox": [1, 2, 10, 12], "area": 120, "iscrowd": 0}
    return json.dumps({"images": images, "annotations": [box], "categories": [{"id": 18, "name": "dog"}]}).encode()


def zipped(members: Mapping[Any, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return buffer.getvalue()


def archives() -> dict[str, bytes]:
    """As COCO's are: a folder first, images stored, annotations with other files beside."""
    seeds = iter(range(10))
    made: dict[str, bytes] = {
        split: zipped({f"{split}2017/": b""} | {f"{split}2017/{name}": jpeg(next(seeds)) for name in names})
        for split, names in IMAGES.items()
    }
    boxes = {BOXES[split]: annotation_file(split) for split in IMAGES}
    return made | {"annotations": zipped(boxes | {"annotations/captions_val2017.json": b"{}"})}


def serve(state: Coco, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for part in PARTS:
        content = contents[part.name]
        state.files[f"/{part.address}"] = content
        sha256 = hashlib.sha256(content).hexdigest()
        parts.append(replace(part, size=len(content), sha256=sha256, unpacked=len(content)))
    monkeypatch.setattr(module, "PARTS", tuple(parts))


def serve_val(state: Coco, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(state, archives() | {"val": content}, monkeypatch)


def contents(out: Path) -> list[str]:
    """All files that a user sees."""
    files = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
    return sorted(file.as_posix() for file in files if not file.name.startswith("."))


def everything(*splits: Split) -> list[str]:
    return sorted([*BOXES.values(), *(f"{split}2017/{name}" for split in splits for name in IMAGES[split])])


def told(action: Callable[[Console], None]) -> str:
    stream = io.StringIO()
    action(Console(file=stream, width=80))
    return stream.getvalue()


def test_a_fresh_run_gives_the_layout_that_data_root_reads(coco: Coco, tmp_path: Path) -> None:
    out = tmp_path / "new" / "coco"
    download_coco(out, address=coco.url)
    assert contents(out) == everything("train", "val")  # no archive, no captions
    for split, names in IMAGES.items():
        data = open_data(DataConfig(root=out), split)
        assert [data.path(index).name for index in range(len(data))] == list(names)
        assert data.image(0).shape == (24, 32, 3)
        assert data.truth(0).boxes_xyxy.tolist() == [[1, 2, 11, 14]]  # xywh 1 2 10 12
    assert [path for path, _ in coco.asked] == [f"/{part.address}" for part in PARTS]


def test_the_table_names_the_folders_of_data_root(tmp_path: Path) -> None:
    config, folders = DataConfig(root=tmp_path), {part.name: tmp_path / part.folder for part in PARTS}
    for split in IMAGES:
        assert config.images(split) == folders[split]
        assert config.annotations(split).parent == folders["annotations"]


def test_a_second_run_asks_the_server_nothing_and_writes_nothing(coco: Coco, tmp_path: Path) -> None:
    download_coco(tmp_path, address=coco.url)
    coco.asked.clear()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    said = told(lambda console: download_coco(tmp_path, address="http://nowhere.invalid", console=console))
    assert coco.asked == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert said.splitlines() == [f"{part.name}: all files are in {tmp_path / part.folder}" for part in PARTS]


def test_parts_are_fetched_alone_and_the_rest_later(coco: Coco, tmp_path: Path) -> None:
    download_coco(tmp_path, only=["val", "annotations"], address=coco.url)
    assert contents(tmp_path) == everything("val")
    coco.asked.clear()
    download_coco(tmp_path, address=coco.url)
    assert contents(tmp_path) == everything("train", "val")
    assert [path for path, _ in coco.asked] == ["/zips/train2017.zip"]


@pytest.mark.parametrize(("only", "named"), [(["val", "test"], "test"), ([], "nothing")])
def test_a_part_that_is_none_is_answered_with_those_there_are(only: list[str], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{named}: no part of COCO; expected some of annotations, val, train$"):
        download_coco(tmp_path / "coco", only=only)
    assert contents(tmp_path) == []


def test_a_cut_connection_goes_on_where_it_stopped(coco: Coco, tmp_path: Path) -> None:
    coco.cuts = [500]
    download_coco(tmp_path, only=["val"], address=coco.url)
    assert coco.asked == [("/zips/val2017.zip", None), ("/zips/val2017.zip", "bytes=500-")]
    assert coco.slept == [1]


def test_a_run_that_was_stopped_in_the_middle_of_a_file_is_gone_on_with(
    coco: Coco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ctrl_c(seconds: float) -> None:
        raise KeyboardInterrupt

    coco.cuts = [500]
    with monkeypatch.context() as patch:
        patch.setattr(module, "download", partial(download, sleep=ctrl_c))
        with pytest.raises(KeyboardInterrupt):
            download_coco(tmp_path, only=["val"], address=coco.url)
    download_coco(tmp_path, only=["val"], address=coco.url)
    assert coco.asked[-1] == ("/zips/val2017.zip", "bytes=500-")
    assert len(contents(tmp_path)) == 2


def test_another_file_than_was_published_is_refused_and_not_unpacked(coco: Coco, tmp_path: Path) -> None:
    good = coco.files["/zips/val2017.zip"]
    coco.files["/zips/val2017.zip"] = good[:-1] + b"x"
    with pytest.raises(DownloadError, match=r"val2017\.zip: the file has sha256 .*, expected .*--from"):
        download_coco(tmp_path, only=["val"], address=coco.url)
    assert contents(tmp_path) == []


@pytest.mark.parametrize("keep_archives", [True, False])
def test_a_disk_without_room_is_found_before_the_first_byte(
    coco: Coco, tmp_path: Path, keep_archives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive of one part is gone before the next one comes, unless it is kept."""
    sizes = [len(coco.files[f"/{part.address}"]) for part in PARTS]  # unpacked, as large again
    needed = 2 * sum(sizes) if keep_archives else max(sum(sizes[: index + 1]) + sizes[index] for index in range(3))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(DownloadError, match=r"no room for annotations, val, train with the archives: .* MB free; make"):
        download_coco(tmp_path, address=coco.url, keep_archives=keep_archives)
    assert coco.asked == []
    assert contents(tmp_path) == []
    monkeypatch.setattr(module, "BLOCK_BYTES", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    download_coco(tmp_path, address=coco.url, keep_archives=keep_archives)


def test_what_has_arrived_already_needs_no_room(coco: Coco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = next(part for part in module.PARTS if part.name == "val")
    (tmp_path / "val2017.zip").write_bytes(coco.files["/zips/val2017.zip"])
    monkeypatch.setattr(module, "BLOCK_BYTES", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=part.unpacked))
    said = told(lambda console: download_coco(tmp_path, only=["val"], address=coco.url, console=console))
    assert coco.asked == []  # also how an archive that was fetched by hand is used
    assert said.splitlines()[0] == f"val: verifying {tmp_path / 'val2017.zip'}"


def test_an_interrupted_unpacking_is_gone_on_with(coco: Coco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []

    def copy(source: Any, target: Any) -> None:
        copied.append(source.name)
        target.write(source.read(100))
        if len(copied) == 2:
            raise KeyboardInterrupt
        target.write(source.read())

    monkeypatch.setattr(shutil, "copyfileobj", copy)
    with pytest.raises(KeyboardInterrupt):
        download_coco(tmp_path, only=["train"], address=coco.url)
    assert contents(tmp_path) == ["train2017.zip", f"train2017/{IMAGES['train'][0]}"]
    download_coco(tmp_path, only=["train"], address=coco.url)
    first, second, third = (f"train2017/{name}" for name in IMAGES["train"])
    assert contents(tmp_path) == [first, second, third]
    assert copied == [first, second, second, third]  # the first was not written again
    assert len(coco.asked) == 1


def test_half_a_file_of_another_program_is_replaced(coco: Coco, tmp_path: Path) -> None:
    half = tmp_path / "val2017" / IMAGES["val"][0]
    half.parent.mkdir()
    half.write_bytes(b"half")
    download_coco(tmp_path, address=coco.url)
    assert open_data(DataConfig(root=tmp_path), "val").image(0).shape == (24, 32, 3)


def test_a_deleted_image_is_noticed_and_comes_again(coco: Coco, tmp_path: Path) -> None:
    """Also where a file of the user's makes the number right again."""
    download_coco(tmp_path, address=coco.url)
    coco.asked.clear()
    lost = tmp_path / "train2017" / IMAGES["train"][1]
    lost.rename(lost.with_name("mine.jpg"))
    said = told(lambda console: download_coco(tmp_path, address=coco.url, console=console))
    assert f"train: 1 of its files missing from {lost.parent}, such as {lost.name}; fetched again" in said.splitlines()
    assert lost.is_file()
    assert lost.with_name("mine.jpg").is_file()
    assert coco.asked == [("/zips/train2017.zip", None)]


@pytest.mark.parametrize("record", ["", "[]", '{"sha256": 5}', '{"sha256": "of another archive", "files": []}'])
def test_a_record_that_says_nothing_is_not_believed(coco: Coco, tmp_path: Path, record: str) -> None:
    download_coco(tmp_path, only=["val"], address=coco.url)
    (tmp_path / ".val2017.json").write_text(record)
    shutil.rmtree(tmp_path / "val2017")
    download_coco(tmp_path, only=["val"], address=coco.url)
    assert len(contents(tmp_path)) == 2


def test_kept_archives_stay(coco: Coco, tmp_path: Path) -> None:
    download_coco(tmp_path, address=coco.url, keep_archives=True)
    kept = ["annotations_trainval2017.zip", "train2017.zip", "val2017.zip"]
    assert contents(tmp_path) == sorted([*everything("train", "val"), *kept])


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("val2017/000000000139.jpg")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "member",
    [
        "../outside.jpg",
        "val2017/../../outside.jpg",
        "/outside.jpg",
        "val2017\\..\\outside.jpg",
        "c:outside.jpg",
        link(),
    ],
    ids=["up", "down and up", "absolute", "backslash", "drive", "link"],
)
def test_an_archive_that_leads_elsewhere_is_not_unpacked_at_all(
    coco: Coco, tmp_path: Path, member: str | zipfile.ZipInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_val(coco, zipped({"val2017/000000000001.jpg": b"first", member: b"/etc/passwd"}), monkeypatch)
    with pytest.raises(DataError, match=r"val2017\.zip: holds .*, which is a link or leads elsewhere"):
        download_coco(tmp_path / "coco", only=["val"], address=coco.url)
    assert contents(tmp_path) == ["coco/val2017.zip"]


def test_other_folders_of_an_archive_stay_in_it(coco: Coco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = ["val2017/a.jpg", "val2017/deep/b.jpg", "__MACOSX/val2017/a.jpg", "val2017/a.txt", "a.jpg"]
    serve_val(coco, zipped(dict.fromkeys(members, b"content")), monkeypatch)
    download_coco(tmp_path, only=["val"], address=coco.url)
    assert contents(tmp_path) == ["val2017/a.jpg"]


def flipped(content: bytes) -> bytes:
    """One byte of the first image differs, whose checksum no longer fits."""
    place = content.index(b"content")
    return content[:place] + b"C" + content[place + 1 :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no zip", "no sound archive .*; delete it and run the command again"),
        (flipped(zipped({"val2017/a.jpg": b"content"})), "no sound archive .*Bad CRC-32.*; delete it"),
        (zipped({"images/a.jpg": b"content"}), r"holds no val2017/\*\.jpg"),
    ],
    ids=["no zip", "flipped", "nothing for us"],
)
def test_an_archive_that_is_none_is_one_message(
    coco: Coco, tmp_path: Path, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_val(coco, content, monkeypatch)
    with pytest.raises(DataError, match=rf"val2017\.zip: {message}"):
        download_coco(tmp_path, only=["val"], address=coco.url)
    assert contents(tmp_path) == ["val2017.zip"]


def test_a_disk_that_fills_up_in_the_middle_is_one_message_and_the_next_run_goes_on(
    coco: Coco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        with pytest.raises(DownloadError, match=re.escape(f"{tmp_path / 'val2017'}: the disk is full; make room and")):
            download_coco(tmp_path, only=["val"], address=coco.url)
    assert contents(tmp_path) == ["val2017.zip"]
    download_coco(tmp_path, only=["val"], address=coco.url)
    assert len(coco.asked) == 1


def test_a_folder_that_cannot_be_made_is_one_message(coco: Coco, tmp_path: Path) -> None:
    (tmp_path / "coco").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be written"):
        download_coco(tmp_path / "coco", address=coco.url)


def test_a_missing_file_names_the_ways_out(coco: Coco, tmp_path: Path) -> None:
    coco.files.clear()
    with pytest.raises(DownloadError, match=r"404 .*; http.* can also be fetched elsewhere and put at .*zip, or name"):
        download_coco(tmp_path, address=coco.url)


@pytest.mark.parametrize("address", ["nonsense", "ftp://there", ""])
def test_an_address_that_is_none_is_refused_before_anything(tmp_path: Path, address: str) -> None:
    said = io.StringIO()
    with pytest.raises(DownloadError, match=f"^{address}: not an address to fetch from; expected http://"):
        download_coco(tmp_path / "coco", address=address, console=Console(file=said))
    assert (said.getvalue(), contents(tmp_path)) == ("", [])


def test_large_sizes_are_told_in_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With COCO's own sizes: 19.3 GB of archive, and as much and 0.5 GB for blocks of the disk once unpacked."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=999_000_000))
    with pytest.raises(DownloadError, match=r"39\.2 GB to come, 999\.0 MB free"):
        download_coco(tmp_path, only=["train"])


# The command


def test_the_command_fetches_then_says_that_all_is_there(coco: Coco, tmp_path: Path, cli: Callable[..., Any]) -> None:
    out = tmp_path / "coco"
    first = cli("download", "coco", "--out", out, "--from", f"{coco.url}/")
    assert (first.status, first.out) == (0, f"COCO 2017 is in {out}; use it with data.root={out}\n")
    assert f"train: unpacked 3 files into {out / 'train2017'}" in first.err.splitlines()
    again = cli("download", "coco", "--out", out, "--from", "http://nowhere.invalid")
    assert (again.status, again.out) == (0, first.out)
    assert "all files are in" in again.err


def test_the_command_takes_a_part_and_keeps_its_archive(coco: Coco, tmp_path: Path, cli: Callable[..., Any]) -> None:
    answer = cli("download", "coco", "--out", tmp_path, "--from", coco.url, "--only", "val,", "--keep-archives")
    assert answer.status == 0
    assert contents(tmp_path) == ["val2017.zip", *(f"val2017/{name}" for name in IMAGES["val"])]


@pytest.mark.parametrize("only", ["vla", ""])
def test_the_command_refuses_a_part_that_is_none(only: str, tmp_path: Path, cli: Callable[..., Any]) -> None:
    answer = cli("download", "coco", "--out", tmp_path / "coco", "--only", only)
    assert answer.status == 1
    assert "no part of COCO; expected some of annotations, val, train" in answer.err


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(out: Path, part: Part, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_fetch", stopped)
    answer = cli("download", "coco", "--out", tmp_path, "--only", "annotations")
    assert answer.status == 130
    assert "stopped; the same command goes on from here" in answer.err
