"""The tool that times training: both sides learn from the same batch, and its figures come from the clock."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mnet_det.config import Config, ModelConfig
from mnet_det.models import build_detector
from tools.train_speed import TheirTraining, as_theirs, build_theirs, drawn_batch, main, ratio, report

TINY = ["--alpha", "0.1", "--size", "64", "--batch-size", "2", "--rounds", "1", "--threads", "1"]


def test_both_sides_have_as_many_weights_and_anchors() -> None:
    config = ModelConfig(alpha=0.1, base_hw=(64, 64))
    ours, theirs = build_detector(config, num_classes=80), build_theirs(config, num_classes=80)
    counts = [sum(parameter.numel() for parameter in side.parameters()) for side in (ours, theirs)]
    assert counts[0] == counts[1]
    images = torch.zeros(1, 3, 64, 64)
    maps = list(theirs.eval().backbone(images).values())
    heads = theirs.head(maps)
    candidates = ours.eval()(images.byte())
    assert heads["cls_logits"].shape == (1, candidates.scores.shape[1], 81)
    assert heads["bbox_regression"].shape == (1, candidates.scores.shape[1], 4)
    assert sum(theirs.anchor_generator.num_anchors_per_location()) == sum(ours.anchors.num_per_cell) + 1  # type: ignore[operator]
    transformed, _ = theirs.transform([images[0]])
    assert len(theirs.anchor_generator(transformed, maps)[0]) == candidates.scores.shape[1]


def test_their_side_learns_from_our_batch() -> None:
    config = Config(model=ModelConfig(alpha=0.1, base_hw=(64, 64)))
    training = TheirTraining(config, num_classes=80, device=torch.device("cpu"))
    batch = as_theirs(drawn_batch(2, side=64))
    losses = [training(batch) for _ in range(10)]
    assert losses[-1] < losses[0]


def test_steps_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["step", *TINY, "--json", str(tmp_path / "rates.json")])
    machine, command, what, *rates = capsys.readouterr().out.splitlines()
    assert machine.startswith("cpu ")
    assert command.startswith("python tools/train_speed.py step --alpha 0.1")
    assert "batches of 2" in what
    assert [line.split("  ")[0] for line in rates] == ["torchvision", "ours"]
    content = json.loads((tmp_path / "rates.json").read_text(encoding="utf-8"))
    assert all(len(rounds) == 1 and rounds[0] > 0 for rounds in content["images_per_second"].values())


def test_loops_from_files_are_timed(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["loop", str(toy), *TINY, "--device", "cpu", "--workers", "0", "--steps", "1"])
    _, _, what, *rates = capsys.readouterr().out.splitlines()
    assert "6 files on cpu" in what
    assert sum("waits for data" in line for line in rates) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(toy: Path) -> None:
    with pytest.raises(SystemExit, match="error: there is no GPU here"):
        main(["loop", str(toy)])


def test_a_setting_that_no_detector_has_is_one_line() -> None:
    with pytest.raises(SystemExit, match=r"^error: settings: model\.alpha: got -1\.0: "):
        main(["step", "--alpha", "-1"])


def test_ratio_is_the_median_of_rounds() -> None:
    # 2, 3 and 1, whatever the machine did in between.
    assert ratio([2, 30, 4], [1, 10, 4]) == 2


def test_waiting_is_what_one_batch_over_and_over_saves() -> None:
    rates = {"torchvision": [10.0], "ours": [30.0], "ours, one batch": [40.0]}
    lines = list(report(rates))
    assert "3.00 times torchvision's, waits for data 25% of the time" in lines[1]  # 1 - 30 / 40
    assert not np.any(["waits" in line for line in (lines[0], lines[2])])
