"""The tool that times the demo beside its stages: both run over the clip, and the ratio is theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.demo_speed import main


def test_both_are_timed_over_the_clip(toy: Path, toy_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--frames", "20", "--rounds", "1", "--runtime", "openvino"]
    main([str(toy_model), str(toy / "clip.mp4"), *words])
    machine, model, frames, *rates, switch = capsys.readouterr().out.splitlines()
    assert machine.startswith("cpu ")
    assert "in openvino" in model
    assert frames.startswith("20 frames of ")
    alone, demo = (float(line.split(" frames")[0].split()[-1]) for line in rates)
    assert float(rates[1].split()[-3]) == pytest.approx(demo / alone, abs=0.01)
    assert "the slowest of 1 took" in switch  # asked for with the tenth picture


@pytest.mark.parametrize(("clip", "message"), [("gone.mp4", "no such file"), (".", "no image")])
def test_a_mistake_is_one_line(clip: str, message: str, toy_model: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        main([str(toy_model), str(tmp_path / clip), "--runtime", "openvino"])
