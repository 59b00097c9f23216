"""The scheduler of a sweep, with a worker that does what `sweep-run` does to the folder, without training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from mnet_det.config import load_config
from mnet_det.engine import measure, sweep
from mnet_det.engine.checkpoint import open_detector
from mnet_det.engine.claim import claim
from mnet_det.engine.plan import PlannedRun
from mnet_det.engine.sweep import clocked, finished_runs, is_being_trained, make_run, run_sweep
from mnet_det.errors import DataError, MnetDetError
from mnet_det.files import write_json

WORKER = """
import json, os, sys, time
from pathlib import Path
from mnet_det.engine.claim import BUSY_STATUS, TakenError, claim
folder = Path(sys.argv[1])
try:
    with claim(folder):
        planned = json.loads((folder / "planned.json").read_text())
        if (folder / "measured.json").exists():
            sys.exit()
        with open(folder / "attempts", "a") as file:
            file.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ['OMP_NUM_THREADS']}\\n")
        alpha = planned["config"]["model"]["alpha"]
        if alpha == 0.66:
            print("error: made to fail", "UserWarning: said at the end", sep="\\n", flush=True)
            sys.exit(1)
        if alpha == 0.44:
            sys.exit(128 + 15)
        if alpha == 0.33:
            os.kill(os.getpid(), 9)
        hold = folder.parent / "hold"
        while hold.exists():
            time.sleep(0.05)
        (folder / "best.pt").touch()
        scores = {"key": planned["key"], "scores": {"AP": alpha}, "minutes": 1.5}
        (folder / "measured.json").write_text(json.dumps(scores))
except TakenError:
    sys.exit(BUSY_STATUS)
