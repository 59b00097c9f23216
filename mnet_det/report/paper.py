"""What the paper prints of width, resolution and detectors: Howard et al. 2017 (MobileNets), Tables 6, 7 and 13."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mnet_det.report.study import Point
from mnet_det.weights.coco_labels import COCO_LABELS

SOURCE = "Howard et al. 2017"
FULL_SIDE = 224


@dataclass(frozen=True)
class PaperRow:
    """A network in a table of the paper; numbers are as it prints them, with as many digits.

    Attributes:
        name: the paper's.
        accuracy: percent.
        mult_adds: in millions (Tables 6 and 7), in billions (Table 13).
        params: in millions.
        alpha: the width multiplier.
        side: of the square input, pixels.
    """

    name: str
    accuracy: str
    mult_adds: str
    params: str
    alpha: float = 1.0
    side: int = FULL_SIDE

    @property
    def rho(self) -> float:
        """The resolution multiplier, of Tables 6 and 7."""
        return self.side / FULL_SIDE


MOBILENET = PaperRow("1.0 MobileNet-224", "70.6", "569", "4.2")
TABLE_6 = (
    MOBILENET,
    PaperRow("0.75 MobileNet-224", "68.4", "325", "2.6", alpha=0.75),
    PaperRow("0.5 MobileNet-224", "63.7", "149", "1.3", alpha=0.5),
    PaperRow("0.25 MobileNet-224", "50.6", "41", "0.5", alpha=0.25),
)
"""Width; ImageNet top-1 accuracy, M multiply-adds, M parameters."""
TABLE_7 = (
    MOBILENET,
    PaperRow("1.0 MobileNet-192", "69.1", "418", "4.2", side=192),
    PaperRow("1.0 MobileNet-160", "67.2", "290", "4.2", side=160),
    PaperRow("1.0 MobileNet-128", "64.4", "186", "4.2", side=128),
)
"""Resolution; the same units."""
TABLE_13 = (
    PaperRow("SSD300, VGG", "21.1", "34.9", "33.1", side=300),
    PaperRow("SSD300, Inception V2", "22.0", "3.8", "13.7", side=300),
    PaperRow("SSD300, MobileNet", "19.3", "1.2", "6.8", side=300),
    PaperRow("Faster R-CNN 300, VGG", "22.9", "64.3", "138.5", side=300),
    PaperRow("Faster R-CNN 300, Inception V2", "15.4", "118.2", "13.3", side=300),
    PaperRow("Faster R-CNN 300, MobileNet", "16.4", "25.2", "6.1", side=300),
    PaperRow("Faster R-CNN 600, VGG", "25.7", "149.6", "138.5", side=600),
    PaperRow("Faster R-CNN 600, Inception V2", "21.9", "129.6", "13.3", side=600),
    PaperRow("Faster R-CNN 600, MobileNet", "19.8", "30.5", "6.1", side=600),
)
"""Detectors; COCO AP in percent, G multiply-adds, M parameters."""


@dataclass(frozen=True)
class Kept:
    """What a network keeps of the full one's score, and of its multiply-adds; 1 is all of it."""

    name: str
    mult_adds: float
    score: float


def kept_by_paper(table: Sequence[PaperRow]) -> tuple[Kept, ...]:
    """Table 6 or 7 relative to the full network: top-1 accuracy on ImageNet, another task than detection."""
    full = MOBILENET
    return tuple(
        Kept(
            f"α {row.alpha:g}" if row.side == FULL_SIDE else f"ρ {row.rho:.2g}",
            float(row.mult_adds) / float(full.mult_adds),
            float(row.accuracy) / float(full.accuracy),
        )
        for row in table
    )


def kept_by_ours(points: Sequence[Point]) -> tuple[tuple[Point, Kept], ...]:
    """Points relative to alpha 1, rho 1 of their own head and backbone: mean AP.

    Empty unless such a reference and another point were scored; points without a reference are left out.
    """
    kept = []
    for point in points:
        reference = _reference(point, points)
        if reference is None or point.ap is None or point.mult_adds is None:
            continue
        ap, mult_adds = reference
        kept.append((point, Kept(point.label, point.mult_adds / mult_adds, point.ap.mean / ap)))
    full = [point for point, _ in kept if point.network.alpha == 1 and point.network.rho == 1]
    return tuple(kept) if len(kept) > len(full) else ()


def full_network(point: Point, points: Sequence[Point]) -> Point | None:
    """Alpha 1, rho 1 of a point's head and backbone; None where it was not scored."""
    for other in points:
        network = other.network
        same = (network.head, network.backbone) == (point.network.head, point.network.backbone)
        if same and network.alpha == 1 and network.rho == 1 and other.ap is not None and other.mult_adds:
            return other
    return None


def _reference(point: Point, points: Sequence[Point]) -> tuple[float, int] | None:
    """AP and multiply-adds of the full network of a point's kind."""
    full = full_network(point, points)
    if full is None or full.ap is None or full.mult_adds is None:
        return None
    return (full.ap.mean, full.mult_adds) if full.ap.mean > 0 else None


def tables_beside(points: Sequence[Point]) -> dict[str, tuple[PaperRow, ...]]:
    """Which of Tables 6 and 7 shrink what these points shrink, by name: width, resolution or both."""
    tables: dict[str, tuple[PaperRow, ...]] = {}
    if len({point.network.alpha for point in points}) > 1:
        tables["Table 6"] = TABLE_6
    if len({point.network.rho for point in points}) > 1:
        tables["Table 7"] = TABLE_7
    return tables


def is_coco(class_names: Sequence[str]) -> bool:
    """Whether these are COCO's 80 classes, in any order: only then is Table 13 of the same task."""
    return len(class_names) == 80 and set(class_names) == {name for name in COCO_LABELS if name != "???"}
