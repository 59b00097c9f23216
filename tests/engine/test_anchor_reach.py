"""Whether a detector's anchors reach the boxes of a data set, and which settings would."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torchvision.ops import box_iou

from mnet_det.config import Config, ModelConfig, load_config, parse_config
from mnet_det.data.coco import CocoData, read_coco
from mnet_det.engine.anchor_reach import AnchorMap, Count, Proposal, Reach, anchor_maps, best_iou, measure_reach
from mnet_det.models import anchors as anchors_module
from mnet_det.models import build_detector

HEADS: dict[str, dict[str, Any]] = {
    "ssd": {"alpha": 0.1, "base_hw": (96, 130)},
    "ssd, six on the first map": {"alpha": 0.1, "base_hw": (100, 100), "reduce_boxes_in_lowest_layer": False},
    "ssd, three taps": {"alpha": 0.1, "base_hw": (96, 128), "taps": (5, 11, 13)},
    "ssdlite": {"head": "ssdlite", "backbone": "mobilenet_v2", "alpha": 0.1, "base_hw": (97, 97), "rho": 1.3},
    "inception, unpadded": {"backbone": "inception_v3", "base_hw": (120, 141)},
    "faster_rcnn": {"head": "faster_rcnn", "alpha": 0.1, "base_hw": (100, 140), "resize": "letterbox"},
    "pyramid": {"head": "faster_rcnn", "fpn": True, "alpha": 0.1, "base_hw": (96, 160), "anchor_sizes": (20, 45)},
}
SMALL = ModelConfig(alpha=0.1, base_hw=(160, 160))


def write_set(folder: Path, images: list[tuple[int, int, list[list[float]]]], *, crowd: bool = False) -> CocoData:
    """Images of a height and a width with boxes xywh, the classes `a` and `b` in turns; no pixels."""
    boxes = [(number, box) for number, (_, _, boxes) in enumerate(images) for box in boxes]
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": h, "width": w} for n, (h, w, _) in enumerate(images)],
        "annotations": [
            {"id": n + 1, "image_id": image, "category_id": n % 2 + 1, "bbox": box, "iscrowd": int(crowd)}
            for n, (image, box) in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    path = folder / "data.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_coco(path, folder)


def real_anchors(model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The anchors [A, 4] that a built detector asks for while it detects."""
    made: list[np.ndarray] = []
    tile = anchors_module._tile

    def record(*arguments: Any) -> np.ndarray:
        made.append(tile(*arguments))
        return made[-1]

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(anchors_module, "_tile", record)
        build_detector(model, num_classes=2).eval()(torch.zeros((1, 3, *model.input_hw), dtype=torch.uint8))
    return made[0]


@pytest.mark.parametrize("settings", HEADS.values(), ids=HEADS.keys())
def test_best_overlap_is_that_of_torchvision_over_all_anchors(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(**settings)
    anchors = real_anchors(model, monkeypatch)
    height, width = model.input_hw
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (400, 2, 2)) ** rng.uniform(0.3, 3, (400, 1, 1)) * (width, height)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    theirs = box_iou(torch.from_numpy(boxes), torch.from_numpy(anchors).double()).max(dim=1).values.numpy()
    maps = anchor_maps(model)
    ours = best_iou(boxes, maps)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert 0.05 < (theirs > 0.5).mean() < 0.95
    cells = [round(width / part.cell_wh[0]) * round(height / part.cell_wh[1]) for part in maps]
    assert sum(n * len(part.shapes_wh) for n, part in zip(cells, maps, strict=True)) == len(anchors)


def test_overlaps_by_hand() -> None:
    """A map of 2 by 2 cells of 20 × 10 pixels, with one anchor of 8 × 4 in the middle of each: (10, 5), (30, 5), …"""
    maps = [AnchorMap(np.array([[8.0, 4.0]]), (20.0, 10.0))]
    boxes = np.array(
        [
            [26, 13, 34, 17],  # is the anchor around (30, 15)
            [8, 3, 16, 7],  # moved by 2: shares 6 × 4 = 24 of 32 + 32 - 24 = 40
            [10, 5, 11, 6],  # one pixel in the middle of the first: 1 of 32
            [6, 3, 14, 5],  # its upper half: 16 of 32
            [6, 3, 14, 4.9],
            [19, 9, 21, 11],  # between all four, 5 and 3 away from each: shares nothing
        ]
    )
    overlaps = best_iou(boxes, maps)
    assert overlaps == pytest.approx([1, 0.6, 1 / 32, 0.5, 8 * 1.9 / 32, 0])
    assert best_iou(np.zeros((0, 4)), maps).shape == (0,)


