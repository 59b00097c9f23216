"""Print what the networks of Howard et al. 2017 cost, beside what ours cost: their Tables 4 to 8 and 13.

    .venv/bin/python tools/paper_tables.py
    .venv/bin/python tools/paper_tables.py --markdown --json paper_tables.json

Nothing is trained or computed, only counted, in well under a minute. Below each table stands why it differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mnet_det.config import ModelConfig, load_config
from mnet_det.errors import MnetDetError
from mnet_det.files import write_json
from mnet_det.models import build_classifier, build_detector
from mnet_det.models.cost import Cost, count_cost
from mnet_det.report import paper
from mnet_det.report.paper import PaperRow

UNITS = {"M": 1e6, "G": 1e9}
INTRODUCTION = (
    "Multiply-adds are those of convolutions and fully connected layers for one image, as the paper counts them; batch "
    "norm's vanish when it is folded. M is millions, G billions. Beside each number of the paper stand ours and the "
    "difference; = says that it is gone once ours is rounded to the paper's digits. Accuracies are the papers' own: we "
    "have trained none of these networks on ImageNet or COCO."
)
RPN_CHANNELS = 512
"""Of the 3x3 convolution in TensorFlow's Faster R-CNN (and in Ren et al.'s, on VGG 16)."""
LEAST_WIDTH = 110
"""Columns in which no number is cut short; a file or a pipe counts as 80."""


@dataclass(frozen=True)
class Row:
    """A network in a paper's table, and ours.

    Attributes:
        name: the paper's.
        accuracy: percent, as the paper prints it.
        mult_adds: as it prints them, in the table's unit.
        params: as it prints them, in millions.
        count: counts ours; the second time it knows.
    """

    name: str
    accuracy: str
    mult_adds: str
    params: str
    count: Callable[[], Cost]


Costs = Mapping[str, Cost]
"""Ours, by the names of a table's rows."""


@dataclass(frozen=True)
class PaperTable:
    """A table.

    Attributes:
        title: what it compares, and what its accuracies are.
        unit: of the multiply-adds, M or G.
        explain: why ours differ, a paragraph or more.
    """

    name: str
    title: str
    unit: str
    rows: Sequence[Row]
    explain: Callable[[Costs], Sequence[str]]


def printed(row: PaperRow, count: Callable[[], Cost]) -> Row:
    """A row of the tables that the reports know, too."""
    return Row(row.name, row.accuracy, row.mult_adds, row.params, count)


def classifier(*words: str, side: int = 224) -> Callable[[], Cost]:
    """Counts an ImageNet network; `words` are settings such as `alpha=0.5`."""
    model = _model(words, side)
    return cache(lambda: count_cost(lambda: build_classifier(model), input_hw=model.input_hw))


def detector(*words: str, side: int = 300, classes: int = 80) -> Callable[[], Cost]:
    """Counts a detector; `words` are settings such as `backbone=vgg16`."""
    model = _model(words, side)
    return cache(lambda: count_cost(lambda: build_detector(model, num_classes=classes), input_hw=model.input_hw))


def _model(words: Sequence[str], side: int) -> ModelConfig:
    return load_config(None, [f"model.{word}" for word in (f"base_hw=[{side},{side}]", *words)]).model


def faster_rcnn(backbone: str, *, side: int = 300, classes: int = 80) -> Callable[[], Cost]:
    """Counts Faster R-CNN as in the paper."""
    return detector("head=faster_rcnn", f"backbone={backbone}", side=side, classes=classes)


def explain_by_rounding(costs: Costs) -> list[str]:
    """Of the tables in which nothing is left over."""
    return [
        "Input and 1000 classes are the paper's. Inference: where a last digit differs (4866, 290), the paper left out "
        "the fully connected layer, 1.02 M; in the other rows it is in."
    ]


