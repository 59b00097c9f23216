"""Tables for the terminal: complete, in order, and readable where a terminal is narrow."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from mnet_det.catalogue import CATALOGUE, DEFAULT_DETECTOR, find_entry
from mnet_det.config import load_config
from mnet_det.data.coco import NUMBERS
from mnet_det.engine.evaluate import Scores
from mnet_det.models import build_classifier
from mnet_det.models.cost import Cost, count_cost
from mnet_det.report.study import read_study
from mnet_det.report.tables import (
    bench_json,
    catalogue_json,
    print_bench,
    print_catalogue,
    print_cost,
    print_plan,
    print_scores,
    print_study,
)
from mnet_det.runtime.benchmark import Benchmark, BenchmarkRow, MatrixProduct, StageSummary


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


def measured(*names: str, precision: str = "float32") -> Benchmark:
    """Networks of 1 G multiply-adds reach 1 G / 10 ms = 100 G a second; the product 1000³ / 8 ms = 125 G."""
    stage = StageSummary(1.26, 2.0)
    stages = (stage, StageSummary(10.0, 11.0), stage, StageSummary(12.5, 15.0))
    return Benchmark(
        rows=[BenchmarkRow(name, 0.5, (300, 400), "openvino", 2, *stages, precision, 3.25) for name in names],
        product=MatrixProduct("a library 1.0", 1000, 2, StageSummary(8.0, 9.0)),
        images="8 drawn scenes",
        frame_hw=(480, 640),
        score=0.5,
    )


def costing(mult_adds: int) -> Cost:
    return Cost(params=5_000_000, mult_adds=mult_adds, by_kind={}, layers=[], separable_blocks=[])


def test_a_benchmark_names_the_machine_its_limit_and_the_frames_and_gives_p50_and_p95() -> None:
    shown = console()
    print_bench(shown, {"cpu": "A CPU", "logical_cores": 2}, measured("a.onnx", "b.pt"), costs={"b.pt": costing(10**9)})
    lines = text(shown).splitlines()
    assert lines[0] == "cpu A CPU, logical_cores 2"
    assert lines[1] == (
        "matrix product 1000x1000x1000, float32, by a library 1.0, 2 threads: 8.0 / 9.0 ms, "
        "125.0 G multiply-adds a second"
    )
    assert lines[2].strip() == "milliseconds, p50 / p95; 8 drawn scenes, 640x480, score at least 0.5, threads: 2"
    unknown, known, *models = cells(shown)
    stage = "1.3 / 2.0"
    assert unknown == ["a.onnx", "openvino", stage, "10.0 / 11.0", "", stage, "12.5 / 15.0", "80.0"]  # 1000 / 12.5
    assert known[4] == "0.80"  # 100 / 125
    assert models == [["a.onnx", "400x300", "3.2", "", ""], ["b.pt", "400x300", "3.2", "1", "5"]]


def test_a_benchmark_fits_140_columns_in_single_lines() -> None:
    names = ["ssd300 alpha 0.75 rho 1 (random weights)", "a name of forty-four letters and no letter more"[:44]]
    shown = console(width=140)
    print_bench(shown, {"cpu": "A CPU"}, measured(*names), costs=dict.fromkeys(names, costing(10**9)))
    assert [row[0] for row in cells(shown)] == names * 2
    assert [row[-1] for row in cells(shown)] == ["80.0", "80.0", "5", "5"]
    assert max(map(len, text(shown).splitlines())) <= 140


@pytest.mark.parametrize("width", [140, 80])
def test_a_benchmark_of_long_names_folds_and_cuts_nothing_off(width: int) -> None:
    """Columns at the right were cut off where the names took the room that was left."""
    name = "runs/" + "very_long_name_" * 5 + "/best.pt"
    shown = console(width=width)
    print_bench(shown, {"cpu": "A CPU"}, measured(name), costs={name: costing(10**9)})
    lines = [line for line in text(shown).splitlines() if line.startswith("│")]
    assert all(len(line) <= width and line.endswith("│") for line in lines)
    columns = ["".join(cells) for cells in zip(*(row for row in cells(shown) if len(row) == 8), strict=True)]
    assert columns[0] == name
    assert columns[-2:] == ["12.5 /15.0" if width == 80 else "12.5 / 15.0", "80.0"]


def test_a_benchmark_as_json_holds_the_limit_and_what_part_of_it_is_reached() -> None:
    content = bench_json({"cpu": "A CPU"}, measured("a.onnx", "b.pt"), costs={"b.pt": costing(10**9)})
    assert content["machine"] == {"cpu": "A CPU"}
    assert (content["images"], content["frame_hw"], content["score"]) == ("8 drawn scenes", (480, 640), 0.5)
    assert content["matrix_product"] == {
        "library": "a library 1.0",
        "size": 1000,
        "threads": 2,
        "ms": {"p50": 8.0, "p95": 9.0},
        "g_mult_adds_per_s": pytest.approx(125),
    }
    unknown, known = content["rows"]
    assert known == unknown | {
        "model": "b.pt",
        "mult_adds": 10**9,
        "params": 5_000_000,
        "g_mult_adds_per_s": pytest.approx(100),
        "fraction_of_matrix_product": pytest.approx(0.8),
    }
    json.dumps(content)


def test_int8_is_no_fraction_of_a_float32_product() -> None:
    eight_bits, costs = measured("a.pt", precision="int8"), {"a.pt": costing(10**9)}
    (row,) = bench_json({}, eight_bits, costs=costs)["rows"]
    assert row["g_mult_adds_per_s"] == pytest.approx(100)
    assert "fraction_of_matrix_product" not in row
    shown = console()
    print_bench(shown, {}, eight_bits, costs=costs)
    assert cells(shown)[0][4] == ""


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


@dataclass(frozen=True)
class PlannedRun:
    """What `print_plan` reads of `engine.plan.PlannedRun`."""

    name: str
    start: str | None = "mobilenet_v1_0.5_160_quant"
    mult_adds: int | None = 297_060_832
    params: int | None = 2_340_000
    fault: str | None = None
    input_hw: tuple[int, int] = (225, 300)

    def __str__(self) -> str:
        return f"ssd on {self.name}"


def test_a_plan_says_what_starts_from_what_and_how_long_it_takes() -> None:
    runs = [
        PlannedRun("a"),
        PlannedRun("b", start=None),
        PlannedRun("c", mult_adds=None, params=None, fault="the input would be 16x16 pixels"),
        PlannedRun("d"),
        PlannedRun("e"),
        PlannedRun("f"),
    ]
    shown = console()
    print_plan(shown, runs, {"a": 90.0, "b": 10.0, "c": None, "e": None, "f": 0.0}, jobs=2)
    assert cells(shown) == [
        ["ssd on a", "300x225", "mobilenet_v1_0.5_160_quant", "0.297", "2.34", "90.0"],
        ["ssd on b", "300x225", "random weights", "0.297", "2.34", "10.0"],
        ["ssd on c", "300x225", "mobilenet_v1_0.5_160_quant", "n/a", "n/a", "cannot be built"],
        ["ssd on d", "300x225", "mobilenet_v1_0.5_160_quant", "0.297", "2.34", "finished"],
        ["ssd on e", "300x225", "mobilenet_v1_0.5_160_quant", "0.297", "2.34", "not timed"],
        ["ssd on f", "300x225", "mobilenet_v1_0.5_160_quant", "0.297", "2.34", "0.1"],  # trained, and to be measured
    ]
    lines = text(shown).splitlines()
    assert "ssd on c: the input would be 16x16 pixels" in lines
    # not (90 + 10) / 2
    assert lines[-1].startswith("4 of 6 runs to do, 1 of them not timed, about 90.0 min with 2 at a time")


def test_a_study_has_a_row_a_point_and_says_what_is_missing(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5), seeds=(0, 1), failed=[(0.5, 1.0, 1)])
    shown = console()
    print_study(shown, read_study(folder))
    first, second = cells(shown)
    assert first[0] == "alpha 1, rho 1"
    assert first[1].count("±") == 1
    assert first[-1] == "2 of 2"
    assert "±" not in second[1]
    assert second[-1] == "1 of 2"
    assert "alpha 0.5, rho 1, seed 1: the loss was not finite" in text(shown)