def test_many_boxes_are_compared_in_parts_as_few_are() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 160, (20_000, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    maps = anchor_maps(SMALL)
    parts = [best_iou(boxes[start : start + 5000], maps) for start in range(0, 20_000, 5000)]
    np.testing.assert_array_equal(best_iou(boxes, maps), np.concatenate(parts))


def test_boxes_are_counted_by_size_and_class(tmp_path: Path) -> None:
    """SSD's first anchor at 160 pixels is a square of 0.1 × 160 = 16 around (8, 8); the others are larger."""
    data = write_set(
        tmp_path,
        [
            # Twice as large as the input: (0, 0, 32, 32) is that anchor; 2 pixels a side are one. Areas 1024 and 4.
            (320, 320, [[0, 0, 32, 32], [100, 100, 2, 2]]),
            # The whole image is large, and overlaps the last map's square of 0.95: 0.9025. A line is out of reach.
            (160, 160, [[0, 0, 160, 160], [0, 80, 160, 2]]),
        ],
    )
    reach = measure_reach(Config(model=SMALL), data, propose=False)
    assert reach.total == Count(4, 2)
    assert reach.by_size == {"small": Count(2, 2), "medium": Count(1, 0), "large": Count(1, 0)}  # 1024 is medium
    assert reach.by_class == {"a": Count(2, 0), "b": Count(2, 2)}
    assert str(reach) == "anchors reach 50.0% of 4 boxes at IoU 0.5"
    fault = reach.fault("data.json")
    assert fault is not None
    assert fault.kind == "boxes-out-of-reach"
    assert fault.source == "data.json"
    assert "50.0% of 4 boxes" in fault.message
    assert "(small 100% of 2, medium 0% of 1, large 0% of 1, b 100% of 2)" in fault.message
    content = json.loads(json.dumps(reach.to_json()))
    assert content["unreached"] == 0.5
    assert content["by_size"]["small"] == {"unreached": 1.0, "boxes": 2}
    assert content["worst_classes"] == {"b": {"unreached": 1.0, "boxes": 2}}
    assert content["proposal"] is None


def test_letterboxed_images_keep_their_aspect(tmp_path: Path) -> None:
    """A square of 112 pixels in an image of 1120 × 160: stretched to 160 × 160, it is 16 × 112; anchors end at 1 : 3.

    Letterboxed, it is 16 × 16 around (40, 8), as is an anchor.
    """
    data = write_set(tmp_path, [(160, 1120, [[224, 0, 112, 112]])])
    stretched, boxed = (
        measure_reach(Config(model=SMALL.model_copy(update={"resize": mode})), data, propose=False)
        for mode in ("stretch", "letterbox")
    )
    assert (stretched.total, boxed.total) == (Count(1, 1), Count(1, 0))


@pytest.mark.parametrize("boxes", [[], [[0, 0, 2, 2]]], ids=["no boxes", "a crowd alone"])
def test_without_boxes_of_single_objects_there_is_no_fault(boxes: list[list[float]], tmp_path: Path) -> None:
    data = write_set(tmp_path, [(160, 160, boxes), (100, 200, [])], crowd=True)
    reach = measure_reach(Config(model=SMALL), data)
    assert reach.total == Count(0, 0)
    assert reach.fault("data.json") is None
    assert str(reach) == "anchors reach 100.0% of 0 boxes at IoU 0.5"
    assert reach.to_json()["unreached"] is None


def test_a_twentieth_out_of_reach_is_no_fault() -> None:
    assert Reach(Count(100, 5), {}, {}).fault("data.json") is None
    assert Reach(Count(100, 6), {}, {}).fault("data.json") is not None


def many(tmp_path: Path, *, sides: tuple[float, float], count: int = 300) -> CocoData:
    """Boxes of sides between two lengths at random places of images of 160 × 160."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count // 10):
        wh = rng.uniform(*sides, (10, 2))
        xy = rng.uniform(0, 160 - wh)
        images.append((160, 160, np.concatenate([xy, wh], axis=1).tolist()))
    return write_set(tmp_path, images)


QUICK: dict[str, Any] = {"backbone": "squeezenet", "base_hw": [160, 160]}  # without batch norm, soon built
FASTER: dict[str, Any] = {**QUICK, "head": "faster_rcnn", "anchor_sizes": [64, 128]}
MOBILE: dict[str, Any] = {"alpha": 0.1, "base_hw": [160, 160]}
LINES = re.compile(
    r"model:"
    r"(\n  rho: (1\.5|2))?"
    r"(\n  taps: \[5, 11, 13\])?"
    r"(\n  anchor_scales: \[0\.\d+, 0\.\d+\])?"
    r"(\n  anchor_sizes: \[\d+(, \d+)*\])?"
)
CASES: dict[str, tuple[dict[str, Any], tuple[float, float], set[str], list[set[str]]]] = {
    # Large anchors for boxes of middle size: other sizes do.
    "ssd": ({**QUICK, "anchor_scales": [0.9, 0.95]}, (30, 60), {"anchor_scales"}, []),
    "faster_rcnn": (FASTER, (28, 56), {"anchor_sizes"}, []),
    # Boxes much smaller than a cell of 16 pixels: no size does, denser cells do.
    "ssd, small boxes": (MOBILE, (8, 14), set(), [{"rho", "anchor_scales"}, {"taps", "anchor_scales"}]),
    "faster_rcnn, small boxes": (FASTER, (6, 9), set(), [{"rho", "anchor_sizes"}]),
    # Something between: both help.
    "pyramid": (
        {**MOBILE, "head": "faster_rcnn", "fpn": True, "anchor_sizes": [64, 128]},
        (9, 14),
        {"anchor_sizes"},
        [{"rho", "anchor_sizes"}, {"taps", "anchor_sizes"}],
    ),
    "one size": ({**FASTER, "anchor_sizes": [128]}, (24, 32), {"anchor_sizes"}, [{"rho", "anchor_sizes"}]),
}


@pytest.mark.parametrize(("settings", "sides", "proposed", "others"), CASES.values(), ids=CASES.keys())
def test_proposed_lines_can_be_pasted_and_measure_as_promised(
    settings: dict[str, Any],
    sides: tuple[float, float],
    proposed: set[str],
    others: list[set[str]],
    tmp_path: Path,
) -> None:
    data = many(tmp_path, sides=sides)
    reach = measure_reach(parse_config({"model": settings}), data)
    assert set(reach.proposal.settings if reach.proposal else ()) == proposed
    assert [set(way.settings) for way in reach.alternatives] == others
    fault = reach.fault("data.json")
    assert fault is not None
    left = reach.proposal.left.share if reach.proposal else reach.total.share
    assert all(way.left.share <= 0.8 * left for way in reach.alternatives)
    for way in (*([reach.proposal] if reach.proposal else []), *reach.alternatives):
        assert f"\n{way.words}\nleaves {way.left.share:.1%}" in fault.message
        assert way.cost == pytest.approx(way.settings.get("rho", 1) ** 2)
        assert ("times the multiply-adds" in str(way)) == ("rho" in way.settings)
        assert way.left.share <= 0.8 * reach.total.share
        assert LINES.fullmatch(way.lines)
        path = tmp_path / "pasted.yaml"
        path.write_text(yaml.safe_dump({"model": settings | yaml.safe_load(way.lines)["model"]}), encoding="utf-8")
        pasted = load_config(path)
        assert measure_reach(pasted, data, propose=False).total == way.left
        path.write_text(yaml.safe_dump({"model": settings}), encoding="utf-8")
        assert load_config(path, way.words.split(" ")) == pasted
        assert len(way.settings.get("anchor_sizes", [])) == len(settings.get("anchor_sizes", []))  # so that weights fit


def test_a_proposal_says_what_it_leaves_and_costs() -> None:
    sizes = Proposal({"anchor_scales": [0.17, 0.8]}, Count(200, 11))
    assert str(sizes) == "model.anchor_scales=[0.17,0.8]\nleaves 5.5%"
    larger = Proposal({"rho": 1.5, "anchor_scales": [0.1, 0.8]}, Count(200, 4), cost=1.5**2)
    assert str(larger) == (
        "model.rho=1.5 model.anchor_scales=[0.1,0.8]\nleaves 2.0% at about 2.25 times the multiply-adds"
    )
    assert larger.to_json() == {
        "lines": "model:\n  rho: 1.5\n  anchor_scales: [0.1, 0.8]",
        "unreached": 0.02,
        "times_multiply_adds": 2.25,
    }
    fault = Reach(Count(200, 40), {}, {}, sizes, (larger,)).fault("data.json")
    assert fault is not None
    assert fault.message.endswith(f"on the command line,\n{sizes}; or\n{larger}")


def test_nothing_is_proposed_where_nothing_helps(tmp_path: Path) -> None:
    """Boxes of 40 : 1: no size and no density of cells gives such an anchor."""
    data = write_set(tmp_path, [(160, 160, [[0, y, 160, 4] for y in range(0, 150, 10)])])
    reach = measure_reach(parse_config({"model": QUICK}), data)
    assert reach.total == Count(15, 15)
    assert (reach.proposal, reach.alternatives) == (None, ())
    fault = reach.fault("data.json")
    assert fault is not None
    assert "model" not in fault.message


def test_measuring_leaves_random_numbers_alone(tmp_path: Path) -> None:
    """Else a training that measures first would start from other weights."""
    data = many(tmp_path, sides=(8, 14), count=10)
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    measure_reach(Config(model=SMALL), data, propose=False)
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.shared
def test_real_photos_have_boxes_out_of_reach(shared: Path) -> None:
    """By size as one expects of SSD300: the smallest square is 30 pixels of 300, some 64 of a photo 640 pixels wide."""
    root = shared / "data" / "coco_tiny"
    data = read_coco(root / "annotations" / "instances_train2017.json", root / "train2017")
    config = load_config(Path(__file__).parents[2] / "configs" / "ssd300_mobilenet_v1.yaml")
    reach = measure_reach(config, data, propose=False)
    small, medium, large = (reach.by_size[name].share for name in ("small", "medium", "large"))
    assert small > 0.95
    assert 0.2 < medium < 0.8
    assert large < 0.1
    crowds = sum(int(data.truth(index).crowd.sum()) for index in range(len(data)))
    assert crowds > 0
    assert reach.total.boxes == data.num_boxes - crowds
