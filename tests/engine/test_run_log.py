"""The numbers of a run: `metrics.csv` is always whole, and a resumed run goes on where it left off."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from mnet_det.engine.run_log import RunLog


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_epoch_is_a_row_from_the_moment_it_is_written(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write(1, {"loss": 2.0})
        assert rows(tmp_path) == [{"epoch": "1", "loss": "2"}]
        log.write(2, {"loss": 1.23456789})
    assert rows(tmp_path) == [{"epoch": "1", "loss": "2"}, {"epoch": "2", "loss": "1.23457"}]


def test_a_number_that_only_some_epochs_have_is_an_empty_cell_in_the_others(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write(1, {"loss": 2.0})
        log.write(2, {"loss": 1.0, "AP": 0.5})
        log.write(3, {"loss": 1.0, "AP": None})  # COCOeval had nothing to judge
    assert [row["AP"] for row in rows(tmp_path)] == ["", "0.5", ""]


def test_a_resumed_run_drops_the_epochs_it_trains_again(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        for epoch in (1, 2, 3):
            log.write(epoch, {"loss": float(epoch)})
    with RunLog(tmp_path, first_epoch=1) as log:
        log.write(2, {"loss": 20.0})
    assert [(row["epoch"], row["loss"]) for row in rows(tmp_path)] == [("1", "1"), ("2", "20")]


def test_a_new_run_keeps_nothing_of_an_older_one(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        with RunLog(tmp_path) as log:
            log.write(1, {"loss": loss})
    assert rows(tmp_path) == [{"epoch": "1", "loss": "2"}]


def test_curves_that_cannot_be_written_are_no_reason_to_stop(tmp_path: Path) -> None:
    """A full disk ended the run in a traceback of TensorBoard's, and so did a file of that name."""
    (tmp_path / "tensorboard").touch()
    lines: list[str] = []
    with RunLog(tmp_path, say=lines.append) as log:
        log.write(1, {"loss": 2.0})
    assert rows(tmp_path) == [{"epoch": "1", "loss": "2"}]
    (line,) = lines
    assert line.startswith("no more TensorBoard curves, which cannot be written (")


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write(1, {"loss": 2.0, "AP": None})
        log.write(2, {"loss": 1.0, "AP": 0.5})
    (path,) = (tmp_path / "tensorboard").iterdir()
    points = [
        (event.step, value.tag, value.tensor.float_val[0])
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]
    assert points == [(1, "loss", 2.0), (2, "loss", 1.0), (2, "AP", pytest.approx(0.5))]
