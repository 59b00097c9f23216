"""Running the plan of a sweep: each run in a process of its own, several at a time, none of them twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mnet_det.config import parse_config
from mnet_det.engine.claim import BUSY_STATUS, is_taken
from mnet_det.engine.plan import MEASURED_FILE, PlannedRun, read_plan
from mnet_det.errors import MnetDetError
from mnet_det.files import write_json
from mnet_det.runtime.backends import physical_cores

PLANNED_FILE = "planned.json"
"""What a job is to do: the run's config and key."""
LOG_FILE = "train.log"
CLOCK_FILE = "clock.json"
FAILED_FILE = "failed.json"
WORKER = (sys.executable, "-m", "mnet_det", "sweep-run")
"""Makes the run of the folder that is named to it."""
POLL_S = 0.2
LOOK_AGAIN_S = 2.0
"""Between looks at runs that another process has."""
STOP_S = 120.0
"""How long runs have to save what they have when the sweep is stopped."""


@dataclass(frozen=True)
class Outcome:
    """What a sweep came to.

    Attributes:
        finished: runs that are measured, in the order of the plan.
        failed: why others are not.
    """

    finished: tuple[PlannedRun, ...]
    failed: Mapping[PlannedRun, str]


def is_finished(folder: Path, run: PlannedRun) -> bool:
    """Whether a run of a sweep is measured, with the very settings and data of the plan."""
    return is_measured(folder / run.name, key=run.key)


def is_measured(folder: Path, *, key: str) -> bool:
    """Whether the run in this folder has that key and is measured."""
    with suppress(OSError, ValueError, AttributeError):
        measured = json.loads((folder / MEASURED_FILE).read_text(encoding="utf-8"))
        return bool(measured.get("key") == key) and (folder / "best.pt").is_file()
    return False


def finished_runs(folder: Path) -> list[Path]:
    """Folders of the runs that are measured, the first seed of each point, in the order of the plan.

    Raises:
        DataError: the plan cannot be read.
    """
    first: dict[str, Path] = {}
    for run in read_plan(folder)["runs"]:
        if is_measured(folder / run["name"], key=run["key"]):
            first.setdefault(json.dumps(run["point"], sort_keys=True), folder / run["name"])
    return list(first.values())


def run_sweep(
    folder: Path,
    runs: Sequence[PlannedRun],
    *,
    jobs: int,
    gpus: int = 0,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
    worker: Sequence[str] = WORKER,
) -> Outcome:
    """Train and measure what is not finished yet, `jobs` runs at a time, until `stopped` says to stop.

    Several processes may do this in one folder: each run is taken by one of them, and the others wait for it at their
    end, so that they can take over what a process that was killed has left.

    Args:
        folder: of the sweep, with its plan in it.
        runs: those to be made, in this order.
        jobs: how many at a time.
        gpus: of this machine; the jobs are dealt out to them.
        say: told in a line what happens.
        stopped: asked several times a second.
        worker: the command that makes a run; it is given the run's folder and `--threads N`.

    Raises:
        MnetDetError: a file cannot be written.
    """
    failed = {run: run.fault for run in runs if run.fault is not None}
    for run, fault in failed.items():
        _note_failure(folder, run, fault, log=None)
        say(f"{run}: cannot be built, {fault}")
    waiting = [run for run in runs if run not in failed and not is_finished(folder, run)]
    free = list(range(jobs))
    running: list[_Job] = []
    elsewhere = _Elsewhere(say)
    try:
        while (waiting or running) and not stopped():
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                free.append(job.slot)
                if job.process.returncode == BUSY_STATUS:  # somebody was quicker
                    waiting.append(job.run)
                    continue
                reason = _why_it_failed(folder, job)
                if reason is not None:
                    failed[job.run] = reason
                    _note_failure(folder, job.run, reason, log=LOG_FILE)
                say(f"{job.run}: {reason or _outcome(folder, job.run)}; {len(waiting) + len(running)} to go")
            waiting = [run for run in waiting if not is_finished(folder, run)]  # another process may have done it
            for run in elsewhere.without(waiting, folder)[: len(free)] if free else []:
                waiting.remove(run)
                verb = "goes on" if (folder / run.name / "last.pt").exists() else "begins"
                say(f"{run}: {verb}; its log is {folder / run.name / LOG_FILE}")
                running.append(_start(folder, run, slot=free.pop(0), jobs=jobs, gpus=gpus, worker=worker))
            time.sleep(POLL_S)
    finally:
        _stop(running)
    return Outcome(tuple(run for run in runs if is_finished(folder, run)), failed)


