"""The whole story: small here, in full where there is time."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
from rich.console import Console

from mnet_det import quickstart
from mnet_det.config import load_config
from mnet_det.data.toy import draw_toy
from mnet_det.errors import ConfigError
from mnet_det.runtime import load_predictor

MADE = ["report.md", "detections.png", "clip.mp4", "model.onnx", "run"]
"""What the last lines name, in their order."""


@pytest.fixture
def _small(tmp_path: Path, toy_words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(load_config(None, [*toy_words, "train.epochs=1"]).to_yaml())
    monkeypatch.setattr(quickstart, "CONFIG", config)
    monkeypatch.setattr(quickstart, "draw_toy", functools.partial(draw_toy, train_images=6, val_images=4))


def assert_complete(folder: Path, out: str) -> None:
    last = [line.split()[-1] for line in out.splitlines()[-len(MADE) :]]
    assert last == [str(folder / name) for name in MADE]
    assert all((folder / name).exists() for name in MADE)
    report = (folder / "report.md").read_text(encoding="utf-8")
    header, _, row = report.splitlines()[:3]
    assert header.startswith("| model | input | AP |")
    assert row.startswith("| ssd on mobilenet_v1, alpha ")
    assert row.count("|") == header.count("|")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert f"| {results['scores']['AP']:.3f} | {results['scores']['AP50']:.3f} |" in row
    assert results["machine"]["cpu"] in report
    assert results["live"]["frames"] == 180
    clip = cv2.VideoCapture(str(folder / "clip.mp4"))
    assert (clip.get(cv2.CAP_PROP_FRAME_COUNT), clip.get(cv2.CAP_PROP_FPS)) == (180, 30)
    assert cv2.imread(str(folder / "detections.png")) is not None
    assert load_predictor(folder / "model.onnx").class_names[0] == "disc"


@pytest.mark.usefixtures("_small")
def test_it_goes_through_and_names_what_it_made_last(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = cli("quickstart")
    assert answer.status == 0, answer.err
    assert_complete(Path("quickstart"), answer.out)


@pytest.mark.usefixtures("_small")
def test_a_second_time_it_takes_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("not to be touched")
    seen: list[Path] = []

    def stop(folder: Path) -> None:
        seen.append(folder)
        raise ConfigError("stop here")

    monkeypatch.setattr(quickstart, "draw_toy", stop)
    with pytest.raises(ConfigError, match="stop here"):
        quickstart.run_quickstart(tmp_path / "out", console=Console(quiet=True))
    assert seen == [tmp_path / "out-2" / "toy"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_outside_a_checkout_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quickstart, "CONFIG", tmp_path / "toy.yaml")
    with pytest.raises(ConfigError, match=r"toy\.yaml: not there; the quickstart runs in a clone of the project"):
        quickstart.run_quickstart(tmp_path / "out", console=Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_in_full_it_finds_the_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = quickstart.run_quickstart(tmp_path / "out", console=Console(width=200))
    assert_complete(tmp_path / "out", capsys.readouterr().out)
    assert outcome.scores.ap >= 0.50
