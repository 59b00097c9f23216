"""Tables for the terminal: complete, in order, and readable where a terminal is narrow."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from mnet_det.catalogue import CATALOGUE, DEFAULT_DETECTOR, find_entry
from mnet_det.config import load_config
from mnet_det.engine.evaluate import NUMBERS, Scores
from mnet_det.models import build_classifier
from mnet_det.report.cost import Cost, count_cost
from mnet_det.report.tables import catalogue_json, print_bench, print_catalogue, print_cost, print_scores
from mnet_det.runtime.benchmark import BenchmarkRow, StageSummary


@pytest.fixture(scope="module")
def cost() -> Cost:
    model = load_config(None, ["model.base_hw=[224,224]"]).model
    return count_cost(lambda: build_classifier(model), input_hw=model.input_hw)


def console(width: int = 160) -> Console:
    return Console(file=io.StringIO(), width=width)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def cells(console: Console) -> list[list[str]]:
    """The rows of all tables printed, cell by cell."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text(console).splitlines() if "│" in line]


def test_a_cost_table_has_layers_blocks_kinds_and_sums(cost: Cost) -> None:
    shown = console()
    print_cost(shown, "classifier", cost)
    rows = cells(shown)
    assert ["backbone.stem.conv", "3x3 convolution", "32x112x112", "10,838,016", "864"] in rows
    block = next(row for row in rows if row[0] == "backbone.blocks.1" and len(row) == 5)
    assert block[3:] == ["0.1267", "0.1267"]  # 1/64 + 1/9
    kind = next(row for row in rows if row[0] == "1x1 convolution")
    assert (kind[2], kind[4]) == ("94.86%", "74.59%")
    assert text(shown).splitlines()[-1] == "classifier: 568.7 M multiply-adds, 4.232 M parameters"


def test_no_name_is_cut_where_the_terminal_is_narrow(cost: Cost) -> None:
    """At 80 columns every layer of a block was shown as "backbone.block…"."""
    shown = console(width=80)
    print_cost(shown, "classifier", cost)
    assert "…" not in text(shown)
    first_column = "".join(row[0] for row in cells(shown) if len(row) == 5)
    assert all(layer.name in first_column for layer in cost.layers)


def test_scores_come_in_cocos_order_and_classes_best_first() -> None:
    numbers: dict[str, float | None] = dict.fromkeys(NUMBERS, 0.5)
    numbers["AP"], numbers["AP_small"] = 0.12345, None
    shown = console()
    print_scores(shown, Scores(numbers, {"none": None, "low": 0.1, "high": 0.9}, images=7, detections=42))
    rows = cells(shown)
    assert [row[0] for row in rows[:12]] == list(NUMBERS)
    assert rows[0] == ["AP", "0.123"]
    assert rows[3] == ["AP_small", "n/a"]
    assert rows[12:] == [["high", "0.900"], ["low", "0.100"], ["none", "n/a"]]
    assert text(shown).startswith("7 images, 42 detections\n")
    assert "left out" not in text(shown)


def test_classes_that_the_data_lack_are_counted() -> None:
    shown = console()
    print_scores(shown, Scores({"AP": 0.5}, {"cat": 0.5}, images=1, detections=1, classes_left_out=79))
    assert "79 of the model's classes are not in the data: what it found of them is left out\n" in text(shown)


def test_a_benchmark_names_the_machine_and_gives_p50_and_p95() -> None:
    stage = StageSummary(1.26, 2.0)
    row = BenchmarkRow("a.onnx", 0.5, (300, 400), "openvino", 2, stage, stage, stage, StageSummary(8.0, 9.5))
    shown = console()
    print_bench(shown, {"cpu": "A CPU", "logical_cores": 2}, [row])
    assert text(shown).startswith("cpu A CPU, logical_cores 2\n")
    expected = ["a.onnx", "openvino", "400x300", "2", "1.3 / 2.0", "1.3 / 2.0", "1.3 / 2.0", "8.0 / 9.5", "125.0"]
    assert cells(shown) == [expected]  # 1000 ms / 8 ms


def test_names_with_brackets_are_printed_as_they_are() -> None:
    """rich took `[m6]` of a class name for markup and left it out; `[/m6]` was a traceback."""
    shown = console()
    print_scores(shown, Scores({"AP": 0.5}, {"bolt [m6]": 0.5, "nut [/m6]": None}, images=1, detections=1))
    assert "bolt [m6]" in text(shown)
    assert "nut [/m6]" in text(shown)


def test_the_catalogue_shows_all_that_is_known_at_a_wide_terminal() -> None:
    shown = console()
    print_catalogue(shown, CATALOGUE, have={DEFAULT_DETECTOR})
    rows = cells(shown)
    what, stated = "detector, SSD300, COCO, 8-bit", "none stated"
    assert rows[0] == [DEFAULT_DETECTOR, "0.75", "300x300", "4.2 MB", "yes", what, stated]
    slim = next(row for row in rows if row[0] == "mobilenet_v1_1.0_224")
    assert slim[3:5] == ["n/a", ""]
    assert slim[6] == "top-1 70.9, ILSVRC val, TF-slim 2018-08"
    assert "  licence Apache-2.0" in text(shown)


@pytest.mark.parametrize("width", [80, 160])
def test_addresses_and_hashes_are_whole_at_any_width(width: int) -> None:
    shown = console(width=width)
    print_catalogue(shown, CATALOGUE, have=set())
    lines = text(shown).splitlines()
    assert "…" not in text(shown)
    assert all(len(line) <= width for line in lines if line.startswith(("│", "┃", "┏")))
    for entry in CATALOGUE:
        assert entry.name in lines
        assert f"  {entry.url}" in lines
    archived = find_entry("mobilenet_v1_1.0_224")
    assert f"  sha256 {archived.sha256} (of the archive)" in lines
    assert "  in it: mobilenet_v1_1.0_224.tflite" in lines
    assert "  sha256 not known; recorded at the first download" in lines


def test_a_narrow_catalogue_keeps_accuracy_and_licence() -> None:
    shown = console(width=80)
    print_catalogue(shown, [find_entry("mobilenet_v1_1.0_224")], have=set())
    words = "  classifier, ImageNet, float32; accuracy: top-1 70.9, ILSVRC val, TF-slim 2018-08"
    assert words in text(shown).splitlines()


def test_the_catalogue_as_json_has_every_key_and_comes_back() -> None:
    rows = catalogue_json(CATALOGUE)
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0]["name"] == DEFAULT_DETECTOR
    assert rows[0]["input_hw"] == [300, 300]
    assert {"alpha", "accuracy", "licence", "url", "sha256", "size", "member", "kind", "note"} <= set(rows[0])