@dataclass(frozen=True)
class _Job:
    """A run that is being made."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    slot: int


@dataclass
class _Elsewhere:
    """Runs that other processes have: looked at now and then, and said once."""

    say: Callable[[str], None]
    said: set[str] = field(default_factory=set)
    looked_at: float = -LOOK_AGAIN_S
    taken: set[str] = field(default_factory=set)

    def without(self, waiting: Sequence[PlannedRun], folder: Path) -> list[PlannedRun]:
        """Those of `waiting` that nobody has."""
        if time.monotonic() - self.looked_at >= LOOK_AGAIN_S or not self.taken:
            self.looked_at = time.monotonic()
            self.taken = {run.name for run in waiting if is_taken(folder / run.name)}
            for run in waiting:
                if run.name in self.taken - self.said:
                    self.said.add(run.name)
                    self.say(f"{run}: another process has it")
        return [run for run in waiting if run.name not in self.taken]


def _start(folder: Path, run: PlannedRun, *, slot: int, jobs: int, gpus: int, worker: Sequence[str]) -> _Job:
    """Begin a run, or let it go on from its last checkpoint; what it prints goes to its log.

    It does not hear a Ctrl-C at the terminal, which would reach it a second time through us.
    """
    own = folder / run.name
    write_json(own / PLANNED_FILE, {"key": run.key, "config": run.config.model_dump(mode="json")})
    (own / FAILED_FILE).unlink(missing_ok=True)
    threads = threads_of_a_job(jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if gpus > 1 and jobs > 1:
        environment["CUDA_VISIBLE_DEVICES"] = _gpu(slot, gpus)
    with _opened(own / LOG_FILE) as log:
        process = subprocess.Popen(
            [*worker, str(own), "--threads", str(threads)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    return _Job(run, process, slot)


def threads_of_a_job(jobs: int) -> int:
    """How many threads one of several jobs computes with: its part of the cores, unless the environment says."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    return int(chosen) if chosen.isdecimal() and int(chosen) else max(1, physical_cores() // jobs)


def _gpu(slot: int, gpus: int) -> str:
    """The GPU of a slot, as CUDA_VISIBLE_DEVICES names it: one of those that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if len(visible) == gpus else [str(number) for number in range(gpus)]
    return names[slot % gpus]


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("ab")
    except OSError as error:
        raise MnetDetError(f"{path}: cannot be written ({error.strerror or error})") from None


def _why_it_failed(folder: Path, job: _Job) -> str | None:
    """Of a process that has ended; None where its run is finished."""
    status = job.process.returncode
    if is_finished(folder, job.run):
        return None
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        hint = ": is memory short?" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    return f"failed, {_last_line(folder / job.run.name / LOG_FILE)}"


def _note_failure(folder: Path, run: PlannedRun, reason: str, *, log: str | None) -> None:
    write_json(folder / run.name / FAILED_FILE, {"reason": reason, "log": log})


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    return said.removeprefix("error: ")


def _outcome(folder: Path, run: PlannedRun) -> str:
    measured = json.loads((folder / run.name / MEASURED_FILE).read_text(encoding="utf-8"))
    ap, minutes = measured["scores"]["AP"], measured["minutes"]
    took = "" if minutes is None else f", {minutes:.1f} minutes"
    return f"AP {'n/a' if ap is None else f'{ap:.3f}'}{took}"


def _stop(running: Sequence[_Job]) -> None:
    """Ask all to end, which saves what they have; then wait, and end those that do not."""
    for job in running:
        job.process.terminate()
    deadline = time.monotonic() + STOP_S
    for job in running:
        try:
            job.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()


@contextmanager
def clocked(folder: Path) -> Iterator[None]:
    """Add a training's minutes to those of its earlier attempts; one that was killed leaves them unknown."""
    before = _read_clock(folder)
    unknown = bool(before.get("open")) or before.get("minutes", 0.0) is None
    sum_before = 0.0 if unknown else before.get("minutes", 0.0)
    write_json(folder / CLOCK_FILE, {"minutes": None if unknown else sum_before, "open": True, "trained": False})
    started, trained = time.monotonic(), False
    try:
        yield
        trained = True
    finally:
        minutes = None if unknown else sum_before + (time.monotonic() - started) / 60
        write_json(folder / CLOCK_FILE, {"minutes": minutes, "open": False, "trained": trained})


def _read_clock(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content: dict[str, Any] = json.loads((folder / CLOCK_FILE).read_text(encoding="utf-8"))
        return content
    return {}


def make_run(folder: Path, *, threads: int | None, console: Any) -> None:
    """Train the run of a sweep that a folder is for, or go on with it, and measure it: what a job of a sweep does.

    Raises:
        Stopped: a signal asked to end; what was done is saved.
        MnetDetError: all that training and measuring may raise.
    """
    from mnet_det.engine.train import train

    planned = json.loads((folder / PLANNED_FILE).read_text(encoding="utf-8"))
    if not _read_clock(folder).get("trained"):
        saved = any((folder / name).exists() for name in ("last.pt", "previous.pt"))
        with clocked(folder):
            train(
                parse_config(planned["config"]),
                out=folder,
                resume=folder / "last.pt" if saved else None,
                console=console,
            )
    from mnet_det.engine.measure import measure_run

    console.print("measuring", highlight=False)
    measure_run(folder, key=planned["key"], minutes=_read_clock(folder).get("minutes"), threads=threads)
