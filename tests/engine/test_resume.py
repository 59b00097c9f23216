"""A run that is killed, asked to stop, or cannot write loses nothing; see `forked_runs`, where they run."""

from __future__ import annotations

import csv
import errno
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from mnet_det.config import Config, load_config
from mnet_det.engine import checkpoint as checkpoint_module
from mnet_det.engine import train as module
from mnet_det.engine.checkpoint import load_checkpoint, load_resumable
from mnet_det.engine.train import train
from mnet_det.errors import CheckpointError, MnetDetError

SCENARIOS = Path(__file__).with_name("forked_runs.py")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked from one that has imported torch")


@pytest.fixture
def configure(toy_words: tuple[str, ...]) -> Callable[..., Config]:
    return lambda *words: load_config(None, [*toy_words, *words])


def run_scenario(name: str, folder: Path, *words: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, SCENARIOS, name, folder, *words], env=environment, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr[-4000:]


def losses(log: Path) -> dict[int, set[str]]:
    """All that was seen of each step's loss."""
    seen: dict[int, set[str]] = {}
    for line in log.read_text().splitlines():
        position, value = line.split()
        seen.setdefault(int(position), set()).add(value)
    return seen


def rows(folder: Path) -> list[dict[str, str]]:
    """Of metrics.csv, what does not depend on time."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [
            {key: value for key, value in row.items() if key not in ("images_per_second", "waiting_for_data")}
            for row in csv.DictReader(file)
        ]


def flatten(value: Any, place: str = "") -> dict[str, Any]:
    """Every tensor and number of nested dicts and lists, by its place."""
    if not isinstance(value, dict | list | tuple):
        return {place: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for name, child in items for key, leaf in flatten(child, f"{place}.{name}").items()}


def assert_same_state(one: Path, other: Path) -> None:
    ours, theirs = (load_checkpoint(folder / "last.pt") for folder in (one, other))
    for mine, its in ((ours.training, theirs.training), (ours.weights, theirs.weights)):
        mine, its = flatten(mine), flatten(its)
        assert mine.keys() == its.keys()
        for place, value in mine.items():
            same = torch.equal(value, its[place]) if isinstance(value, torch.Tensor) else value == its[place]
            assert same, place


@pytest.mark.slow
@needs_fork
def test_a_run_that_is_killed_ten_times_ends_as_one_that_was_not(toy_words: tuple[str, ...], tmp_path: Path) -> None:
    """Bit by bit: loss of every step, numbers of every epoch, weights, their average, momenta."""
    run_scenario("killed", tmp_path, *toy_words, "train.epochs=8", "train.eval_every=4")
    straight, killed = losses(tmp_path / "straight.log"), losses(tmp_path / "killed.log")
    assert sorted(straight) == list(range(24))
    assert killed == straight
    assert len((tmp_path / "killed.log").read_text().splitlines()) > 24  # some steps had to be repeated
    assert rows(tmp_path / "killed") == rows(tmp_path / "straight")
    assert_same_state(tmp_path / "killed", tmp_path / "straight")
    for name in ("best.pt", "previous.pt"):
        weights = [load_checkpoint(tmp_path / run / name).weights for run in ("killed", "straight")]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[1])
    assert not list((tmp_path / "killed").glob(".*"))  # what was half written is gone


@pytest.mark.slow
@needs_fork
def test_a_run_that_is_asked_to_stop_saves_first(toy_words: tuple[str, ...], tmp_path: Path) -> None:
    """SIGTERM and SIGINT within an epoch; the scenario asserts how each process ended, one being asked twice."""
    words = (*toy_words, "train.epochs=3", "train.eval_every=3")
    run_scenario("asked", tmp_path, *words)
    for name in ("SIGTERM", "SIGINT"):
        assert int((tmp_path / f"{name}.steps").read_text()) < 9
        assert sorted(losses(tmp_path / f"{name}.log")) == list(range(9))
        assert len((tmp_path / f"{name}.log").read_text().splitlines()) == 9  # no step was done twice
    assert_same_state(tmp_path / "SIGTERM", tmp_path / "SIGINT")
    saved = load_checkpoint(tmp_path / "scored" / "last.pt").training
    assert saved is not None
    assert (saved["epoch"], saved["step"]) == (2, 3)  # all of the last epoch but its scores


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_file(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_save = torch.save

    def save(content: Any, file: Any) -> None:
        true_save(content, file)
        if content["training"] is not None and content["training"]["epoch"] == 1:
            file.truncate(file.tell() // 2)
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            finally:
                raise RuntimeError("unexpected pos 64 vs 0")  # what torch says when it then cannot end the file

    monkeypatch.setattr(checkpoint_module.torch, "save", save)
    with pytest.raises(MnetDetError, match=r"last\.pt: cannot be written \(No space left on device\)"):
        train(configure(), out=tmp_path)
    monkeypatch.undo()
    saved = load_checkpoint(tmp_path / "last.pt").training
    assert saved is not None
    assert (saved["epoch"], saved["step"]) == (0, 3)
    assert not list(tmp_path.glob(".*"))
    assert train(configure(), out=tmp_path, resume=tmp_path / "last.pt").best_ap >= 0


def damage_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damage_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_all(path: Path) -> None:
    path.write_bytes(b"")


class Evil:
    """What runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def put_code(path: Path) -> None:
    """The same archive with another pickle, its checksums made anew: a checkpoint that somebody tampered with."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in parts if name.endswith("data.pkl"))
    parts[pickled] = pickle.dumps(Evil(f"touch {path.with_name('hacked')}"), protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_half, "not a checkpoint that can be read"),
        (damage_byte, "not a checkpoint that can be read"),
        (damage_all, "not a checkpoint that can be read"),
        (put_code, "holds more than tensors and plain values, which could run code as it is loaded; refused"),
    ],
)
def test_of_a_damaged_checkpoint_the_one_before_it_is_taken(
    damage: Callable[[Path], None], message: str, toy_run: Path, tmp_path: Path
) -> None:
    for name in ("last.pt", "previous.pt", "best.pt"):
        shutil.copyfile(toy_run / name, tmp_path / name)
    last = tmp_path / "last.pt"
    damage(last)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(last)
    checkpoint, source, said = load_resumable(last)
    assert checkpoint.training is not None
    assert source == tmp_path / "previous.pt"
    assert said is not None
    assert message in said
    damage(tmp_path / "previous.pt")
    with pytest.raises(CheckpointError, match=f"{message}.*; nor can the one before it be read: .*previous"):
        load_resumable(last)
    assert not (tmp_path / "hacked").exists()


def test_only_a_damaged_last_falls_back(tmp_path: Path, toy_run: Path) -> None:
    shutil.copyfile(toy_run / "previous.pt", tmp_path / "previous.pt")
    (tmp_path / "best.pt").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="best"):
        load_resumable(tmp_path / "best.pt")


def test_a_run_goes_on_from_the_one_before_a_damaged_checkpoint_and_says_so(
    configure: Callable[..., Config], toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(toy_run, folder)
    damage_half(folder / "last.pt")

    def die(*_: Any) -> None:
        raise RuntimeError("power cut")

    console = Console(record=True, width=200, file=io.StringIO())
    with monkeypatch.context() as patch:
        patch.setattr(module, "_train_epoch", die)
        with pytest.raises(RuntimeError, match="power cut"):
            train(configure(), out=folder, resume=folder / "last.pt", console=console)
    assert "going on from the one before it" in console.export_text()
    train(configure(), out=folder, resume=folder / "last.pt")  # which is good again
    assert rows(folder) == rows(toy_run)
    assert_same_state(folder, toy_run)


def test_a_run_can_be_gone_on_with_from_its_beginning(
    configure: Callable[..., Config], toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its first minutes, it would otherwise have nothing to go on from, and draw other random weights."""

    def die(*_: Any) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(module, "_train_epoch", die)
    with pytest.raises(RuntimeError, match="power cut"):
        train(configure(), out=tmp_path)
    monkeypatch.undo()
    torch.rand(3)
    train(configure(), out=tmp_path, resume=tmp_path / "last.pt")
    assert_same_state(tmp_path, toy_run)


def test_checkpoints_within_an_epoch_come_with_a_line(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It told of a step that was not in the checkpoint yet."""
    saved: list[tuple[int, int]] = []
    true_line = module._step_line

    def line(run: Any, state: Any) -> str:
        training = load_checkpoint(run.out / "last.pt").training
        assert training is not None
        saved.append((state.step, training["step"]))
        return true_line(run, state)

    monkeypatch.setattr(module, "_step_line", line)
    console = Console(record=True, width=200, file=(tmp_path / "log").open("w"))
    with console.file:
        train(configure("train.save_minutes=0", "train.epochs=1"), out=tmp_path / "run", console=console)
    assert "epoch 1/1, step 2/3: loss " in console.export_text()
    assert saved == [(1, 1), (2, 2), (3, 3)]
