"""The tool that times the training pipeline: every case has a row, and a ratio is that of its own row."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.data_speed import main

SMALLEST = ("--size", "64", "--batch-size", "2", "--repeat", "1", "--rounds", "1")


def test_every_preset_and_number_of_workers_has_a_row(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(toy), "--split", "val", "--presets", "flip,ssd", "--workers", "1", *SMALLEST])
    machine, command, what, _, *rows, checking = capsys.readouterr().out.splitlines()
    assert machine.startswith("cpu ")
    assert (
        command == f"python tools/data_speed.py {toy} --split val --presets flip,ssd --workers 1 {' '.join(SMALLEST)}"
    )
    assert what == "4 images at 64x64, 1 times an epoch, in batches of 2; images a second, median of 1"
    assert [row.split()[:2] for row in rows] == [["flip", "1"], ["ssd", "1"]]
    for row in rows:
        plain, cached, ratio = map(float, row.split()[2:])
        assert ratio == pytest.approx(cached / plain, rel=0.02)
    name, rate = checking.split()
    assert name == "check"
    assert float(rate) > 0


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*no such folder of images"):
        main([str(tmp_path), *SMALLEST])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--presets", "flip,all"], "got 'flip,all', expected some of none,flip,ssd,ssdlite"),
        (["--workers", "0"], "got '0', expected a whole number from 1 on"),
    ],
)
def test_a_word_that_means_nothing_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["data", *words])
    assert message in capsys.readouterr().err
