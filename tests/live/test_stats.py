"""Rates, spreads and counts of a run, from known stamps."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mnet_det.errors import MnetDetError
from mnet_det.live.frame import Frame
from mnet_det.live.lineup import ModelCard
from mnet_det.live.stats import Reservoir, Spread, Tally, rate


def frame(index: int, *, read_s: float, due_s: float) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), index, index / 10, read_s, due_s)


def card(alpha: float) -> ModelCard:
    return ModelCard("ssd", alpha, (300, 300), "float32", "openvino", 2, nms=0.6, class_names=("cat",))


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
    tally.add(frame(0, read_s=100.00, due_s=99.99), ["dog", "dog", "cat"], shown_s=100.05, network_ms=7.0)
    tally.add(frame(1, read_s=100.10, due_s=100.09), ["dog"], shown_s=100.15, network_ms=9.0)
    tally.add(frame(4, read_s=100.40, due_s=100.39), [], shown_s=100.45, network_ms=8.0)
    stats = tally.stats([card(1.0)], dropped=2)
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
        tally.add(frame(0, read_s=shown_s, due_s=shown_s), [], shown_s=shown_s, network_ms=1.0)
    tally.leave_out(60.0)
    tally.add(frame(0, read_s=61.2, due_s=61.2), [], shown_s=61.2, network_ms=1.0)
    assert tally.stats([card(1.0)], dropped=0).fps == pytest.approx(10.0)
    assert tally.readings(dropped=0).fps == pytest.approx(10.0)


def test_meters_show_the_latest_frames_only():
    tally = Tally(started_s=0.0)
    for index in range(100):
        shown_s = index * 1.0 if index < 50 else 49.0 + (index - 49) * 0.1
        tally.add(frame(index, read_s=shown_s, due_s=shown_s), [], shown_s=shown_s, network_ms=float(index))
    readings = tally.readings(dropped=4)
    assert readings.fps == pytest.approx(10.0)
    assert readings.network_ms == 84.5  # median of 70…99
    assert (readings.dropped, readings.frames) == (4, 100)


def test_meters_begin_anew_with_another_model_and_each_has_its_own_numbers():
    tally = Tally(started_s=0.0)
    # Ten frames a second of the first, twenty of the second, the first once more.
    stamps = [(0.1, 0, 8.0), (0.2, 0, 8.0), (0.3, 0, 8.0), (0.35, 1, 4.0), (0.4, 1, 4.0), (0.45, 1, 4.0), (0.6, 0, 9.0)]
    for index, (shown_s, model, network_ms) in enumerate(stamps):
        at = frame(index, read_s=shown_s - 0.02, due_s=shown_s - 0.03)
        tally.add(at, [], shown_s=shown_s, network_ms=network_ms, model=model)
        if index == 5:
            readings = tally.readings(dropped=0, model=1)
            assert (readings.fps, readings.network_ms) == (pytest.approx(20.0), 4.0)
            assert readings.latency_ms == pytest.approx(30.0)
    readings = tally.readings(dropped=0)
    assert (readings.fps, readings.network_ms) == (None, 9.0)  # one frame has no rate yet
    asked_for = tally.readings(dropped=0, model=1)  # of which no frame was counted since
    assert (asked_for.fps, asked_for.latency_ms, asked_for.network_ms) == (None, None, None)
    wide, narrow = tally.stats([card(1.0), card(0.5), card(0.25)], dropped=0).models  # the third never ran
    assert (wide.alpha, wide.frames, wide.fps) == (1.0, 4, pytest.approx(10.0))  # 2 intervals in 0.2 s
    assert (narrow.alpha, narrow.frames, narrow.fps) == (0.5, 3, pytest.approx(20.0))
    assert (wide.network_ms.p50, narrow.network_ms.p95) == (8.0, 4.0)
    assert narrow.lag_ms.p50 == pytest.approx(30.0)


def test_reservoir_is_all_values_at_first_and_an_even_part_of_them_later():
    sample = Reservoir(most=1000)
    for value in range(1000):
        sample.add(value)
    assert list(sample.values) == list(range(1000))
    for value in range(1000, 100_000):
        sample.add(value)
    assert len(sample.values) == 1000
    # Uniform on 0 to 100,000: the standard error of the median is 50,000 / sqrt(1000), 1.6 % of the range.
    assert Spread.of(sample.values).p50 == pytest.approx(50_000, abs=6_000)


def test_written_stats_have_the_documented_keys(tmp_path):
    path = tmp_path / "new/stats.json"
    Tally(started_s=0.0).stats([], dropped=0).write(path)
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
        "models": [],
    }
    assert list(path.parent.iterdir()) == [path]


def test_stats_that_cannot_be_written_are_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MnetDetError, match="cannot be written"):
        Tally(started_s=0.0).stats([], dropped=0).write(tmp_path / "file/stats.json")
