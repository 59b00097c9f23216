"""Runs in processes of their own, for tests of what only a process can do: be killed, be told to stop, be one of two.

Importing torch takes seconds; here it is imported once, and every run is forked from that. Started as a program with
the name of a scenario and its folder; the tests look at what is left there.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnet_det.config import load_config
from mnet_det.engine import train as module
from mnet_det.engine.distributed import open_world
from mnet_det.interrupt import Stopped

MOMENTS = (2, 4, 7, 9, 11, 13, 16, 18, 20, 22)
"""Of the 24 steps, after which the run is killed; an epoch ends after every third, so most are inside one."""


def fork(run: Callable[[], Any], *, environment: dict[str, str] | None = None) -> int:
    """Start `run` in a process of its own; 1 is the exit status of an error, which is printed."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(environment or {})
        run()
        status = 0
    except Stopped as stopped:
        status = 128 + stopped.number
    except BaseException:  # noqa: BLE001  # this process ends here, whatever it is
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def end(child: int) -> int:
    """Wait for it: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train(words: Sequence[str], out: Path, *, log: Path, resume: bool = False) -> None:
    """Train, and write each step's position and loss into a file at once."""
    true_step = module._step

    def step(run: Any, state: Any, *arguments: Any) -> Any:
        losses = true_step(run, state, *arguments)
        if run.world.is_first:
            total = float(np.float32(sum(float(value) for value in losses.values())))
            with log.open("a") as file:
                file.write(f"{state.position} {total.hex()}\n")
        return losses

    module._step = step
    last = out / "last.pt"
    with open_world() as world:
        module.train(load_config(None, words), out=out, resume=last if resume and last.exists() else None, world=world)


def steps(log: Path) -> int:
    """How many steps were logged."""
    return log.read_text().count("\n") if log.exists() else 0


def killed(folder: Path, words: Sequence[str]) -> None:
    """The same run once through, and once killed at ten moments."""
    straight = fork(lambda: train(words, folder / "straight", log=folder / "straight.log"))
    log = folder / "killed.log"
    for number, moment in enumerate(MOMENTS):
        often = (*words, f"train.save_minutes={0 if number % 3 else 60}")  # else it goes back to the epoch's beginning
        child = fork(lambda often=often: train(often, folder / "killed", log=log, resume=True))  # type: ignore[misc]
        reached = f"\n{moment} "
        while reached not in f"\n{log.read_text() if log.exists() else ''}":
            time.sleep(0.001)
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it was killed"
        os.kill(child, signal.SIGKILL)
        assert end(child) == -signal.SIGKILL
    assert end(fork(lambda: train(words, folder / "killed", log=log, resume=True))) == 0
    assert end(straight) == 0


def asked(folder: Path, words: Sequence[str]) -> None:
    """Runs that are asked to stop, and gone on with; one is asked twice, and one while it scores."""
    for number in (signal.SIGTERM, signal.SIGINT):
        out, log = folder / number.name, folder / f"{number.name}.log"
        child = fork(lambda out=out, log=log: train(words, out, log=log))  # type: ignore[misc]
        while steps(log) < 4:
            time.sleep(0.001)
        os.kill(child, number)
        assert end(child) == 128 + number
        (folder / f"{number.name}.steps").write_text(str(steps(log)))
        assert end(fork(lambda out=out, log=log: train(words, out, log=log, resume=True))) == 0  # type: ignore[misc]

    def hang(*_: Any) -> Any:
        (folder / "deaf").touch()
        time.sleep(60)

    def deaf() -> None:
        module._step = hang
        module.train(load_config(None, words), out=folder / "twice")

    child = fork(deaf)
    while not (folder / "deaf").exists():
        time.sleep(0.001)
    os.kill(child, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(child, signal.SIGINT)
    assert end(child) == -signal.SIGINT

    def slow_score(*_: Any, **__: Any) -> Any:
        (folder / "scoring").touch()
        time.sleep(60)

    def scoring() -> None:
        module.score = slow_score
        train(words, folder / "scored", log=folder / "scored.log")

    child = fork(scoring)
    while not (folder / "scoring").exists():
        time.sleep(0.001)
    os.kill(child, signal.SIGTERM)
    assert end(child) == 128 + signal.SIGTERM


def two(folder: Path, words: Sequence[str]) -> None:
    """The same run in one process and in two, and one of two that is told to stop."""
    assert end(fork(lambda: train(words, folder / "one", log=folder / "one.log"))) == 0
    assert end(fork(lambda: train((*words, "train.accumulate=2"), folder / "parts", log=folder / "parts.log"))) == 0
    pair = both(lambda: train(words, folder / "two", log=folder / "two.log"))
    assert [end(child) for child in pair] == [0, 0]
    pair = both(lambda: train(words, folder / "stopped", log=folder / "stopped.log"))
    while steps(folder / "stopped.log") < 2:
        time.sleep(0.001)
    os.kill(pair[1], signal.SIGTERM)  # the first hears of it from the other
    assert [end(child) for child in pair] == [128 + signal.SIGTERM] * 2
    pair = both(lambda: train(words, folder / "stopped", log=folder / "stopped.log", resume=True))
    assert [end(child) for child in pair] == [0, 0]


def both(run: Callable[[], Any]) -> list[int]:
    """Two processes of one world, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [fork(run, environment=world | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"killed": killed, "asked": asked, "two": two}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:])