"""


def planned(alpha: float, *, seed: int = 0, fault: str | None = None, key: str = "") -> PlannedRun:
    config = load_config(None, [f"model.alpha={alpha}", f"train.seed={seed}"])
    return PlannedRun(config, key or f"{alpha}-{seed}", 1, 1, fault)


@pytest.fixture
def worker(tmp_path: Path) -> tuple[str, str]:
    path = tmp_path / "worker.py"
    path.write_text(WORKER, encoding="utf-8")
    return sys.executable, str(path)


def attempts(folder: Path, run: PlannedRun) -> int:
    path = folder / run.name / "attempts"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def wait_until(true: Callable[[], bool], *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_finished_runs_are_not_repeated_unless_their_key_is_another(tmp_path: Path, worker: tuple[str, str]) -> None:
    runs, lines = [planned(1), planned(0.5)], []
    for _ in range(2):
        outcome = run_sweep(tmp_path / "sweep", runs, jobs=2, say=lines.append, worker=worker)
        assert outcome.finished == tuple(runs)
        assert not outcome.failed
    assert [attempts(tmp_path / "sweep", run) for run in runs] == [1, 1]
    assert any("alpha 0.5, rho 1, seed 0: AP 0.500, 1.5 minutes" in line for line in lines)
    other = planned(1, key="of other settings")
    assert run_sweep(tmp_path / "sweep", [other], jobs=1, say=lines.append, worker=worker).finished == (other,)
    assert attempts(tmp_path / "sweep", other) == 1


def test_what_fails_does_not_stop_the_others_and_is_tried_again(tmp_path: Path, worker: tuple[str, str]) -> None:
    runs = [planned(0.66), planned(0.33), planned(1, fault="too small"), planned(0.44), planned(0.5)]
    for _ in range(2):
        outcome = run_sweep(tmp_path, runs, jobs=1, say=lambda line: None, worker=worker)
        assert outcome.finished == (runs[4],)
        assert outcome.failed == {
            runs[0]: "failed, made to fail",
            runs[1]: "its process was killed by SIGKILL: is memory short?",
            runs[2]: "too small",
            runs[3]: "its process was stopped by SIGTERM",
        }
    assert [attempts(tmp_path, run) for run in runs] == [2, 2, 0, 2, 1]
    noted = json.loads((tmp_path / runs[0].name / "failed.json").read_text(encoding="utf-8"))
    assert noted == {"reason": "failed, made to fail", "log": "train.log"}


def test_a_failure_is_forgotten_once_the_run_is_finished(tmp_path: Path, worker: tuple[str, str]) -> None:
    run = planned(1)
    (tmp_path / run.name).mkdir()
    (tmp_path / run.name / "failed.json").write_text("{}", encoding="utf-8")
    run_sweep(tmp_path, [run], jobs=1, say=lambda line: None, worker=worker)
    assert not (tmp_path / run.name / "failed.json").exists()


def start(folder: Path, run: PlannedRun, worker: tuple[str, str]) -> subprocess.Popen[bytes]:
    """A job that another sweep has started."""
    write_json(folder / run.name / "planned.json", {"key": run.key, "config": run.config.model_dump(mode="json")})
    return subprocess.Popen([*worker, str(folder / run.name)], env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_sweep_waits_for_a_job_that_another_has_left(tmp_path: Path, worker: tuple[str, str]) -> None:
    """kill -9 of a sweep leaves its job alive, without a parent: it is neither repeated nor disturbed."""
    run, lines = planned(1), []
    (tmp_path / "hold").touch()

    def say(line: str) -> None:
        lines.append(line)
        if "another process has it" in line:
            (tmp_path / "hold").unlink(missing_ok=True)

    with start(tmp_path, run, worker):
        wait_until(lambda: attempts(tmp_path, run) == 1)
        write_json(tmp_path / "sweep.json", {"format": 1, "base_key": "a", "runs": [run.to_json()]})
        assert is_being_trained(tmp_path)
        outcome = run_sweep(tmp_path, [run], jobs=1, say=say, worker=worker)
    assert outcome.finished == (run,)
    assert attempts(tmp_path, run) == 1
    assert any("another process has it" in line for line in lines)
    assert not is_being_trained(tmp_path)


def test_what_fails_in_another_process_is_not_tried_again(tmp_path: Path, worker: tuple[str, str]) -> None:
    run, lines = planned(1), []
    failed = tmp_path / run.name / "failed.json"
    write_json(failed, {"reason": "of last week", "log": "train.log"})
    looks = iter(range(1000))
    with ExitStack() as other:
        other.enter_context(claim(tmp_path / run.name))

        def stopped() -> bool:
            if next(looks) == 1:  # it fails while this one waits for it
                write_json(failed, {"reason": "made to fail", "log": "train.log"})
                other.close()
            return False

        outcome = run_sweep(tmp_path, [run], jobs=1, say=lines.append, worker=worker, stopped=stopped)
    assert outcome.failed == {run: "made to fail"}
    assert attempts(tmp_path, run) == 0
    assert lines[-1] == f"{run}: made to fail, in another process"


def test_the_log_of_this_attempt_says_why_it_failed(tmp_path: Path, worker: tuple[str, str]) -> None:
    run = planned(0.66)
    (tmp_path / run.name).mkdir()
    (tmp_path / run.name / "train.log").write_text("error: of last week\n", encoding="utf-8")
    silent = (sys.executable, "-c", "raise SystemExit(3)")
    reasons = [
        run_sweep(tmp_path, [run], jobs=1, say=lambda line: None, worker=words).failed[run]
        for words in (worker, silent)
    ]
    assert reasons == ["failed, made to fail", "failed, it printed nothing"]


def test_a_process_that_cannot_be_started_is_said(tmp_path: Path) -> None:
    with pytest.raises(MnetDetError, match="its process cannot be started"):
        run_sweep(tmp_path, [planned(1)], jobs=1, say=lambda line: None, worker=[str(tmp_path / "nothing")])


def test_news_are_the_last_lines_of_the_logs(
    tmp_path: Path, worker: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, lines = planned(1), []
    (tmp_path / "hold").touch()
    log = tmp_path / run.name / "train.log"

    def say(line: str) -> None:
        lines.append(line)
        if line.endswith("epoch 5/24: loss 1.2"):
            (tmp_path / "hold").unlink(missing_ok=True)

    def stopped() -> bool:
        if attempts(tmp_path, run):
            log.write_text("epoch 4/24: loss 1.3\nepoch 5/24: loss 1.2\n", encoding="utf-8")
        return False

    monkeypatch.setattr(sweep, "NEWS_S", 0.3)
    run_sweep(tmp_path, [run], jobs=1, say=say, worker=worker, stopped=stopped)
    assert f"{run}: epoch 5/24: loss 1.2" in lines


def test_a_run_that_was_killed_between_its_last_checkpoint_and_its_clock_is_only_measured(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training refuses a run that has done all of its epochs; how long they took nobody knows."""
    run = tmp_path / "run"
    shutil.copytree(toy_run, run)
    config = open_detector(run / "best.pt").config
    write_json(run / "planned.json", {"key": "abc", "config": config.model_dump(mode="json")})
    measured: list[dict[str, object]] = []
    monkeypatch.setattr(measure, "measure_run", lambda folder, **options: measured.append(options))
    for text in ('{"minutes": 0.0, "open": true, "trained": false}', "{", "[]"):
        (run / "clock.json").write_text(text, encoding="utf-8")
        make_run(run, threads=1, console=Console(quiet=True))
    assert measured == [{"key": "abc", "minutes": None, "threads": 1, "data_config": config.data}] * 3


