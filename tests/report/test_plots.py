"""The picture of a benchmark, read from the figure rather than from its pixels."""

from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import pytest

from mnet_det.report.plots import draw_bench, write_figure
from mnet_det.runtime.benchmark import Benchmark, BenchmarkRow, MatrixProduct, StageSummary

MACHINE = {"cpu": "A CPU"}


def row(name: str, *stages_ms: float, total: tuple[float, float]) -> BenchmarkRow:
    stages = [StageSummary(value, 2 * value) for value in stages_ms]
    return BenchmarkRow(name, 0.5, (300, 300), "openvino", 2, *stages, StageSummary(*total), "float32", 3.0)


def measured(*rows: BenchmarkRow) -> Benchmark:
    product = MatrixProduct("a library", 1024, 2, StageSummary(10, 11))
    return Benchmark(list(rows), product, "8 drawn scenes", (480, 640), 0.5)


def test_bars_are_medians_end_to_end_and_the_whisker_ends_at_p95() -> None:
    """1 + 10 + 2 = 13 ms, the whisker from there to 20; 1000 / 12.5 = 80 frames a second."""
    figure = draw_bench(MACHINE, measured(row("a", 1, 10, 2, total=(12.5, 20)), row("b", 3, 4, 5, total=(12, 12))))
    (axes,) = figure.axes
    bars = [[(bar.get_x(), bar.get_width()) for bar in stage] for stage in axes.containers if hasattr(stage, "patches")]
    assert bars == [[(0, 1), (0, 3)], [(1, 10), (3, 4)], [(11, 2), (7, 5)]]
    first, second = ([x for x, _ in line.get_segments()[0]] for line in axes.collections)
    assert first == pytest.approx([13, 20])
    assert second == pytest.approx([12, 12])
    assert [text.get_text() for text in axes.texts] == ["80 fps", "83 fps"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row on top


def test_rows_the_machine_and_what_was_looked_at_are_named() -> None:
    figure = draw_bench(MACHINE, measured(row("a", 1, 1, 1, total=(3, 3))))
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a ·\N{NO-BREAK SPACE}openvino"]
    assert figure.get_suptitle() == "A CPU\n8 drawn scenes, 640x480, score at least 0.5, threads: 2"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["preprocess", "network", "postprocess"]


@pytest.mark.parametrize("count", [1, 24])
def test_long_names_neither_overlap_nor_leave_the_picture(count: int) -> None:
    name = "/somewhere/deep/in/a/folder/of/folders/runs/$cameras$-at-night-and-in-fog/best.pt"
    figure = draw_bench(MACHINE, measured(*[row(name, 1, 10, 2, total=(13, 15)) for _ in range(count)]))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
    assert len(boxes) == count
    assert all(upper.y0 > lower.y1 for upper, lower in itertools.pairwise(boxes))
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_the_file_is_a_png_of_1200_columns(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.png"
    write_figure(path, draw_bench(MACHINE, measured(row("a", 1, 1, 1, total=(3, 4)))))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert cv2.imread(str(path)).shape[1] == 1200
    assert [file.name for file in path.parent.iterdir()] == ["bench.png"]
