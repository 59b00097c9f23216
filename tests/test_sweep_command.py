"""`mnet-det sweep` and `mnet-det report` as a user runs them: on the toy data, in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mnet_det.cli import app
from mnet_det.engine import measure
from mnet_det.engine.claim import claim, is_taken
from mnet_det.errors import MnetDetError
from mnet_det.live.lineup import load_lineup
from mnet_det.runtime import load_predictor

REPORT = ("report.md", "report.html", "report.json")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest training there is."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(
        "model: {base_hw: [64, 64]}\n"
        "data: {augment: flip, workers: 0}\n"
        "train: {epochs: 1, batch_size: 2, device: cpu}\n",
        encoding="utf-8",
    )
    return path


def mnet_det(*words: object) -> Result:
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture(scope="module")
def sweep(recipe: Path, toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two points, of which there are no weights to start from, and one that cannot be built."""
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    result = mnet_det(
        *("sweep", recipe, f"data.root={toy}", "--alpha", "0.2,0.1", "--out", folder, "--jobs", 2, "--fps", 30)
    )
    assert result.exit_code == 0, result.output
    assert "For 30 fps" in result.output
    return folder


def runs_of(folder: Path) -> list[Path]:
    plan = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    return [folder / run["name"] for run in plan["runs"]]


def test_a_two_point_sweep_trains_measures_and_reports(sweep: Path) -> None:
    measured = [json.loads((run / "measured.json").read_text(encoding="utf-8")) for run in runs_of(sweep)]
    assert [content["point"]["alpha"] for content in measured] == [0.2, 0.1]
    assert {content["start"] for content in measured} == {None}
    latency = json.loads((sweep / "latency.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in latency["rows"]] == [run.name for run in runs_of(sweep)]
    for name in REPORT:
        assert (sweep / name).stat().st_size > 1000
    assert "random weights" in (sweep / "report.md").read_text(encoding="utf-8")


def test_the_same_command_again_repeats_nothing_and_another_seed_is_added(sweep: Path, recipe: Path, toy: Path) -> None:
    before = {run: (run / "measured.json").stat().st_mtime_ns for run in runs_of(sweep)}
    result = mnet_det("sweep", recipe, f"data.root={toy}", "--alpha", "0.2,0.1", "--out", sweep)
    assert result.exit_code == 0, result.output
    assert "begins" not in result.output
    assert {run: (run / "measured.json").stat().st_mtime_ns for run in runs_of(sweep)} == before


def test_a_report_while_runs_are_trained_measures_no_speed(sweep: Path) -> None:
    """It would measure what the training leaves of the machine, and keep it."""
    before = (sweep / "latency.json").read_bytes()
    with claim(runs_of(sweep)[1]):
        result = mnet_det("report", sweep)
    assert result.exit_code == 0, result.output
    assert "speed not measured while runs of this sweep are trained" in result.output
    assert (sweep / "latency.json").read_bytes() == before


def test_a_sweep_is_a_lineup_of_its_points(sweep: Path) -> None:
    models = load_lineup([str(sweep)], lambda word, rho: load_predictor(word, runtime="openvino"))
    assert [model.metadata.alpha for model in models] == [0.2, 0.1]
    assert all(model.metadata.class_scores is not None for model in models)


def test_a_report_whose_speeds_were_to_be_measured_again_does_not_pass_old_ones_off_as_new(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MnetDetError("the disk is full")

    monkeypatch.setattr(measure, "measure_latency", fail)
    assert mnet_det("report", sweep).exit_code == 0  # with the speeds that are known
    again = mnet_det("report", sweep, "--again")
    assert again.exit_code == 1
    assert "the disk is full" in str(again.exception)


def test_a_dry_run_plans_and_writes_nothing(recipe: Path, toy: Path, tmp_path: Path) -> None:
    words = ("sweep", recipe, f"data.root={toy}", "--alpha", "0.5,0.1", "--rho", "1,0.25", "--dry-run")
    result = mnet_det(*words, "--out", tmp_path / "sweep")
    assert result.exit_code == 0, result.output
    assert "mobilenet_v1_0.5_160_quant" in result.output
    assert "16x16" in result.output  # what cannot be built, and why
    assert "2 of 4 runs to do" in result.output
    assert not (tmp_path / "sweep").exists()


def test_a_run_is_reported_too(sweep: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # As `train` leaves it; its export is in the cache already
    shutil.copytree(
        runs_of(sweep)[1], run, ignore=shutil.ignore_patterns("measured.json", "planned.json", "clock.json")
    )
    result = mnet_det("report", run, "--ms", 50)
    assert result.exit_code == 0, result.output
    assert "scoring best.pt on its validation images" in result.output
    for name in (*REPORT, "measured.json", "latency.json"):
        assert (run / name).exists()
    again = mnet_det("report", run)
    assert "scoring" not in again.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep", "--alpha", "1"], "needs a config file and --alpha"),
        (["sweep", "a.yaml"], "needs a config file and --alpha"),
        (["sweep", "a.yaml", "--alpha", "wide"], "expected numbers"),
        (["sweep", "a.yaml", "--alpha", "1", "--seeds", "0.5"], "expected whole numbers"),
        (["sweep", "a.yaml", "--alpha", "1", "--seeds", ""], "expected whole numbers"),
        (["report", ".", "--fps", "30", "--ms", "3"], "one and the same budget"),
    ],
)
def test_a_slip_is_explained(words: list[str], message: str) -> None:
    result = mnet_det(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def start(words: Sequence[object]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "mnet_det", *map(str, words)], stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kill -9")
@pytest.mark.parametrize("with_job", [False, True])
def test_a_sweep_killed_with_9_goes_on_and_repeats_no_finished_run(
    recipe: Path, toy: Path, tmp_path: Path, with_job: bool
) -> None:
    """The sweep alone, whose job then goes on as an orphan and is waited for; or its job as well."""
    folder = tmp_path / "sweep"
    words = ("sweep", recipe, f"data.root={toy}", "train.epochs=3", "--alpha", "0.2,0.1", "--out", folder)
    sweeping = start(words)
    deadline = time.monotonic() + 300
    while not (folder / "sweep.json").exists() or not (runs_of(folder)[1] / "last.pt").exists():
        assert sweeping.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first, second = runs_of(folder)
    finished = (first / "measured.json").read_bytes()
    sweeping.kill()
    sweeping.wait()
    if with_job:
        subprocess.run(["pkill", "-9", "-f", f"sweep-run {second}"], check=False)
    assert start(words).wait(300) == 0
    assert (first / "measured.json").read_bytes() == finished
    assert (first / "train.log").read_text(encoding="utf-8").count("epoch 1/3") == 1
    assert (second / "measured.json").exists()
    log = (second / "train.log").read_text(encoding="utf-8")
    assert log.count("epoch 3/3") == 1


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_sweep_that_is_stopped_saves_and_goes_on(recipe: Path, toy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    words = ("sweep", recipe, f"data.root={toy}", "train.epochs=200", "--alpha", "0.1", "--out", folder)
    sweeping = start(words)
    deadline = time.monotonic() + 300
    while not (folder / "sweep.json").exists() or not (runs_of(folder)[0] / "metrics.csv").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for _ in range(3):  # impatience leaves no job at work without a parent
        sweeping.send_signal(signal.SIGTERM)
    assert sweeping.wait(120) == 128 + signal.SIGTERM
    (run,) = runs_of(folder)
    assert not is_taken(run)
    assert (run / "last.pt").exists()
    clock = json.loads((run / "clock.json").read_text(encoding="utf-8"))
    assert clock["minutes"] > 0
    assert not clock["trained"]
