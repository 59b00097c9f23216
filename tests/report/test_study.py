"""Folders read as studies: which runs count, what became of each, and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnet_det.errors import DataError
from mnet_det.report.study import Spread, Study, read_study


def change(path: Path, **fields: Any) -> None:
    """Overwrite fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def state_of(study: Study, alpha: float, seed: int = 0) -> tuple[str, str]:
    run = next(run for point in study.points for run in point.runs if (point.network.alpha, run.seed) == (alpha, seed))
    return run.state, run.reason


def test_the_spread_is_mean_and_sample_deviation() -> None:
    # mean of 1, 2, 6 is 3; squares of -2, -1, 3 sum to 14; sqrt(14 / 2) = sqrt(7)
    spread = Spread.of([1.0, 2.0, 6.0])
    assert (spread.mean, spread.seeds) == (3.0, 3)
    assert spread.sd == pytest.approx(math.sqrt(7))
    assert Spread.of([0.5]) == Spread(0.5, None, 1)


def test_points_are_widest_first_with_a_run_a_seed(make_sweep: Callable[..., Path]) -> None:
    study = read_study(make_sweep(alphas=(0.25, 1.0), rhos=(0.64, 1.0), seeds=(1, 0)))
    assert [point.words for point in study.points] == [
        "alpha 1, rho 1",
        "alpha 0.25, rho 1",
        "alpha 1, rho 0.64",
        "alpha 0.25, rho 0.64",
    ]
    assert [run.seed for run in study.points[0].runs] == [0, 1]
    assert study.is_sweep
    assert study.unfinished == ()


def test_ap_of_a_point_is_the_mean_of_its_seeds(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0,), seeds=(0, 1))
    for path, ap in zip(sorted(folder.glob("*/measured.json")), (0.2, 0.5), strict=True):
        content = json.loads(path.read_text())
        change(path, scores=content["scores"] | {"AP": ap, "AP_small": None})
    point = read_study(folder).points[0]
    assert point.ap is not None
    assert point.ap.mean == pytest.approx(0.35)
    assert point.ap.sd == pytest.approx(0.15 * math.sqrt(2))  # both 0.15 away: sqrt(2 · 0.15² / 1)
    assert point.number("AP_small") is None


def test_labels_say_what_tells_points_apart(make_sweep: Callable[..., Path]) -> None:
    assert [point.label for point in read_study(make_sweep(alphas=(1.0, 0.5))).points] == ["α 1", "α 0.5"]
    assert [point.label for point in read_study(make_sweep(alphas=(0.5,), rhos=(1, 0.64))).points] == [
        "α 0.5 · ρ 1",
        "α 0.5 · ρ 0.64",
    ]


def test_networks_of_several_kinds_are_named_by_kind(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5))
    plan = json.loads((folder / "sweep.json").read_text())
    plan["runs"][1]["point"]["head"] = "ssdlite"
    (folder / "sweep.json").write_text(json.dumps(plan))
    path = folder / plan["runs"][1]["name"] / "measured.json"
    change(path, point=plan["runs"][1]["point"])
    assert [point.words for point in read_study(folder).points] == ["ssd, alpha 1, rho 1", "ssdlite, alpha 0.5, rho 1"]


def test_each_run_is_finished_failed_or_not_done(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(failed=((0.75, 1.0, 0),), open=((0.5, 1.0, 0),))
    narrow = next(folder.glob("*alpha0.25*"))
    (narrow / "measured.json").unlink()
    study = read_study(folder)
    assert state_of(study, 1.0) == ("finished", "")
    name = next(folder.glob("*alpha0.75*")).name
    assert state_of(study, 0.75) == ("failed", f"the loss was not finite 5 times in a row (log: {name}/train.log)")
    assert state_of(study, 0.5) == ("not done", "not begun")
    assert state_of(study, 0.25) == ("not done", "trained up to epoch 16, not measured yet")
    assert [point.network.alpha for point in study.scored] == [1.0]


def test_what_was_measured_for_another_plan_does_not_count(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5))
    change(next(folder.glob("*alpha0.5*/measured.json")), key="another")
    state, reason = state_of(read_study(folder), 0.5)
    assert state == "not done"
    assert "another plan" in reason


