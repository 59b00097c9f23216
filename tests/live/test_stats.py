"""Rates, spreads and counts of a run, from known stamps."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mnet_det.errors import MnetDetError
from mnet_det.live.source import Frame
from mnet_det.live.stats import Spread, Tally, rate
from mnet_det.structures import Detections


def frame(index: int, *, read_s: float, due_s: float) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), index, index / 10, read_s, due_s)


def found(*labels: int) -> Detections:
    count = len(labels)
    return Detections(np.zeros((count, 4), np.float32), np.ones(count, np.float32), np.array(labels, np.int64))


def test_n_stamps_span_n_minus_one_intervals():
    """An FPS meter that divides n by the span of n stamps reads high: these five would be 12.5 a second."""
    assert rate([0.0, 0.1, 0.2, 0.3, 0.4]) == pytest.approx(10.0)  # 4 / 0.4


@pytest.mark.parametrize("stamps_s", [[], [1.0], [1.0, 1.0]])
def test_rate_of_no_interval_is_unknown(stamps_s):
    assert rate(stamps_s) is None


def test_spread_is_median_and_95th_percentile():
    # 0…100: the value at rank r is r.
    assert Spread.of([float(value) for value in range(101)]) == Spread(50.0, 95.0)
    assert Spread.of([]) == Spread(None, None)


def test_tally_measures_from_read_and_from_due():
    tally = Tally(started_s=98.0)
    tally.add(frame(0, read_s=100.00, due_s=99.99), found(1, 1, 0), shown_s=100.05, network_ms=7.0)
    tally.add(frame(1, read_s=100.10, due_s=100.09), found(1), shown_s=100.15, network_ms=9.0)
    tally.add(frame(4, read_s=100.40, due_s=100.39), found(), shown_s=100.45, network_ms=8.0)
    stats = tally.stats(("cat", "dog"), dropped=2)
    assert (stats.frames, stats.read, stats.dropped) == (3, 5, 2)
    assert stats.fps == pytest.approx(5.0)  # 2 intervals in 0.4 s
    assert stats.network_ms.p50 == 8.0
    assert stats.end_to_end_ms.p50 == pytest.approx(50.0)
    assert stats.lag_ms.p95 == pytest.approx(60.0)
    assert stats.first_frame_s == pytest.approx(2.05)
    assert stats.detections == {"dog": 3, "cat": 1}


def test_pause_is_left_out_of_the_rate():
    tally = Tally(started_s=0.0)
    for shown_s in (1.0, 1.1):
        tally.add(frame(0, read_s=shown_s, due_s=shown_s), found(), shown_s=shown_s, network_ms=1.0)
    tally.leave_out(60.0)
    tally.add(frame(0, read_s=61.2, due_s=61.2), found(), shown_s=61.2, network_ms=1.0)
    assert tally.stats((), dropped=0).fps == pytest.approx(10.0)
    assert tally.readings(dropped=0).fps == pytest.approx(10.0)


def test_panel_shows_the_latest_frames_only():
    tally = Tally(started_s=0.0)
    for index in range(100):
        shown_s = index * 1.0 if index < 50 else 49.0 + (index - 49) * 0.1
        tally.add(frame(index, read_s=shown_s, due_s=shown_s), found(), shown_s=shown_s, network_ms=float(index))
    readings = tally.readings(dropped=4)
    assert readings.fps == pytest.approx(10.0)
    assert readings.network_ms == 84.5  # median of 70…99
    assert readings.dropped == 4


def test_written_stats_have_the_documented_keys(tmp_path):
    path = tmp_path / "new/stats.json"
    Tally(started_s=0.0).stats((), dropped=0).write(path)
    nothing = {"p50": None, "p95": None}
    assert json.loads(path.read_text()) == {
        "frames": 0,
        "read": 0,
        "dropped": 0,
        "fps": None,
        "network_ms": nothing,
        "end_to_end_ms": nothing,
        "lag_ms": nothing,
        "first_frame_s": None,
        "detections": {},
    }
    assert list(path.parent.iterdir()) == [path]


def test_stats_that_cannot_be_written_are_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MnetDetError, match="cannot be written"):
        Tally(started_s=0.0).stats((), dropped=0).write(tmp_path / "file/stats.json")
