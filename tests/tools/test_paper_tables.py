"""The paper's tables beside ours: every number near the paper's, and what is left of a difference explained."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TOLERANCE = 0.05
NAMES = ["Table 4", "Table 5", "Table 6", "Table 7", "Table 8", "Table 13", "Other papers"]


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    path = Path(__file__).parents[2] / "tools" / "paper_tables.py"
    spec = importlib.util.spec_from_file_location("paper_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "paper_tables", module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def two_tables(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool with Table 4 and a detector of Table 13; to count all takes too long here."""
    row = row_of(tool.TABLE_13, "Faster R-CNN 600, MobileNet")
    detectors = dataclasses.replace(tool.TABLE_13, rows=(row,), explain=tool.explain_by_rounding)
    monkeypatch.setattr(tool, "TABLES", (tool.TABLES[0], detectors))
    return tool


def row_of(table: Any, name: str) -> Any:
    return next(row for row in table.rows if row.name == name)


def test_the_paper_s_tables_are_all_there(tool: ModuleType) -> None:
    assert [table.name for table in tool.TABLES] == NAMES


def test_every_network_is_printed_and_written(
    two_tables: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tables.json"
    assert two_tables.main(["--markdown", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    content = json.loads(path.read_text())
    headings = [line.removeprefix("### ") for line in printed.splitlines() if line.startswith("### ")]
    assert [heading.partition(":")[0] for heading in headings] == ["Table 4", "Table 13"]
    for table, written in zip(two_tables.TABLES, content, strict=True):
        assert written["table"] == table.name
        assert written["notes"]
        assert [row["network"] for row in written["rows"]] == [row.name for row in table.rows]
        assert all(f"| {row.name} " in printed for row in table.rows)
    row = content[0]["rows"][1]
    assert row["network"] == "1.0 MobileNet-224"
    assert row["paper"] == {"accuracy_percent": 70.6, "mult_adds": 569_000_000, "params": 4_200_000}
    assert row["ours"] == {"mult_adds": 568_740_352, "params": 4_231_976}


@pytest.mark.slow
def test_each_network_costs_what_the_paper_says(tool: ModuleType) -> None:
    far = []
    for table in tool.TABLES:
        for row in table.rows:
            cost = row.count()
            pairs = [(row.mult_adds, cost.mult_adds / tool.UNITS[table.unit]), (row.params, cost.params / 1e6)]
            if not all(
                tool.rounds_to(ours, paper) or ours == pytest.approx(float(paper), rel=TOLERANCE)
                for paper, ours in pairs
            ):
                far.append(row.name)
    assert far == []


@pytest.mark.slow
def test_with_90_classes_parameters_round_to_the_paper_s(tool: ModuleType) -> None:
    printed = {"SSD300, MobileNet": 6.8, "Faster R-CNN, MobileNet": 6.1, "Faster R-CNN, VGG": 138.5}
    assert {name: round(count().params / 1e6, 1) for name, count in tool.WITH_90_CLASSES.items()} == printed


@pytest.mark.slow
def test_the_notes_explain_what_is_left(tool: ModuleType) -> None:
    """With TensorFlow's classes and RPN, Inception V2 rounds to the paper's 118.2 G, 129.6 G and 13.3 M."""
    notes = tool.TABLE_13.explain({row.name: row.count() for row in tool.TABLE_13.rows})
    assert "90 label slots" in notes[0]
    assert notes[2].endswith("ours costs 118.21 G and 129.56 G, and has 13.31 M parameters.")
    assert "Inception V2 3.8 G + 300 x 381 M, ours 3.9 G + 300 x 381 M" in notes[3]


def test_a_proposal_costs_on_inception_v2_what_its_layers_give_by_hand(tool: ModuleType) -> None:
    """The paper's 118.2 G and 129.6 G imply 381 M: (118.2 - (129.6 - 118.2) / 3) / 300."""
    fifth_a = 196 * (576 * (128 + 192) + 9 * 192 * 256) + 49 * 9 * (128 * 192 + 256 * 256)
    fifth_b = 49 * (1024 * (352 + 192 + 160 + 128) + 9 * (192 * 320 + 160 * 224 + 224 * 224))
    fifth_c = 49 * (1024 * (352 + 192 + 192 + 128) + 9 * (192 * 320 + 192 * 224 + 224 * 224))
    predictors = 1024 * (81 + 4 * 80)
    cost = row_of(tool.TABLE_13, "Faster R-CNN 300, Inception V2").count()
    assert cost.mult_adds_per_proposal == fifth_a + fifth_b + fifth_c + predictors
    assert cost.mult_adds / 1e9 == pytest.approx(118.2, rel=0.002)
    assert cost.mult_adds_per_proposal / 1e6 == pytest.approx((118.2 - (129.6 - 118.2) / 3) / 300 * 1e3, rel=0.001)


@pytest.mark.parametrize("words", [[], ["--markdown"]], ids=["terminal", "markdown"])
def test_no_number_is_cut_short_where_there_is_little_room(
    two_tables: ModuleType, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert two_tables.main(words) == 0
    printed = capsys.readouterr().out
    assert "…" not in printed
    line = next(line for line in printed.splitlines() if "Faster R-CNN 600, MobileNet " in line)
    assert line.replace("|", " ").split()[-7:] == ["19.8", "30.5", "30.47", "=", "6.1", "6.01", "-1.5%"]


def test_a_file_that_cannot_be_written_is_said_in_a_line(
    two_tables: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert two_tables.main(["--json", str(tmp_path / "file" / "tables.json")]) == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "printed", "same"),
    [(0.47, "0.5", True), (0.44, "0.5", False), (290.7, "290", False), (138.36, "138", True), (3.44, "3.44", True)],
)
def test_a_number_is_the_same_if_it_rounds_to_the_printed_one(
    tool: ModuleType, number: float, printed: str, same: bool
) -> None:
    assert tool.rounds_to(number, printed) is same
