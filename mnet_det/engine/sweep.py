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
from functools import partial
from pathlib import Path
from typing import IO, Any

from mnet_det.config import Config, parse_config
from mnet_det.engine.claim import BUSY_STATUS, is_taken
from mnet_det.engine.plan import PlannedRun, read_plan
from mnet_det.errors import CheckpointError, DataError, MnetDetError
from mnet_det.files import write_json
from mnet_det.runtime.backends import physical_cores
from mnet_det.sweep_folder import FAILED_FILE, MEASURED_FILE, is_measured

PLANNED_FILE = "planned.json"
"""What a job is to do: the run's config and key."""
LOG_FILE = "train.log"
CLOCK_FILE = "clock.json"
WORKER = (sys.executable, "-m", "mnet_det", "sweep-run")
"""Makes the run of the folder that is named to it."""
POLL_S = 0.2
LOOK_AGAIN_S = 2.0
"""Between looks at runs that another process has."""
STOP_S = 120.0
"""How long runs have to save what they have when the sweep is stopped."""
NEWS_S = 300.0
"""Between lines that say how far the runs are."""
STOP_SIGNAL = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM)
"""Asks a job to end: Windows' SIGTERM would end it at once, and with it what it has not saved."""


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


def is_being_trained(folder: Path) -> bool:
    """Whether a process has one of the runs of a sweep in its hands.

    Raises:
        DataError: the plan cannot be read.
        MnetDetError: a run's folder cannot be written.
    """
    return any(is_taken(folder / run["name"]) for run in read_plan(folder)["runs"])


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
    end, so that they can take over what a process that was killed has left. What fails in one of them the others do
    not try again.

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
    sweep = _Sweep(folder, jobs=jobs, gpus=gpus, say=say, worker=worker)
    sweep.enlist(runs)
    try:
        while (sweep.waiting or sweep.running) and not stopped():
            sweep.collect()
            sweep.begin()
            sweep.news.tell(folder, sweep.running)
            time.sleep(POLL_S)
    finally:
        _stop(sweep.running, say)
    finished = tuple(run for run in runs if is_finished(folder, run))
    return Outcome(finished, {run: reason for run, reason in sweep.failed.items() if run not in finished})


class _Sweep:
    """Where every run stands: waiting, running, failed, or else finished."""

    def __init__(
        self, folder: Path, *, jobs: int, gpus: int, say: Callable[[str], None], worker: Sequence[str]
    ) -> None:
        self.folder, self.say = folder, say
        self.waiting: list[PlannedRun] = []
        self.running: list[_Job] = []
        self.failed: dict[PlannedRun, str] = {}
        self.news = _News(say)
        self._elsewhere = _Elsewhere(say)
        self._free = list(range(jobs))
        self._start = partial(_start, folder, jobs=jobs, gpus=gpus, worker=worker)

    def enlist(self, runs: Sequence[PlannedRun]) -> None:
        """Wait with those that are not finished and can be built."""
        for run in runs:
            if run.fault is not None:
                self.failed[run] = run.fault
                _note_failure(self.folder, run, run.fault, log=None)
                self.say(f"{run}: cannot be built, {run.fault}")
            elif not is_finished(self.folder, run):
                self.waiting.append(run)
                self._elsewhere.noted_before[run.name] = _noted_at(self.folder, run)

    def collect(self) -> None:
        """Take note of the jobs that have ended."""
        for job in [job for job in self.running if job.process.poll() is not None]:
            self.running.remove(job)
            self._free.append(job.slot)
            if job.process.returncode == BUSY_STATUS:  # somebody was quicker
                self.waiting.append(job.run)
                continue
            reason = _why_it_failed(self.folder, job)
            if reason is not None:
                self.failed[job.run] = reason
                _note_failure(self.folder, job.run, reason, log=LOG_FILE)
            to_go = len(self.waiting) + len(self.running)
            self.say(f"{job.run}: {reason or _outcome(self.folder, job.run)}; {to_go} to go")

    def begin(self) -> None:
        """Start runs that nobody has, as many as there is room for."""
        self.waiting = [run for run in self.waiting if not is_finished(self.folder, run)]  # another may have done it
        if not self._free:
            return
        for run in self._elsewhere.untaken(self.waiting, self.folder)[: len(self._free)]:
            self.waiting.remove(run)
            reason = self._elsewhere.failure(self.folder, run)
            if reason is not None:
                self.failed[run] = reason
                self.say(f"{run}: {reason}, in another process")
                continue
            own = self.folder / run.name
            verb = "goes on" if (own / "last.pt").exists() else "begins"
            self.say(f"{run}: {verb}; its log is {own / LOG_FILE}")
            self.running.append(self._start(run, slot=self._free.pop(0)))