def explain_googlenet_and_vgg(costs: Costs) -> list[str]:
    """What torchvision's GoogLeNet and the paper's VGG 16 leave out."""
    google, vgg = costs["GoogleNet"], costs["VGG 16"]
    towers = [layer for layer in google.layers if layer.name.endswith("branch3.1.conv")]
    more = (25 - 9) / 9  # of the weights of a 3x3 kernel, and of its multiply-adds
    mult_adds = google.mult_adds + more * sum(layer.mult_adds for layer in towers)
    params = google.params + more * sum(layer.params for layer in towers)
    connected = vgg.by_kind["fully connected"].mult_adds
    return [
        "Input and 1000 classes are the paper's.",
        "GoogleNet is torchvision's, with batch norm, and with 3x3 convolutions where the original has 5x5. With 5x5 "
        f"it would cost {mult_adds / 1e6:,.0f} M and {params / 1e6:.2f} M.",
        f"VGG 16's convolutions cost {(vgg.mult_adds - connected) / 1e6:,.0f} M, its fully connected layers "
        f"{connected / 1e6:,.0f} M. Inference: the paper counts the former only.",
    ]


def explain_detectors(costs: Costs) -> list[str]:
    """Class count, anchors, the channels of the RPN, and what a proposal costs."""
    return [_explain_classes(), _explain_vgg(), _explain_inception(), _explain_proposals(costs)]


def _explain_classes() -> str:
    words = (f"{name} {count().params / 1e6:.2f} M" for name, count in WITH_90_CLASSES.items())
    return (
        "Inputs are 300x300 and 600x600. Ours have COCO's 80 classes, and background. Inference: the paper's have "
        f"TensorFlow's 90 label slots, with which the parameters of three round to its own: {'; '.join(words)}."
    )


def _explain_vgg() -> str:
    ours = SSD_VGG_WITH_90_CLASSES()
    fourth = sum(layer.mult_adds for layer in ours.layers if layer.name.endswith("_predictors.0")) / 3
    return (
        "SSD300, VGG: ours has three anchors a cell on the 38x38 map, the SSD paper four. With four, and 90 classes, "
        f"it costs {(ours.mult_adds + fourth) / 1e9:.2f} G; with three, it has {ours.params / 1e6:.1f} M parameters, "
        "more than the paper's. Inference: they differ in the extra maps and their predictors, which it does not "
        "describe."
    )


def _explain_inception() -> str:
    costs = [count() for count in INCEPTION_WITH_90_CLASSES.values()]
    rpn = [[layer for layer in cost.layers if layer.name.startswith("rpn.")] for cost in costs]
    channels = rpn[0][0].output[0]
    less = 1 - RPN_CHANNELS / channels  # of the convolution's outputs, and of the predictors' inputs
    small, large = (
        (cost.mult_adds - less * sum(layer.mult_adds for layer in layers)) / 1e9
        for cost, layers in zip(costs, rpn, strict=True)
    )
    params = (costs[0].params - less * sum(layer.params for layer in rpn[0])) / 1e6
    return (
        f"Faster R-CNN, Inception V2: ours has as many channels in the RPN as it gets, {channels}. Inference: the "
        f"paper's has {RPN_CHANNELS} on every network, as TensorFlow's does. With those, and 90 classes, ours costs "
        f"{small:.2f} G and {large:.2f} G, and has {params:.2f} M parameters."
    )


def _explain_proposals(costs: Costs) -> str:
    """T300 = F + S and T600 = 4 F + S, of which the paper prints T300 and T600."""
    printed = {row.name: float(row.mult_adds) for row in TABLE_13.rows}
    words = []
    for name in ("VGG", "Inception V2", "MobileNet"):
        small, large = printed[f"Faster R-CNN 300, {name}"], printed[f"Faster R-CNN 600, {name}"]
        first = (large - small) / 3
        ours = costs[f"Faster R-CNN 300, {name}"]
        second = (small - first) * 1e3 / ours.proposals
        words.append(
            f"{name} {first:.1f} G + {ours.proposals} x {second:.0f} M, ours {_once(ours) / 1e9:.1f} G + "
            f"{ours.proposals} x {ours.mult_adds_per_proposal / 1e6:.0f} M"
        )
    return (
        "Inference: four times the pixels cost four times the first stage and as many proposals, so the paper's two "
        f"sizes tell its stages apart. At 300x300: {'; '.join(words)}."
    )


