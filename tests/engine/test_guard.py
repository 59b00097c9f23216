"""What is not finite stays out of the weights, and its images are named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from rich.console import Console

from mnet_det.config import Config, load_config
from mnet_det.engine import train as module
from mnet_det.engine.checkpoint import load_checkpoint
from mnet_det.engine.guard import MOST_SKIPPED
from mnet_det.engine.train import train
from mnet_det.errors import MnetDetError


@pytest.fixture
def configure(toy_words: tuple[str, ...]) -> Callable[..., Config]:
    return lambda *words: load_config(None, [*toy_words, *words])


def poison(monkeypatch: pytest.MonkeyPatch, is_bad: Callable[[int, list[int]], bool]) -> list[list[int]]:
    """Let the first layer give NaN for an image of batches that `is_bad`, told how many came before; those batches."""
    true_step = module._step
    seen: list[list[int]] = []
    bad: list[list[int]] = []

    def step(run: Any, state: Any, parts: Any, *rest: Any) -> Any:
        ids = parts[0].image_ids
        seen.append(ids)
        if not is_bad(len(seen) - 1, ids):
            return true_step(run, state, parts, *rest)
        bad.append(ids)

        def one_image(layer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output.index_fill(0, torch.tensor([1]), torch.nan)

        hook = state.detector.normalize.register_forward_hook(one_image)
        try:
            return true_step(run, state, parts, *rest)
        finally:
            hook.remove()

    monkeypatch.setattr(module, "_step", step)
    return bad


def test_one_bad_image_costs_one_step_and_nothing_else(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch norm had taken NaN into its running statistics before the loss was looked at, and kept it for ever."""
    bad = poison(monkeypatch, lambda number, ids: number == 1)
    console = Console(record=True, width=300, file=(tmp_path / "log").open("w"))
    with console.file:
        result = train(configure(), out=tmp_path / "run", console=console)
    text = console.export_text()
    assert f"step skipped: the loss is not finite (class nan, box nan) on images {bad[0]}" in text
    assert "1 steps skipped" in text
    saved = load_checkpoint(tmp_path / "run" / "last.pt")
    assert all(torch.isfinite(tensor).all() for tensor in saved.weights.values())
    assert saved.training is not None
    assert all(torch.isfinite(tensor).all() for tensor in saved.training["detector"].values())
    assert result.scores.images == 4
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["skipped_steps"], second["skipped_steps"]) == ("1", "")
    assert float(first["loss"]) > 0


def test_a_run_that_stays_bad_stops_with_the_batch_saved(
    configure: Callable[..., Config], tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = poison(monkeypatch, lambda number, ids: number >= 4)
    with pytest.raises(MnetDetError, match=rf"{MOST_SKIPPED} steps in a row; that batch is saved .*smaller train\.lr"):
        train(configure("train.epochs=9"), out=tmp_path)
    assert len(bad) == MOST_SKIPPED
    batch = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert batch["image_ids"] == bad[-1]
    assert batch["images"].shape == (2, 3, 64, 64)
    assert [len(boxes) for boxes in batch["boxes_xyxy"]] == [len(labels) for labels in batch["labels"]]
    content = json.loads((toy / "annotations" / "instances_train2017.json").read_text())
    assert set(batch["image_ids"]) <= {image["id"] for image in content["images"]}
    assert cv2.imread(str(tmp_path / "bad_batch.jpg")) is not None
    assert load_checkpoint(tmp_path / "last.pt").training is not None


@pytest.mark.parametrize(("scale", "learns"), [(4.0, True), (1.0, False)])
def test_a_gradient_that_no_scale_mends_is_not_left_to_the_scaler(
    scale: float, learns: bool, configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp16, a run whose gradient was NaN for ever skipped all of its steps without a word."""
    taken: list[bool] = []
    true_step = module._step

    def step(run: Any, state: Any, *rest: Any) -> Any:
        state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        hook = state.detector.class_predictors[0].weight.register_hook(lambda gradient: gradient * torch.nan)
        try:
            losses = true_step(run, state, *rest)
        finally:
            hook.remove()
        taken.append(losses is not None)
        return losses

    monkeypatch.setattr(module, "_step", step)
    config = configure("train.epochs=1")
    if learns:
        train(config, out=tmp_path)
        assert taken == [True] * 3
    else:
        with pytest.raises(MnetDetError, match=r"the gradient is not finite on images \[\d, \d\]: 3 steps in a row"):
            train(config, out=tmp_path)


def test_bad_steps_that_are_not_in_a_row_do_not_stop_a_run(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = poison(monkeypatch, lambda number, ids: number % 2 == 0)
    train(configure("train.epochs=3", "train.eval_every=3"), out=tmp_path)
    assert len(bad) == 5 > MOST_SKIPPED
