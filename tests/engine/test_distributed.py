"""Several processes train as one; see `forked_runs`, where they run, and torchrun itself in the last test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from mnet_det.config import Config, load_config
from mnet_det.data.toy import draw_toy
from mnet_det.engine.checkpoint import load_checkpoint
from mnet_det.engine.device import pick_device
from mnet_det.engine.distributed import World, _meet, open_world
from mnet_det.engine.train import _require_equal_parts
from mnet_det.errors import ConfigError, MnetDetError

SCENARIOS = Path(__file__).with_name("forked_runs.py")
CPU = torch.device("cpu")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked from one that has imported torch")


@pytest.fixture
def configure(toy_words: tuple[str, ...]) -> Callable[..., Config]:
    return lambda *words: load_config(None, [*toy_words, *words])


def losses(log: Path) -> list[float]:
    """Of each step, in order."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return [float.fromhex(value) for _, value in sorted(lines, key=lambda words: int(words[0]))]


def metrics(folder: Path, name: str) -> list[float]:
    header, *rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    return [float(row[header.index(name)]) for row in rows if row[header.index(name)]]


@pytest.mark.slow
@needs_fork
def test_two_processes_train_as_one(toy_words: tuple[str, ...], tmp_path: Path) -> None:
    """With batch norm frozen: the same losses and scores as one process, and as one that takes a batch in two parts.

    One of the two is told to stop: both do, after the same step, and go on from there.
    """
    toy = tmp_path / "toy"
    draw_toy(toy, train_images=8, val_images=7)
    words = (
        *toy_words,
        f"data.root={toy}",
        "train.batch_size=4",
        "train.frozen_bn=true",
        "train.epochs=4",
        "train.eval_every=4",
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, SCENARIOS, "two", tmp_path, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    one = losses(tmp_path / "one.log")
    assert len(one) == 8
    for name in ("two", "parts", "stopped"):
        assert losses(tmp_path / f"{name}.log") == pytest.approx(one, rel=1e-5), name
        for number in ("loss", "val_loss", "AP"):
            assert metrics(tmp_path / name, number) == pytest.approx(metrics(tmp_path / "one", number), rel=1e-4), name
        ours, theirs = (load_checkpoint(tmp_path / run / "last.pt").weights for run in (name, "one"))
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("words", "processes", "message"),
    [
        (["train.batch_size=6"], 4, "got 6, which 4 processes × train.accumulate=1 cannot share equally"),
        (["train.batch_size=6", "train.accumulate=4"], 1, "1 processes × train.accumulate=4 cannot share"),
        (["train.batch_size=4"], 4, "leaves 1 image in each part, and batch norm needs two"),
        (["train.batch_size=4", "train.frozen_bn=true"], 4, None),
        (["train.batch_size=8", "train.accumulate=2"], 2, None),
        (["train.batch_size=2", "train.accumulate=2", "train.sync_bn=true"], 1, "leaves 1 image in each part"),
        (["train.batch_size=4", "train.sync_bn=true"], 2, r"train\.sync_bn: needs GPUs, and this run is on cpu"),
    ],
)
def test_a_batch_must_have_equal_parts_that_are_large_enough(
    words: list[str], processes: int, message: str | None, configure: Callable[..., Config]
) -> None:
    config, world = configure(*words), World(rank=0, size=processes)
    if message is None:
        _require_equal_parts(config, CPU, world)
        return
    with pytest.raises(ConfigError, match=message):
        _require_equal_parts(config, CPU, world)


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)
    assert pick_device("auto", World(rank=3, size=4, local_rank=1)) == torch.device("cuda:1")
    assert current == [torch.device("cuda:1")]
    with pytest.raises(ConfigError, match=r"more processes than this machine has GPUs \(2\)"):
        pick_device("cuda", World(rank=2, size=4, local_rank=2))
    for name in ("cuda:0", "mps"):
        with pytest.raises(ConfigError, match=f"got '{name}' for 4 processes, expected cpu, or cuda"):
            pick_device(name, World(rank=1, size=4, local_rank=1))


def test_what_is_chosen_once_outlives_the_process_under_torchrun() -> None:
    store = HashStore()
    assert World(store=store).once(lambda: ["runs/a", "b.pt"]) == (["runs/a", "b.pt"], False)
    assert World(store=store).once(lambda: pytest.fail("chosen again")) == (["runs/a", "b.pt"], True)
    assert World().once(lambda: ["runs/c"]) == (["runs/c"], False)


def test_a_process_that_cannot_meet_the_others_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    why = r"other processes .* cannot be met \(.*RANK.*\); start them with torchrun"
    with pytest.raises(MnetDetError, match=why), open_world():
        pass


def test_processes_that_are_started_again_do_not_meet_those_that_died() -> None:
    """torchrun keeps its store: a new process waited for the address of a dead one, and the restart failed."""
    store = HashStore()
    words: list[set[str]] = []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            words.append({*pool.map(lambda rank: _meet(store, rank=rank, size=3), [2, 1, 0])})
    assert [len(met) for met in words] == [1, 1, 1]
    assert len(set.union(*words)) == 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux's ps which processes torchrun has started")
def test_a_run_of_torchrun_goes_on_when_a_process_is_killed(toy_words: tuple[str, ...], tmp_path: Path) -> None:
    """The command says nothing of resuming: torchrun starts the same one again."""
    config, out, log = tmp_path / "run.yaml", tmp_path / "run", tmp_path / "log"
    words = ("train.frozen_bn=true", "train.epochs=8", "train.eval_every=8", "train.save_minutes=0")
    config.write_text(load_config(None, [*toy_words, *words]).to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    with log.open("w") as said:
        run = subprocess.Popen(
            [*command, "-m", "mnet_det", "train", str(config), "--out", str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(lambda: "epoch 2/8" in log.read_text(), run)
            os.kill(worker_of(run.pid), signal.SIGKILL)
            assert run.wait(timeout=180) == 0, log.read_text()[-4000:]
        finally:
            run.terminate()  # kills the processes that it started, which a kill of its own would leave behind
            run.wait()
    text = log.read_text()
    assert text.count("on cpu in 2 processes") == 2
    assert text.count("best AP ") == 1
    lines = (out / "metrics.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines[1:]] == [str(epoch) for epoch in range(1, 9)]


def wait_for(is_there: Callable[[], bool], run: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not is_there():
        assert run.poll() is None, "the run ended"
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def worker_of(parent: int) -> int:
    """The last process that another one started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True)
    return int(listed.stdout.split()[-1])