def explain_others(costs: Costs) -> list[str]:
    """Where these come from."""
    return [
        "SSDLite on MobileNetV1 and V2: Sandler et al. 2018 (MobileNetV2), Table 6, 320x320, AP on test-dev; ours with "
        "80 classes. On MobileNetV3: torchvision's ssdlite320_mobilenet_v3_large, AP on val2017; ours with its 90 "
        "label slots, reduced tail and six anchors a cell on every map."
    ]


def _once(cost: Cost) -> int:
    """Multiply-adds of all that does not run for each proposal."""
    return cost.mult_adds - cost.proposals * cost.mult_adds_per_proposal


SSD_VGG_WITH_90_CLASSES = detector("backbone=vgg16", "predictor_kernel=3", classes=90)
WITH_90_CLASSES = {
    "SSD300, MobileNet": detector(classes=90),
    "Faster R-CNN, MobileNet": faster_rcnn("mobilenet_v1", classes=90),
    "Faster R-CNN, VGG": faster_rcnn("vgg16", classes=90),
}
INCEPTION_WITH_90_CLASSES = {side: faster_rcnn("inception_v2", side=side, classes=90) for side in (300, 600)}
TABLE_6 = tuple(printed(row, classifier(f"alpha={row.alpha:g}")) for row in paper.TABLE_6)
TABLE_7 = tuple(printed(row, classifier(side=row.side)) for row in paper.TABLE_7)
MOBILENET, NARROWER = TABLE_6[:2]
COUNTS_13 = (
    detector("backbone=vgg16", "predictor_kernel=3"),
    detector("backbone=inception_v2"),
    detector(),
    *(
        faster_rcnn(backbone, side=side)
        for side in (300, 600)
        for backbone in ("vgg16", "inception_v2", "mobilenet_v1")
    ),
)
TABLE_13 = PaperTable(
    "Table 13",
    "detectors; COCO AP",
    "G",
    tuple(map(printed, paper.TABLE_13, COUNTS_13)),
    explain_detectors,
)
V3_WORDS = ("backbone=mobilenet_v3_large", "reduced_tail=true", "reduce_boxes_in_lowest_layer=false")
TABLES = (
    PaperTable(
        "Table 4",
        "full against separable convolutions; ImageNet accuracy",
        "M",
        (Row("Conv MobileNet", "71.7", "4866", "29.3", classifier("separable=false")), MOBILENET),
        explain_by_rounding,
    ),
    PaperTable(
        "Table 5",
        "narrow against shallow; ImageNet accuracy",
        "M",
        (NARROWER, Row("Shallow MobileNet", "65.3", "307", "2.9", classifier("shallow=true"))),
        explain_by_rounding,
    ),
    PaperTable(
        "Table 6",
        "width; ImageNet accuracy",
        "M",
        TABLE_6,
        explain_by_rounding,
    ),
    PaperTable(
        "Table 7",
        "resolution; ImageNet accuracy",
        "M",
        TABLE_7,
        explain_by_rounding,
    ),
    PaperTable(
        "Table 8",
        "against popular networks; ImageNet accuracy",
        "M",
        (
            MOBILENET,
            Row("GoogleNet", "69.8", "1550", "6.8", classifier("backbone=googlenet")),
            Row("VGG 16", "71.5", "15300", "138", classifier("backbone=vgg16")),
        ),
        explain_googlenet_and_vgg,
    ),
    TABLE_13,
    PaperTable(
        "Other papers",
        "SSDLite320; COCO AP",
        "G",
        (
            Row("SSDLite, MobileNetV1", "22.2", "1.3", "5.1", detector("head=ssdlite", side=320)),
            Row(
                "SSDLite, MobileNetV2",
                "22.1",
                "0.8",
                "4.3",
                detector("head=ssdlite", "backbone=mobilenet_v2", side=320),
            ),
            Row(
                "SSDLite, MobileNetV3 large",
                "21.3",
                "0.583",
                "3.44",
                detector("head=ssdlite", *V3_WORDS, side=320, classes=90),
            ),
        ),
        explain_others,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Count and print every table."""
    parser = argparse.ArgumentParser(
        description="Print what the networks of Howard et al. 2017 cost, beside what ours cost.",
        epilog="Example: .venv/bin/python tools/paper_tables.py --markdown",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the tables there too")
    parser.add_argument("--markdown", action="store_true", help="print them as GitHub's Markdown")
    arguments = parser.parse_args(argv)
    console = Console()
    console.width = max(console.width, LEAST_WIDTH)
    _say(console, INTRODUCTION, whole=arguments.markdown)
    content = []
    for table in TABLES:
        costs = {row.name: row.count() for row in table.rows}
        notes = table.explain(costs)
        print_table(console, table, costs, notes, markdown=arguments.markdown)
        content.append(table_json(table, costs, notes))
    if arguments.json is not None:
        try:
            write_json(arguments.json, content)
        except MnetDetError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


def print_table(console: Console, table: PaperTable, costs: Costs, notes: Sequence[str], *, markdown: bool) -> None:
    """The paper's numbers, ours and the differences, and below them the notes."""
    grid = Table(box=MARKDOWN if markdown else SIMPLE_HEAD, pad_edge=markdown)
    grid.add_column("network", no_wrap=True)
    for column in ("paper's %", f"{table.unit} mult-adds", "ours", "diff", "M params", "ours", "diff"):
        grid.add_column(column, justify="right", no_wrap=True)
    for row in table.rows:
        cost = costs[row.name]
        grid.add_row(
            row.name,
            row.accuracy,
            *_compared(row.mult_adds, cost.mult_adds / UNITS[table.unit]),
            *_compared(row.params, cost.params / 1e6),
        )
    console.print(f"\n{'### ' if markdown else ''}{table.name}: {table.title}", highlight=False, style="bold")
    console.print(grid, highlight=False)
    for note in notes:
        _say(console, f"- {note}", whole=markdown)


def table_json(table: PaperTable, costs: Costs, notes: Sequence[str]) -> dict[str, Any]:
    """A table for JSON, in full numbers; the paper's are as exact as its print."""
    return {
        "table": table.name,
        "title": table.title,
        "rows": [
            {
                "network": row.name,
                "paper": {
                    "accuracy_percent": float(row.accuracy),
                    "mult_adds": round(float(row.mult_adds) * UNITS[table.unit]),
                    "params": round(float(row.params) * 1e6),
                },
                "ours": {"mult_adds": costs[row.name].mult_adds, "params": costs[row.name].params},
            }
            for row in table.rows
        ],
        "notes": list(notes),
    }


def rounds_to(number: float, printed: str) -> bool:
    """Whether a number is the printed one in as many decimals."""
    return f"{number:.{_decimals(printed)}f}" == printed


def _compared(printed: str, ours: float) -> tuple[str, str, str]:
    """The printed number, ours with a digit more, and the difference."""
    part = ours / float(printed) - 1
    digits = 1 if abs(part) >= 0.0005 else 2  # +0.0% would read like =
    difference = "=" if rounds_to(ours, printed) else f"{part:+.{digits}%}"
    return printed, f"{ours:.{_decimals(printed) + 1}f}", difference


def _decimals(printed: str) -> int:
    return len(printed.partition(".")[2])


def _say(console: Console, text: str, *, whole: bool) -> None:
    """A paragraph; `whole` keeps it on one line."""
    console.print(text, highlight=False, markup=False, soft_wrap=whole)


if __name__ == "__main__":
    sys.exit(main())
