"""What `check` found, for the terminal: faults by kind, the numbers of the data, and what training would do."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mnet_det.data.check import Verdict
from mnet_det.data.faults import KINDS, Fault, Handling, count_kinds

PLACES_SHOWN = 5
"""Of each kind; all of them are in the JSON."""

CLASSES_SHOWN = 24
"""With more classes than this, only the ends of the histogram are shown."""

BAR_WIDTH = 24
LEAST_WIDTH = 72
"""Columns of a terminal up to which bars would take the room of names."""

HEADINGS: dict[Handling, str] = {
    "fatal": "fatal: training and scoring refuse these",
    "left out": "left out of training and scoring",
    "used": "used, but perhaps not as meant",
}

BOX_KINDS = ("negative-box", "empty-box", "box-outside")
"""Faults that cost a box; the others that leave something out cost an image."""


def print_verdict(console: Console, verdict: Verdict) -> None:
    """Faults grouped by kind, worst first, then the data in numbers; the last line says what training would do."""
    names = _short_names({fault.source for fault in verdict.faults})
    for handling, heading in HEADINGS.items():
        faults = [fault for fault in verdict.faults if fault.handling == handling]
        if faults:
            _say(console, heading)
            _print_faults(console, faults, names)
    sides = {"training": verdict.summary}
    if "val" in verdict.summary:
        sides["validation"] = verdict.summary["val"]
    for name, summary in sides.items():
        _say(console, f"{name}: {_line_of_numbers(summary)}")
    _print_sizes(console, {name: summary["box_sizes"] for name, summary in sides.items()})
    _print_classes(console, {name: summary["class_histogram"] for name, summary in sides.items()})
    if "anchors" in verdict.summary:
        _print_anchors(console, verdict.summary["anchors"])
    _say(console, _conclusion(verdict))


def _print_faults(console: Console, faults: Sequence[Fault], names: Mapping[str, str]) -> None:
    for kind, count in count_kinds(faults).items():
        _say(console, f"{KINDS[kind].title}: {count}", indent=2)
        for fault in itertools.islice((fault for fault in faults if fault.kind == kind), PLACES_SHOWN):
            _say(console, str(replace(fault, source=names[fault.source])), indent=4)
        if count > PLACES_SHOWN:
            _say(console, f"and {count - PLACES_SHOWN} more", indent=4)


def _short_names(sources: Collection[str]) -> dict[str, str]:
    """Annotation files by their name alone, unless two of them have the same."""
    names = {source: Path(source).name for source in sources}
    return names if len(set(names.values())) == len(sources) else {source: source for source in sources}


def _line_of_numbers(summary: Mapping[str, Any]) -> str:
    parts = [
        _count(summary["images"], "image"),
        f"{_count(summary['boxes'], 'box')} ({summary['crowd_boxes']} of them crowd regions)",
        _count(summary["classes"], "class"),
        f"{summary['images_without_boxes']} images without boxes",
    ]
    return ", ".join(parts)


def _print_anchors(console: Console, anchors: Mapping[str, Any]) -> None:
    """How many boxes the anchors reach; then each proposal, as lines to copy into the config as they stand."""
    unreached = anchors["unreached"]
    share = "n/a" if unreached is None else f"{1 - unreached:.1%}"
    _say(console, f"anchors of the config reach {share} of {_count(anchors['boxes'], 'box')} at IoU {anchors['iou']}")
    ways = [way for way in (anchors.get("proposal"), *anchors.get("alternatives", ())) if way]
    if ways:
        _say(console, "to reach more, put these lines under the config's own model: (a second one would be refused)")
    for number, way in enumerate(ways):
        cost = way["times_multiply_adds"]
        work = f", at about {cost:.3g} times the multiply-adds" if cost > 1 else ""
        _say(console, f"{'or, with' if number else 'with'} {way['unreached']:.1%} left out of reach{work}:")
        for line in way["lines"].split("\n"):
            console.print(Text(line), highlight=False, soft_wrap=True)


def _print_sizes(console: Console, sides: Mapping[str, Mapping[str, Any]]) -> None:
    """How large objects are, one column for each data set."""
    table = _table("objects by size", *sides)
    rows = {"small, below 32x32 px": "small", "medium": "medium", "large, from 96x96 px": "large"}
    for label, key in rows.items():
        table.add_row(label, *(f"{sizes[key]:,}" for sizes in sides.values()))
    table.add_section()
    edges = next(iter(sides.values()))["relative_sides"]["edges"]
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        counts = (sizes["relative_sides"]["boxes"][number] for sizes in sides.values())
        table.add_row(f"{low:.0%} to {high:.0%} of the image's side", *(f"{count:,}" for count in counts))
    table.add_section()
    for label, key in {"width px": "width_px", "height px": "height_px", "width / height": "width_by_height"}.items():
        table.add_row(f"{label}, p5 / p50 / p95", *(_percentiles(sizes[key]) for sizes in sides.values()))
    console.print(table)


def _print_classes(console: Console, sides: Mapping[str, Mapping[str, int]]) -> None:
    """Boxes of each class, most first; of many classes, those at both ends."""
    first = next(iter(sides.values()))
    names = sorted({name: None for counts in sides.values() for name in counts}, key=lambda name: -first.get(name, 0))
    table = _table("class", *sides)
    bar_width = min(BAR_WIDTH, console.width - LEAST_WIDTH)
    if bar_width > 0:
        table.add_column("")
    longest = max(first.values(), default=0) or 1
    shown, hidden = _ends(names)
    for name in shown:
        if name is None:
            table.add_row(f"and {hidden} more between")
            continue
        counts = [f"{counts[name]:,}" if name in counts else "not listed" for counts in sides.values()]
        bar = ["#" * round(bar_width * first.get(name, 0) / longest)] if bar_width > 0 else []
        table.add_row(Text(_printable(name, console)), *counts, *bar)
    if names:
        console.print(table)


def _table(first: str, *others: str) -> Table:
    """A column of names and columns of numbers, all of which fold where a terminal is narrow."""
    table = Table()
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _ends(names: Sequence[str]) -> tuple[list[str | None], int]:
    """The names to show, None where some are left out, and how many are."""
    if len(names) <= CLASSES_SHOWN:
        return list(names), 0
    half = CLASSES_SHOWN // 2
    return [*names[:half], None, *names[-half:]], len(names) - 2 * half


def _conclusion(verdict: Verdict) -> str:
    if verdict.fatal:
        counts = count_kinds(verdict.fatal)
        return "training cannot start: " + ", ".join(f"{KINDS[kind].title} ({n})" for kind, n in counts.items())
    left_out = [fault for fault in verdict.faults if fault.handling == "left out"]
    boxes = sum(fault.kind in BOX_KINDS for fault in left_out)
    parts = [_count(number, noun) for number, noun in ((boxes, "box"), (len(left_out) - boxes, "image")) if number]
    if not parts:
        return "training can start; nothing is left out"
    return f"training can start; {' and '.join(parts)} {'is' if len(left_out) == 1 else 'are'} left out"


def _count(number: int, noun: str) -> str:
    """`1 box`, `2 boxes`, `1 class`, `2 classes`."""
    ending = "es" if noun.endswith(("x", "s")) else "s"
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{ending}"


def _percentiles(values: Mapping[str, float | None]) -> str:
    return " / ".join("n/a" if value is None else f"{value:.3g}" for value in values.values())


def _say(console: Console, text: str, *, indent: int = 0) -> None:
    """Folded where a terminal ends; in files and pipes, lines stay whole for whoever searches them."""
    for line in text.split("\n"):
        words = Text(_printable(line, console))
        folded = words.wrap(console, max(1, console.width - indent)) if console.is_terminal else [words]
        for part in folded:
            console.print(Text(" " * indent + part.plain.rstrip()), highlight=False, soft_wrap=True)


def _printable(text: str, console: Console) -> str:
    """Names come from files: what would move the cursor, or cannot be written here, is shown by its number."""
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return shown.encode(console.encoding, "backslashreplace").decode(console.encoding)