@dataclass(frozen=True)
class _Job:
    """A run that is being made; `log_start` is the size in bytes that its log had before."""

    run: PlannedRun
    process: subprocess.Popen[bytes]
    slot: int
    log_start: int


@dataclass
class _Elsewhere:
    """Runs that other processes have: looked at now and then, and said once.

    Attributes:
        noted_before: when failures were noted that are older than this sweep, by the run's name.
    """

    say: Callable[[str], None]
    noted_before: dict[str, int | None] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    looked_at: float = -LOOK_AGAIN_S
    taken: set[str] = field(default_factory=set)

    def untaken(self, waiting: Sequence[PlannedRun], folder: Path) -> list[PlannedRun]:
        """Those of `waiting` that nobody has."""
        if time.monotonic() - self.looked_at >= LOOK_AGAIN_S or not self.taken:
            self.looked_at = time.monotonic()
            self.taken = {run.name for run in waiting if is_taken(folder / run.name)}
            for run in waiting:
                if run.name in self.taken - self.said:
                    self.said.add(run.name)
                    self.say(f"{run}: another process has it")
        return [run for run in waiting if run.name not in self.taken]

    def failure(self, folder: Path, run: PlannedRun) -> str | None:
        """Why another process could not finish a run while this one looked on; None if it did not try."""
        if _noted_at(folder, run) in (None, self.noted_before[run.name]):
            return None
        with suppress(OSError, ValueError, LookupError, TypeError):
            return str(json.loads((folder / run.name / FAILED_FILE).read_text(encoding="utf-8"))["reason"])
        return None


@dataclass
class _News:
    """How far the runs are, said now and then."""

    say: Callable[[str], None]
    told_at: float = field(default_factory=time.monotonic)

    def tell(self, folder: Path, running: Sequence[_Job]) -> None:
        """The last line of each log."""
        if time.monotonic() - self.told_at < NEWS_S:
            return
        self.told_at = time.monotonic()
        for job in running:
            lines = _said(folder, job)
            if lines:
                self.say(f"{job.run}: {lines[-1]}")