def test_a_job_that_comes_too_late_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the sweep's look at the folder and the job's claim, another process may have finished the run."""
    config = load_config(None, [])
    write_json(tmp_path / "planned.json", {"key": "abc", "config": config.model_dump(mode="json")})
    write_json(tmp_path / "measured.json", {"key": "abc"})
    (tmp_path / "best.pt").touch()
    monkeypatch.setattr(measure, "measure_run", lambda folder, **options: pytest.fail("measured again"))
    make_run(tmp_path, threads=1, console=None)


@pytest.mark.parametrize("text", ["", "[]", '{"key": 1}', '{"key": "a", "config": []}'])
def test_a_job_without_its_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "planned.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"planned\.json: damaged"):
        make_run(tmp_path, threads=1, console=None)


def test_two_sweeps_in_one_folder_share_its_runs(tmp_path: Path, worker: tuple[str, str]) -> None:
    folder, runs = tmp_path / "sweep", [planned(1), planned(0.5)]
    with ThreadPoolExecutor(2) as pool:  # of two sweeps; their jobs are processes
        begun = [pool.submit(run_sweep, folder, runs, jobs=1, say=lambda line: None, worker=worker) for _ in range(2)]
    assert [future.result().finished for future in begun] == [tuple(runs)] * 2
    assert [attempts(folder, run) for run in runs] == [1, 1]


def test_a_run_that_another_process_lets_go_of_is_taken_over(tmp_path: Path, worker: tuple[str, str]) -> None:
    run = planned(1)
    with claim(tmp_path / run.name):
        stops = iter([False] * 5 + [True])
        outcome = run_sweep(
            tmp_path, [run], jobs=1, say=lambda line: None, worker=worker, stopped=lambda: next(stops, True)
        )
        assert outcome.finished == ()
    assert run_sweep(tmp_path, [run], jobs=1, say=lambda line: None, worker=worker).finished == (run,)


def test_stopping_ends_the_jobs(tmp_path: Path, worker: tuple[str, str]) -> None:
    run = planned(1)
    (tmp_path / "hold").touch()
    lines: list[str] = []
    outcome = run_sweep(
        tmp_path,
        [run],
        jobs=1,
        say=lines.append,
        worker=worker,
        stopped=lambda: attempts(tmp_path, run) == 1,
    )
    assert outcome.finished == ()
    assert lines[-1] == "stopping; 1 at work save what they have, which takes 2 minutes at most"
    with claim(tmp_path / run.name):  # nobody has it any more
        pass


def test_jobs_are_dealt_out_to_the_gpus_that_may_be_used(
    tmp_path: Path, worker: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    runs = [planned(1), planned(0.5)]
    run_sweep(tmp_path, runs, jobs=2, gpus=2, say=lambda line: None, worker=worker)
    seen = {(tmp_path / run.name / "attempts").read_text(encoding="utf-8").strip() for run in runs}
    assert seen == {"4 3", "7 3"}


def test_a_gpu_that_the_recipe_names_is_not_hidden_from_its_job(
    tmp_path: Path, worker: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run = PlannedRun(load_config(None, ["train.device=cuda:1"]), "abc", 1, 1)
    run_sweep(tmp_path, [run], jobs=2, gpus=2, say=lambda line: None, worker=worker)
    assert (tmp_path / run.name / "attempts").read_text(encoding="utf-8").startswith("None ")


def test_threads_are_shared_by_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sweep, "physical_cores", lambda: 4)
    assert [sweep.threads_of_a_job(jobs) for jobs in (1, 2, 3, 9)] == [4, 2, 1, 1]


def test_the_first_seed_of_each_point_stands_for_it(tmp_path: Path, worker: tuple[str, str]) -> None:
    runs = [planned(1), planned(0.5), planned(1, seed=1), planned(0.5, seed=1)]
    run_sweep(tmp_path, [runs[0], runs[2], runs[3]], jobs=3, say=lambda line: None, worker=worker)
    plan = {"format": 1, "base_key": "a", "runs": [run.to_json() for run in runs]}
    (tmp_path / "sweep.json").write_text(json.dumps(plan), encoding="utf-8")
    assert [path.name for path in finished_runs(tmp_path)] == [runs[0].name, runs[3].name]


def test_minutes_add_up_and_are_unknown_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 60.0, 0.0, 120.0])
    monkeypatch.setattr(sweep.time, "monotonic", lambda: next(now))

    def minutes() -> float | None:
        clock: dict[str, float | None] = json.loads((tmp_path / "clock.json").read_text(encoding="utf-8"))
        return clock["minutes"]

    with pytest.raises(KeyboardInterrupt), clocked(tmp_path):
        raise KeyboardInterrupt
    assert minutes() == 1.0
    with clocked(tmp_path):
        pass
    assert minutes() == 3.0
    (tmp_path / "clock.json").write_text('{"minutes": 3.0, "open": true}', encoding="utf-8")
    monkeypatch.setattr(sweep.time, "monotonic", lambda: 0.0)
    with clocked(tmp_path):
        pass
    assert minutes() is None


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_job_has_a_terminal_signal_group_of_its_own(tmp_path: Path, worker: tuple[str, str]) -> None:
    """Ctrl-C at the terminal reaches a job through the sweep alone, which lets it save."""
    run = planned(1)
    (tmp_path / "hold").touch()
    groups: list[int] = []

    def stopped() -> bool:
        if attempts(tmp_path, run):
            (tmp_path / "hold").unlink(missing_ok=True)
        return False

    started = subprocess.Popen

    def watched(*words: object, **options: object) -> subprocess.Popen[bytes]:
        process = started(*words, **options)  # type: ignore[call-overload]
        groups.append(os.getpgid(process.pid))
        return process  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep.subprocess, "Popen", watched)
        run_sweep(tmp_path, [run], jobs=1, say=lambda line: None, worker=worker, stopped=stopped)
    assert groups
    assert groups[0] != os.getpgrp()
    assert signal.SIGINT
