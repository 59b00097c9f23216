"""The tool that times `eval`: both ways look at every image, and its figures come from the clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.eval_speed import main


def test_both_ways_are_timed(toy: Path, toy_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = toy / "annotations" / "instances_val2017.json"
    words = ["--images", toy / "val2017", "--annotations", annotations, "--rounds", "1", "--runtime", "openvino"]
    main([str(toy_model), *map(str, words)])
    machine, what, *rates = capsys.readouterr().out.splitlines()
    assert machine.startswith("cpu ")
    assert "in openvino" in what
    assert "4 images" in what
    serial, parallel = (float(line.split(" images")[0].split()[-1]) for line in rates)
    assert serial > 0
    assert parallel > 0


def test_a_mistake_is_one_line(toy: Path, tmp_path: Path) -> None:
    words = [str(tmp_path / "none.onnx"), "--images", str(toy / "val2017")]
    with pytest.raises(SystemExit, match=r"error: .*none\.onnx: no such model file"):
        main([*words, "--annotations", str(toy / "annotations" / "instances_val2017.json")])
