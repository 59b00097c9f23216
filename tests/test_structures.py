"""Detections, the way back from network pixels, and what training carries."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnet_det.structures import Batch, Candidates, Detections, Resize, Target


def detections(*boxes_xyxy: tuple[float, float, float, float]) -> Detections:
    """One detection per box, with falling scores and labels 0, 1, 2…"""
    count = len(boxes_xyxy)
    return Detections(
        np.array(boxes_xyxy, np.float32).reshape(-1, 4),
        np.linspace(0.9, 0.5, count, dtype=np.float32),
        np.arange(count, dtype=np.int64),
    )


def test_empty_detections_have_the_shapes_and_types_of_full_ones() -> None:
    empty, full = Detections.empty(), detections((0, 0, 1, 1))
    assert len(empty) == 0
    for name in ("boxes_xyxy", "scores", "labels"):
        assert getattr(empty, name).dtype == getattr(full, name).dtype
        assert getattr(empty, name).shape[1:] == getattr(full, name).shape[1:]


@pytest.mark.parametrize(
    "index",
    [np.array([True, False, True]), np.array([0, 2]), slice(0, None, 2)],
    ids=["mask", "indices", "slice"],
)
def test_indexing_selects_boxes_scores_and_labels_together(index: object) -> None:
    chosen = detections((0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 3, 3))[index]
    assert chosen.boxes_xyxy[:, 2].tolist() == [1, 3]
    assert chosen.scores.tolist() == pytest.approx([0.9, 0.5])
    assert chosen.labels.tolist() == [0, 2]


def test_detections_cannot_be_reassigned() -> None:
    with pytest.raises(FrozenInstanceError):
        detections().labels = np.zeros(0, np.int64)  # type: ignore[misc]


def test_stretching_scales_each_axis_by_its_own_factor() -> None:
    resize = Resize(source_hw=(200, 400), valid_hw=(300, 300), network_hw=(300, 300))
    # x: 300 / 400 = 0.75, y: 300 / 200 = 1.5
    assert resize.scale_xyxy.tolist() == [0.75, 1.5, 0.75, 1.5]
    assert resize.apply(np.array([[40, 20, 400, 200]], np.float32)).tolist() == [[30, 30, 300, 300]]


def test_undo_clips_to_the_source_image() -> None:
    resize = Resize(source_hw=(200, 400), valid_hw=(300, 300), network_hw=(300, 300))
    undone = resize.undo(detections((-30, -15, 330, 315), (30, 30, 60, 60)))
    # The second: 30 / 0.75 = 40, 30 / 1.5 = 20, 60 / 0.75 = 80, 60 / 1.5 = 40
    assert undone.boxes_xyxy.tolist() == [[0, 0, 400, 200], [40, 20, 80, 40]]
    assert undone.boxes_xyxy.dtype == np.float32


def test_undo_drops_what_is_centred_in_padding_and_keeps_the_rest_in_order() -> None:
    """A 640×480 picture in a 320×320 network fills 320×240: what is centred below 240 is padding."""
    resize = Resize(source_hw=(480, 640), valid_hw=(240, 320), network_hw=(320, 320))
    undone = resize.undo(
        detections(
            (0, 230, 20, 260),  # centre y 245: padding
            (0, 220, 20, 258),  # centre y 239: image, and its lower side is clipped to it
            (10, 10, 30, 50),
        )
    )
    assert undone.labels.tolist() == [1, 2]
    assert undone.scores.tolist() == pytest.approx([0.7, 0.5])
    assert undone.boxes_xyxy.tolist() == [[0, 440, 40, 480], [20, 20, 60, 100]]


def test_undo_of_nothing_is_nothing() -> None:
    for valid_hw in ((240, 320), (320, 320)):
        undone = Resize((480, 640), valid_hw, (320, 320)).undo(Detections.empty())
        assert undone.boxes_xyxy.shape == (0, 4)


def test_undo_leaves_its_argument_as_it_was() -> None:
    given_detections = detections((-5, -5, 400, 400))
    Resize((480, 640), (240, 320), (320, 320)).undo(given_detections)
    assert given_detections.boxes_xyxy.tolist() == [[-5, -5, 400, 400]]


@given(
    source_hw=st.tuples(st.integers(1, 4000), st.integers(1, 4000)),
    network_hw=st.tuples(st.integers(32, 1333), st.integers(32, 1333)),
    corners=st.tuples(*[st.floats(0, 1, width=32)] * 4),
)
def test_undo_is_the_inverse_of_apply(
    source_hw: tuple[int, int], network_hw: tuple[int, int], corners: tuple[float, float, float, float]
) -> None:
    height, width = source_hw
    left, right = sorted((corners[0] * width, corners[1] * width))
    top, bottom = sorted((corners[2] * height, corners[3] * height))
    box = detections((left, top, right, bottom))
    resize = Resize(source_hw, network_hw, network_hw)
    there = Detections(resize.apply(box.boxes_xyxy), box.scores, box.labels)
    np.testing.assert_allclose(resize.undo(there).boxes_xyxy, box.boxes_xyxy, rtol=1e-5, atol=1e-4)


def test_candidates_unpack_as_boxes_then_scores() -> None:
    boxes_xyxy, scores = Candidates(boxes_xyxy="boxes", scores="scores")
    assert (boxes_xyxy, scores) == ("boxes", "scores")


def test_a_batch_moves_with_its_targets_and_keeps_what_is_not_a_tensor() -> None:
    torch = pytest.importorskip("torch")
    target = Target(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64), torch.zeros(1, 4), valid_hw=(240, 320))
    batch = Batch(torch.zeros(1, 3, 320, 320, dtype=torch.uint8), [target], image_ids=[139])
    moved = batch.to("meta")
    tensors = [moved.images, moved.targets[0].boxes_xyxy, moved.targets[0].labels, moved.targets[0].ignored_xyxy]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.targets[0].valid_hw == (240, 320)
    assert moved.image_ids == [139]
    assert batch.images.device.type == "cpu"


def test_a_moved_batch_holds_each_image_s_own_boxes() -> None:
    """All boxes travel together, and images have any number of them."""
    torch = pytest.importorskip("torch")

    def target(count: int, crowds: int, side: int) -> Target:
        boxes = torch.arange((count + crowds) * 4, dtype=torch.float32).reshape(-1, 4) + 100 * side
        return Target(boxes[:count], torch.arange(count) + side, boxes[count:], (side, side + 1))

    targets = [target(2, 0, 1), target(0, 1, 2), target(0, 0, 3), target(3, 2, 4)]
    images = torch.arange(48, dtype=torch.uint8).reshape(4, 3, 2, 2)
    moved = Batch(images, targets, image_ids=[5, 6, 7, 8]).to("cpu")
    assert torch.equal(moved.images, images)
    assert moved.image_ids == [5, 6, 7, 8]
    for found, expected in zip(moved.targets, targets, strict=True):
        assert found.valid_hw == expected.valid_hw
        for name in ("boxes_xyxy", "labels", "ignored_xyxy"):
            there, here = getattr(found, name), getattr(expected, name)
            assert (there.dtype, there.shape) == (here.dtype, here.shape)
            assert torch.equal(there, here)


def test_a_batch_of_no_images_can_be_moved() -> None:
    torch = pytest.importorskip("torch")
    assert Batch(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), []).to("meta").targets == []
