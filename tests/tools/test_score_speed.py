"""The tool that times the scorers: its set is as it says, its ratio that of its own rows, its difference none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mnet_det.engine.evaluate import Scores
from tools.score_speed import largest_difference, main, random_set


def test_the_set_has_what_makes_scoring_hard() -> None:
    truth, results = random_set(images=60, classes=5, detections=10)
    assert len(results) == 60 * 10
    assert {r["image_id"] for r in results} == {image["id"] for image in truth["images"]}
    assert np.diff(sorted(image["id"] for image in truth["images"])).tolist() == [7] * 59
    annotations = truth["annotations"]
    assert 6.5 < len(annotations) / 60 < 8.5  # 7.4 are expected
    assert {a["id"] for a in annotations} == set(range(1, 1 + len(annotations)))
    assert 0 < sum(a["iscrowd"] for a in annotations) < 0.03 * len(annotations)
    assert all(0 < a["area"] < a["bbox"][2] * a["bbox"][3] for a in annotations)
    assert len({r["score"] for r in results}) < len(results)
    assert random_set(images=60, classes=5, detections=10) == (truth, results)


def test_both_scorers_are_timed_and_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faster_coco_eval")
    path = tmp_path / "speed.json"
    words = ["--images", "20", "--classes", "3", "--detections", "10", "--rounds", "1", "--json", str(path)]
    main(words)
    machine, command, what, slow, fast, difference = capsys.readouterr().out.splitlines()
    assert machine.startswith("cpu ")
    assert command == f"python tools/score_speed.py {' '.join(words)}"
    assert what.startswith("20 images, ")
    assert what.endswith(" boxes, 3 classes, 200 detections; seconds, median of 1")
    (row,) = json.loads(path.read_text())["rows"]
    assert row["ratio"] == pytest.approx(row["pycocotools_s"] / row["faster_s"])
    assert slow == f"pycocotools {row['pycocotools_s']:8.2f}"
    assert fast == f"faster      {row['faster_s']:8.2f}, {row['ratio']:.1f} times as fast"
    assert row["largest_difference"] < 1e-9
    assert difference.endswith(f"{row['largest_difference']:.1e}")


def test_a_number_that_only_one_scorer_has_is_a_difference() -> None:
    one = Scores({"AP": 0.5, "AP50": 0.75}, {"a": None}, images=1, detections=1)
    assert largest_difference(one, one) == 0
    assert largest_difference(one, Scores({"AP": 0.5, "AP50": 0.5}, {"a": None}, images=1, detections=1)) == 0.25
    assert largest_difference(one, Scores({"AP": 0.5, "AP50": 0.75}, {"a": 0.0}, images=1, detections=1)) == 1


def test_a_missing_scorer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(SystemExit, match=r"^error: the scorer 'faster' needs faster-coco-eval: "):
        main(["--images", "1", "--rounds", "1"])