def test_a_fault_of_the_plan_is_a_failure(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5), open=((0.5, 1.0, 0),))
    plan = json.loads((folder / "sweep.json").read_text())
    plan["runs"][1]["fault"] = "the input is too small"
    (folder / "sweep.json").write_text(json.dumps(plan))
    assert state_of(read_study(folder), 0.5) == ("failed", "the input is too small")


def test_a_failure_does_not_say_twice_that_it_failed(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(failed=((0.75, 1.0, 0),))
    change(next(folder.glob("*alpha0.75*/failed.json")), reason="failed, no memory", log=None)
    assert state_of(read_study(folder), 0.75) == ("failed", "no memory")


def test_folders_that_the_plan_does_not_name_are_passed_over(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0,))
    stray = folder / "stray"
    stray.mkdir()
    (stray / "measured.json").write_text("damaged")
    assert len(read_study(folder).points) == 1


def test_latency_goes_to_the_point_whose_run_was_timed(make_sweep: Callable[..., Path]) -> None:
    study = read_study(make_sweep(seeds=(0, 1)))
    assert all(point.latency is not None and point.latency.name == point.runs[0].name for point in study.points)


def test_a_sweep_is_read_without_latency(make_sweep: Callable[..., Path]) -> None:
    study = read_study(make_sweep(latency=False))
    assert study.latency is None
    assert [point.latency for point in study.points] == [None] * 4


def test_one_run_alone_is_a_study_of_one_point(make_run: Callable[..., Path]) -> None:
    study = read_study(make_run())
    assert not study.is_sweep
    assert [(point.words, len(point.finished)) for point in study.points] == [("alpha 0.5, rho 1", 1)]
    assert study.points[0].latency is not None
    assert study.data.class_names == ["RBC", "WBC", "Platelets"]


def test_empty_cells_of_the_history_are_left_out(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    (folder / "metrics.csv").write_text("epoch,loss,AP\n1,2.5,\n2,nan,0.25\n")
    assert read_study(folder).points[0].runs[0].history == ({"epoch": 1.0, "loss": 2.5}, {"epoch": 2.0, "AP": 0.25})


def test_a_folder_of_neither_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a sweep nor a measured run"):
        read_study(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_study(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"measured\.json: damaged, no JSON"),
        ("[]", r"measured\.json: the whole: .*expected what mnet-det wrote"),
        ('{"name": NaN}', "NaN is no number"),
        ("{}", r"measured\.json: name: field required"),
    ],
)
def test_damaged_files_are_named(text: str, said: str, make_run: Callable[..., Path]) -> None:
    folder = make_run()
    (folder / "measured.json").write_text(text)
    with pytest.raises(DataError, match=said):
        read_study(folder)


def test_counts_and_curves_must_fit_their_labels(make_run: Callable[..., Path]) -> None:
    path = make_run() / "measured.json"
    analysis = json.loads(path.read_text())["analysis"]
    change(path, analysis=analysis | {"recall": [0.0, 1.0]})
    with pytest.raises(DataError, match=re.escape("analysis.curves.0.50: expected 2 precisions a class")):
        read_study(path.parent)
    change(path, analysis=analysis | {"confusion": analysis["confusion"] | {"labels": ["a", "background"]}})
    with pytest.raises(DataError, match="expected 2 rows of 2 counts"):
        read_study(path.parent)


def test_a_plan_without_runs_or_with_two_of_one_name_is_refused(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep()
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    change(folder / "sweep.json", runs=[])
    with pytest.raises(DataError, match="has no runs"):
        read_study(folder)
    change(folder / "sweep.json", runs=[runs[0], runs[0]])
    with pytest.raises(DataError, match="two runs of its plan have one name"):
        read_study(folder)


def test_a_run_whose_weights_are_gone_is_not_finished(make_sweep: Callable[..., Path]) -> None:
    """The sweep would train it again, and the demo has nothing to show."""
    folder = make_sweep(alphas=(1.0,))
    next(folder.glob("*/best.pt")).unlink()
    ((_, run),) = read_study(folder).unfinished
    assert (run.state, run.reason) == ("not done", "its best.pt is gone")
