"""A verdict in the terminal: grouped, worst first, short, legible where it is narrow, and ending in what follows."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from mnet_det.config import load_config, parse_config
from mnet_det.data.check import Verdict
from mnet_det.data.faults import Fault, count_kinds
from mnet_det.engine.anchor_reach import Count, Proposal, Reach
from mnet_det.report.verdict import print_verdict

SIZES: dict[str, Any] = {
    "small": 1,
    "medium": 20,
    "large": 3000,
    "relative_sides": {"edges": [0.0, 0.5, 1.0], "boxes": [3001, 20]},
    "width_px": {"p5": 1.25, "p50": 22.5, "p95": 333.3},
    "height_px": {"p5": None, "p50": None, "p95": None},
    "width_by_height": {"p5": 0.5, "p50": 1.0, "p95": 2.0},
}


def verdict(*faults: Fault, classes: dict[str, int] | None = None, val: dict[str, int] | None = None) -> Verdict:
    def summary(histogram: dict[str, int]) -> dict[str, Any]:
        return {
            "images": 2,
            "boxes": sum(histogram.values()),
            "crowd_boxes": 1,
            "classes": len(histogram),
            "images_without_boxes": 0,
            "unusable_images": 0,
            "class_histogram": histogram,
            "box_sizes": SIZES,
            "counts": count_kinds(faults),
        }

    found = summary({"cat": 3, "dog": 1} if classes is None else classes)
    return Verdict(faults, found if val is None else found | {"val": summary(val)})


def shown(verdict: Verdict, *, width: int = 100, encoding: str = "utf-8", terminal: bool = True) -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_verdict(
        Console(file=file, width=width, markup=False, force_terminal=terminal, color_system=None, legacy_windows=False),
        verdict,
    )
    file.seek(0)
    return file.read().splitlines()


def box_fault(kind: str, number: int, source: str = "data/train.json") -> Fault:
    return Fault(kind, "is wrong", source, annotation_id=number, image_id=5, file="a.jpg")


def image_fault(kind: str, number: int) -> Fault:
    return Fault(kind, "is wrong", "data/train.json", image_id=number, file=f"{number}.jpg")


def test_the_worst_comes_first_and_kinds_are_counted() -> None:
    lines = shown(verdict(box_fault("crowd", 1), image_fault("empty-file", 2), box_fault("bad-box", 3)))
    fatal, left_out, used = (
        next(number for number, line in enumerate(lines) if line.startswith(start))
        for start in ("fatal: ", "left out", "used, ")
    )
    assert fatal < left_out < used
    assert lines[fatal + 1 : fatal + 3] == [
        "  boxes that are not four finite numbers: 1",
        "    train.json: annotation 3, image 5, a.jpg: is wrong",
    ]


def test_of_many_faults_of_a_kind_the_first_few_are_shown() -> None:
    lines = shown(verdict(*(image_fault("grey-image", number) for number in range(1200))))
    start = lines.index("  grey images: 1200")
    assert [line.strip() for line in lines[start + 1 : start + 7]] == [
        *(f"train.json: image {number}, {number}.jpg: is wrong" for number in range(5)),
        "and 1195 more",
    ]


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    """Some exporters call every annotation file the same."""
    lines = shown(verdict(box_fault("crowd", 1, "train/_.json"), box_fault("crowd", 2, "valid/_.json")))
    assert "    train/_.json: annotation 1, image 5, a.jpg: is wrong" in lines
    assert "    valid/_.json: annotation 2, image 5, a.jpg: is wrong" in lines


@pytest.mark.parametrize(
    ("faults", "line"),
    [
        ([], "training can start; nothing is left out"),
        ([box_fault("crowd", 1)], "training can start; nothing is left out"),
        ([box_fault("empty-box", 1)], "training can start; 1 box is left out"),
        (
            [*(box_fault("empty-box", n) for n in (1, 2)), box_fault("box-outside", 3), image_fault("empty-file", 4)],
            "training can start; 3 boxes and 1 image are left out",
        ),
        (
            [image_fault("missing-file", 1), image_fault("missing-file", 2), box_fault("bad-box", 3)],
            "training cannot start: boxes that are not four finite numbers (1), missing image files (2)",
        ),
    ],
    ids=["clean", "crowd", "a box", "boxes and an image", "fatal"],
)
def test_the_last_line_says_what_training_would_do(faults: list[Fault], line: str) -> None:
    assert shown(verdict(*faults))[-1] == line


def test_numbers_of_both_data_sets_stand_beside_each_other() -> None:
    lines = shown(verdict(val={"dog": 7, "cow": 1}))
    assert "training: 2 images, 4 boxes (1 of them crowd regions), 2 classes, 0 images without boxes" in lines
    assert "validation: 2 images, 8 boxes (1 of them crowd regions), 2 classes, 0 images without boxes" in lines
    rows = cells(lines)
    assert ["large, from 96x96 px", "3,000", "3,000"] in rows
    assert ["50% to 100% of the image's side", "20", "20"] in rows
    assert ["height px, p5 / p50 / p95", "n/a / n/a / n/a", "n/a / n/a / n/a"] in rows
    assert [row[:3] for row in rows[-3:]] == [["cat", "3", "not listed"], ["dog", "1", "7"], ["cow", "not listed", "1"]]
    assert rows[-3][3] == 3 * rows[-2][3] != ""  # the bars of 3 and 1


def test_of_many_classes_both_ends_are_shown() -> None:
    lines = shown(verdict(classes={f"class {number}": number for number in range(80)}))
    names = [row[0] for row in cells(lines)][-25:]
    assert names[:2] == ["class 79", "class 78"]
    assert names[12] == "and 56 more between"
    assert names[-1] == "class 0"


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_cuts_nothing_off(width: int) -> None:
    long = "a class with a name of more letters than there are columns in this terminal"
    found = verdict(box_fault("empty-box", 123456789012), classes={long: 3, "犬" * 30: 2}, val={long: 1})
    lines = shown(found, width=width)
    assert all(cell_len(line) <= width for line in lines)
    assert "…" not in "".join(lines)
    together = "".join("".join(row[0] for row in cells(lines)).split())
    assert long.replace(" ", "") in together
    assert "犬" * 30 in together
    assert "annotation123456789012" in "".join("".join(lines).split())


def test_brackets_and_control_characters_in_names_do_nothing() -> None:
    lines = shown(verdict(classes={"[/red] [bold]": 2, "\x1b[2J\r\a": 1}))
    names = [row[0] for row in cells(lines)][-2:]
    assert names == ["[/red] [bold]", r"\x1b[2J\r\x07"]


def test_names_that_the_terminal_cannot_write_are_shown_by_number() -> None:
    """A pipe on Windows takes 256 letters, and rich raised at the first other one."""
    fault = Fault("missing-file", "no such image", "ordner ä.json", image_id=1, file="猫.jpg")
    lines = shown(verdict(fault, classes={"犬": 1}), encoding="cp1252")
    assert r"    ordner ä.json: image 1, \u732b.jpg: no such image" in lines
    assert any(r"\u72ac" in line for line in lines)


LONG = Fault("boxes-out-of-reach", f"{'50% of the boxes ' * 30}are out of reach,\nmodel.rho=2", "train.json")


def test_a_terminal_folds_lines_below_their_start_and_without_blanks_at_their_ends() -> None:
    lines = shown(verdict(LONG), width=60)
    start = next(number for number, line in enumerate(lines) if line.startswith("    train.json: 50%"))
    end = lines.index("    model.rho=2")
    assert end - start > 5
    assert all(line.startswith("    ") and len(line) <= 60 for line in lines[start:end])
    assert all(line == line.rstrip() for line in lines)


def test_in_a_pipe_nothing_is_folded() -> None:
    """Whoever searched the output for words missed those that a fold parted, and got blanks with the rest."""
    lines = shown(verdict(LONG), width=160, terminal=False)
    first, second = LONG.message.split("\n")
    start = lines.index(f"    train.json: {first}")
    assert lines[start + 1] == f"    {second}"
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_proposed_lines_can_be_copied_into_a_config(terminal: bool, tmp_path: Path) -> None:
    """They stood four columns to the right with blanks after them, and a config with them was refused."""
    sizes = list(range(16, 16 + 24))  # more than a line of a terminal holds
    ways = [
        Proposal({"anchor_scales": [0.17, 0.8]}, Count(200, 11)),
        Proposal({"rho": 1.5, "anchor_sizes": sizes}, Count(200, 4), cost=1.5**2),
    ]
    reach = Reach(Count(200, 40), {}, {}, ways[0], (ways[1],))
    found = verdict().adding([], anchors=reach.to_json())
    lines = shown(found, width=60, terminal=terminal)
    assert sum("own model:" in line for line in lines) == 1
    starts = [number for number, line in enumerate(lines) if line == "model:"]
    assert lines[starts[0] - 1] == "with 5.5% left out of reach:"
    assert " ".join(lines[starts[1] - 2 : starts[1]]).endswith(
        "or, with 2.0% left out of reach, at about 2.25 times the multiply-adds:"
    )
    for start, way in zip(starts, ways, strict=True):
        copied = list(itertools.takewhile(lambda line: line == "model:" or line.startswith("  "), lines[start:]))
        assert len(copied) == 1 + len(way.settings)
        alone, below = tmp_path / "alone.yaml", tmp_path / "below.yaml"
        alone.write_text("\n".join(copied), encoding="utf-8")
        below.write_text("\n".join(["model:", "  alpha: 0.5", *copied[1:], ""]), encoding="utf-8")
        assert load_config(alone) == parse_config({"model": way.settings})
        assert load_config(below) == parse_config({"model": {**way.settings, "alpha": 0.5}})


def test_anchors_are_told_where_they_were_measured() -> None:
    measured = verdict().adding([], anchors={"unreached": 0.125, "boxes": 8, "iou": 0.5})
    assert shown(measured)[-2] == "anchors of the config reach 87.5% of 8 boxes at IoU 0.5"
    nothing = verdict().adding([], anchors={"unreached": None, "boxes": 0, "iou": 0.5})
    assert shown(nothing)[-2] == "anchors of the config reach n/a of 0 boxes at IoU 0.5"


def cells(lines: list[str]) -> list[list[str]]:
    """The rows of all tables, cell by cell; headings have other lines between them."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