def _start(folder: Path, run: PlannedRun, *, slot: int, jobs: int, gpus: int, worker: Sequence[str]) -> _Job:
    """Begin a run, or let it go on from its last checkpoint; what it prints goes to its log.

    It does not hear a Ctrl-C at the terminal, which would reach it a second time through us.
    """
    own = folder / run.name
    write_json(own / PLANNED_FILE, {"key": run.key, "config": run.config.model_dump(mode="json")})
    (own / FAILED_FILE).unlink(missing_ok=True)
    threads = threads_of_a_job(jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if gpus > 1 and jobs > 1 and run.config.train.device in ("auto", "cuda"):  # cuda:1 is one that the user chose
        environment["CUDA_VISIBLE_DEVICES"] = _gpu(slot, gpus)
    with _opened(own / LOG_FILE) as log:
        log_start = log.seek(0, os.SEEK_END)
        try:
            process = subprocess.Popen(
                [*worker, str(own), "--threads", str(threads)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as error:
            raise MnetDetError(f"{run}: its process cannot be started ({error.strerror or error})") from None
    return _Job(run, process, slot, log_start)


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
    names = {number.value: number.name for number in signal.Signals}
    if status < 0:
        name = names.get(-status, str(-status))
        hint = ": is memory short?" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    if status - 128 in names:  # as `sweep-run` ends when it is asked to, with all saved
        return f"its process was stopped by {names[status - 128]}"
    lines = _said(folder, job) or ["it printed nothing"]
    said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])  # a warning may follow it
    return f"failed, {said.removeprefix('error: ')}"


def _note_failure(folder: Path, run: PlannedRun, reason: str, *, log: str | None) -> None:
    write_json(folder / run.name / FAILED_FILE, {"reason": reason, "log": log})


def _noted_at(folder: Path, run: PlannedRun) -> int | None:
    """When a failure was written down, in nanoseconds; None if there is none."""
    with suppress(OSError):
        return (folder / run.name / FAILED_FILE).stat().st_mtime_ns
    return None


def _said(folder: Path, job: _Job) -> list[str]:
    """The lines that a job has written into its log; earlier attempts stand before them."""
    with suppress(OSError), (folder / job.run.name / LOG_FILE).open("rb") as log:
        log.seek(job.log_start)
        lines = log.read().decode("utf-8", errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]
    return []


def _outcome(folder: Path, run: PlannedRun) -> str:
    measured = json.loads((folder / run.name / MEASURED_FILE).read_text(encoding="utf-8"))
    ap, minutes = measured["scores"]["AP"], measured["minutes"]
    took = "" if minutes is None else f", {minutes:.1f} minutes"
    return f"AP {'n/a' if ap is None else f'{ap:.3f}'}{took}"


def _stop(running: Sequence[_Job], say: Callable[[str], None]) -> None:
    """Ask all to end, which saves what they have; then wait, and end those that do not."""
    if running:
        say(f"stopping; {len(running)} at work save what they have, which takes {STOP_S / 60:.0f} minutes at most")
    for job in running:
        try:
            job.process.send_signal(STOP_SIGNAL)
        except OSError:  # Windows, without a console
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
        content = json.loads((folder / CLOCK_FILE).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {"open": True}
    return {"open": True} if (folder / CLOCK_FILE).exists() else {}  # of a damaged one the minutes are unknown


def _is_trained(folder: Path, config: Config) -> bool:
    """Whether a run has nothing left to learn, also where it was killed before that was written down."""
    if _read_clock(folder).get("trained") is True:
        return True
    from mnet_det.engine.checkpoint import load_checkpoint

    with suppress(CheckpointError):  # which training goes on from all the same, or explains
        state = load_checkpoint(folder / "last.pt").training or {}
        is_stale = config.train.patience is not None and state.get("stale", 0) >= config.train.patience
        return (folder / "best.pt").is_file() and (is_stale or state.get("epoch", 0) >= config.train.epochs)
    return False


def _read_planned(folder: Path) -> tuple[Config, str]:
    """What a run's folder is for: its settings and its key."""
    path = folder / PLANNED_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return parse_config(content["config"], source=str(path)), str(content["key"])
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); `mnet-det sweep` writes it") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DataError(f"{path}: damaged; `mnet-det sweep` writes it anew") from None


def make_run(folder: Path, *, threads: int | None, console: Any) -> None:
    """Train the run of a sweep that a folder is for, or go on with it, and measure it: what a job of a sweep does.

    Raises:
        Stopped: a signal asked to end; what was done is saved.
        DataError: the folder is not that of a sweep's run.
        MnetDetError: all that training and measuring may raise.
    """
    from mnet_det.engine.train import train

    config, key = _read_planned(folder)
    if is_measured(folder, key=key):  # by another process, since the sweep looked
        return
    if not _is_trained(folder, config):
        saved = any((folder / name).exists() for name in ("last.pt", "previous.pt"))
        with clocked(folder):
            train(config, out=folder, resume=folder / "last.pt" if saved else None, console=console)
    from mnet_det.engine.measure import measure_run

    console.print("measuring", highlight=False)
    clock = _read_clock(folder)
    minutes = None if clock.get("open") else clock.get("minutes")
    measure_run(folder, key=key, minutes=minutes, threads=threads, data_config=config.data)
