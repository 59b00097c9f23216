import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mnet_det.doctor import install_line
from mnet_det.errors import CheckpointError, MissingPackageError
from mnet_det.runtime import cache
from mnet_det.runtime.cache import exported, load_exported


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand in for the child process: write the word "model" where it should export to, and note the command."""
    seen: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        Path(command[-1]).write_text("model")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(cache.subprocess, "run", run)
    return seen


@pytest.mark.parametrize("name", ["a.onnx", "a.ONNX", "a.xml"])
def test_an_exported_file_is_used_as_it_is(name: str, tmp_path: Path, commands: list[list[str]]) -> None:
    path = tmp_path / name
    path.touch()
    assert exported(path) == path
    assert commands == []


def test_a_checkpoint_is_exported_once(
    tmp_path: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, copy = tmp_path / "best.pt", tmp_path / "copy.pt"
    path.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    first = exported(path)
    assert capsys.readouterr().err == f"converting {path} once, into {first}\n"
    assert exported(path) == exported(copy) == first
    assert first.parent == tmp_path / "cache" / "exported"
    expected = ["-m", "mnet_det", "export", str(path), "--format", "onnx", "--out", str(first)]
    assert commands == [[sys.executable, *expected]]
    assert capsys.readouterr().err == ""


def test_of_two_that_ask_at_once_the_second_waits_for_the_first(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both converted, and the slower one replaced the file that the other had in use."""
    path = tmp_path / "best.pt"
    path.write_bytes(b"weights")
    export, both_ask = cache.subprocess.run, threading.Barrier(2)

    def export_slowly(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        time.sleep(0.1)
        return export(command)

    monkeypatch.setattr(cache.subprocess, "run", export_slowly)

    def ask(_: int) -> str:
        both_ask.wait(10)
        return exported(path).read_text()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, range(2))) == ["model", "model"]
    assert len(commands) == 1


def read_model(path: Path) -> str:
    """Stand in for an engine: it loads a file that holds the word "model"."""
    if path.read_text() != "model":
        raise CheckpointError(f"{path}: damaged")
    return "loaded"


def test_a_damaged_export_in_the_cache_is_made_again(
    tmp_path: Path, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "best.pt"
    path.touch()
    cached = exported(path)
    cached.write_text("mod")
    capsys.readouterr()
    assert load_exported(path, read_model) == "loaded"
    assert capsys.readouterr().err.splitlines() == [
        f"{cached}: damaged (so it is made again)",
        f"converting {path} once, into {cached}",
    ]
    assert load_exported(path, read_model) == "loaded"
    assert len(commands) == 2


def test_an_export_that_never_loads_is_made_again_once(tmp_path: Path, commands: list[list[str]]) -> None:
    def refuse(file: Path) -> str:
        raise CheckpointError(f"{file}: damaged")

    path = tmp_path / "best.pt"
    path.touch()
    with pytest.raises(CheckpointError, match=r"onnx: damaged$"):
        load_exported(path, refuse)
    assert len(commands) == 2


def test_a_damaged_file_of_the_user_s_own_is_left_alone(tmp_path: Path, commands: list[list[str]]) -> None:
    path = tmp_path / "a.onnx"
    path.write_text("mod")
    with pytest.raises(CheckpointError, match=r"a\.onnx: damaged$"):
        load_exported(path, read_model)
    assert path.read_text() == "mod"
    assert commands == []


def test_other_weights_versions_and_formats_are_other_exports(
    tmp_path: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(b"weights")
    first = exported(path)
    path.write_bytes(b"other weights")
    second = exported(path)
    monkeypatch.setattr(cache, "__version__", "9.9.9")
    third = exported(path)
    monkeypatch.setattr(cache, "EXPORT_FORMAT", 0)
    assert len({first, second, third, exported(path)}) == len(commands) == 4


def test_each_resolution_is_an_export_of_its_own(tmp_path: Path, commands: list[list[str]]) -> None:
    path = tmp_path / "best.pt"
    path.write_bytes(b"weights")
    files = [exported(path), exported(path, rho=1.0), exported(path, rho=0.5), exported(path, rho=0.5)]
    assert len(set(files)) == len(commands) == 3
    assert ["--rho" in command for command in commands] == [False, True, True]
    assert commands[2][commands[2].index("--rho") + 1] == "0.5"


def test_an_exported_file_has_one_resolution(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.touch()
    with pytest.raises(CheckpointError, match=r"a\.onnx: an exported file has one input size; for --rho, give its"):
        exported(path, rho=0.5)


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("working\nerror: best.pt: damaged\n\n", "best.pt: cannot be converted: best.pt: damaged$"),
        ("", "cannot be converted: no message, exit status 1"),
        (
            "error: x.onnx: cannot be written (No space left on device)\n",
            r"best.pt: cannot be converted: x.onnx: cannot be written \(No space left on device\)$",
        ),
    ],
    ids=["the child explains", "the child is silent", "the disk is full"],
)
def test_a_failed_export_carries_its_last_line(
    stderr: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(cache.subprocess, "run", fail)
    path = tmp_path / "best.pt"
    path.touch()
    with pytest.raises(CheckpointError, match=message) as fault:
        exported(path)
    assert "\n" not in str(fault.value)


def test_without_torch_the_message_gives_the_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.pt"
    path.touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=re.escape(install_line("train"))):
        exported(path)


def test_a_cache_that_cannot_be_made_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.pt"
    path.touch()
    monkeypatch.setenv("MNET_DET_CACHE", str(path / "cache"))
    with pytest.raises(CheckpointError, match=r"cannot be written \(.*\); set MNET_DET_CACHE to a folder") as fault:
        exported(path)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.doc", r"a\.doc: not a kind of model file we know; known: \.onnx, \.xml, \.pt, \.tflite"),
        ("a.h5", r"a\.h5: ImageNet weights, not a detector; train one with model\.init="),
        ("none.pt", r"none\.pt: no such model file"),
        ("none.onnx", r"none\.onnx: no such model file"),
    ],
)
def test_a_file_that_cannot_be_a_model_is_explained(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        exported(tmp_path / name)


def test_a_folder_is_no_model_file(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(CheckpointError, match=r"a\.onnx: a folder, not a model file"):
        exported(tmp_path / "a.onnx")
