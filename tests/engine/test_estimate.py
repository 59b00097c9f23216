from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from mnet_det.engine import estimate as module
from mnet_det.engine.estimate import estimate, images_to_see, seconds_per_image
from mnet_det.engine.plan import Axes, Plan, PlannedRun, plan_sweep

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def _threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def plan(tmp_path: Path, toy: Path) -> Plan:
    recipe = tmp_path / "recipe.yaml"
    text = "model: {base_hw: [64, 64]}\ntrain: {epochs: 10, eval_every: 4, device: cpu}\n"
    recipe.write_text(text, encoding="utf-8")
    return plan_sweep(recipe, [f"data.root={toy}"], Axes(alphas=[0.5, 0.1], rhos=[1, 0.25], seeds=[0, 1]))


def test_a_run_sees_its_training_images_each_epoch_and_the_others_at_each_validation(plan: Plan) -> None:
    # 10 epochs of 6 images; 3 validations (4, 8, 10) of 4 images at half the price
    assert images_to_see(plan.runs[0], plan) == 10 * 6 + 0.5 * 3 * 4
    # Epoch 5 is behind, and with it the validation of epoch 4
    assert images_to_see(plan.runs[0], plan, behind=5) == 5 * 6 + 0.5 * 2 * 4
    assert images_to_see(plan.runs[0], plan, behind=10) == 0


def test_minutes_are_those_of_the_images_of_each_network_timed_once(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []

    def pretend(run: object, *, classes: int) -> float:
        timed.append((str(run), classes))
        return 10.0

    monkeypatch.setattr(module, "seconds_per_image", pretend)
    monkeypatch.setattr(module, "is_finished", lambda folder, run: run.point.alpha == 0.1 and run.seed == 0)
    minutes = estimate(plan, tmp_path, jobs=2, console=QUIET)
    assert len(timed) == 2  # of four networks, two cannot be built at 16 pixels
    left = {(run.point.alpha, run.seed): minutes.get(run.name) for run in plan.runs if run.fault is None}
    assert left == {(0.5, 0): 11.0, (0.5, 1): 11.0, (0.1, 0): None, (0.1, 1): 11.0}  # 66 images × 10 s
    assert [run.seed for run in plan.runs if run.fault is None and run.name not in minutes] == [0]  # finished
    assert [minutes[run.name] for run in plan.runs if run.fault is not None] == [None] * 4


def test_a_network_that_memory_does_not_hold_keeps_no_other_from_being_timed(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend(run: PlannedRun, *, classes: int) -> float:
        if run.point.alpha == 0.5:
            raise RuntimeError("can't allocate memory\nin C++")
        return 10.0

    monkeypatch.setattr(module, "seconds_per_image", pretend)
    minutes = estimate(plan, tmp_path, jobs=1, console=QUIET)
    known = {(run.point.alpha, run.seed): minutes[run.name] for run in plan.runs if run.fault is None}
    assert known == {(0.5, 0): None, (0.5, 1): None, (0.1, 0): 11.0, (0.1, 1): 11.0}


@pytest.mark.parametrize("words", [[], ["model.head=faster_rcnn", "model.anchor_sizes=[16,32]"]])
def test_a_step_of_any_head_can_be_timed(tmp_path: Path, toy: Path, words: list[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {base_hw: [64, 64]}\ntrain: {device: cpu}\n", encoding="utf-8")
    plan = plan_sweep(recipe, [f"data.root={toy}", *words], Axes(alphas=[0.1]))
    assert seconds_per_image(plan.runs[0], classes=6) > 0
