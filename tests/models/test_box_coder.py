"""Box coding against torchvision's, by hand, and there and back."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection import _utils as torchvision_detection

from mnet_det.models.box_coder import MAX_LOG_SCALE, BoxCoder

places = st.floats(-100, 500, width=32)
sizes = st.floats(1, 500, width=32)
boxes = st.tuples(places, places, sizes, sizes).map(lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))


def random_boxes(count: int) -> Tensor:
    top_left = torch.rand(count, 2) * 300
    return torch.cat([top_left, top_left + 1 + torch.rand(count, 2) * 200], dim=1)


def test_deltas_by_hand() -> None:
    anchor, box = torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 5, 25, 15]])
    # Centres (5, 10) and (15, 10), sizes (10, 20) and (20, 10): x (15 - 5) / 10 × 10 = 10, y 0, ±ln 2 × 5 = ±3.4657.
    assert torch.allclose(BoxCoder().encode(anchor, box), torch.tensor([[10, 0, 3.4657, -3.4657]]), atol=1e-4)


@given(anchor=boxes, box=boxes)
def test_decode_undoes_encode(anchor: tuple[float, ...], box: tuple[float, ...]) -> None:
    anchors, true = torch.tensor([anchor], dtype=torch.float64), torch.tensor([box], dtype=torch.float64)
    coder = BoxCoder()
    deltas = coder.encode(anchors, true)
    largest = MAX_LOG_SCALE * coder.weight_wh
    if deltas[0, 2:].max() < largest:
        # decode reads its deltas as float32, so the error is a few parts in 10⁷ of the box and of the way to it.
        assert torch.allclose(coder.decode(anchors, deltas), true, atol=3e-4, rtol=0)


def test_round_trip_of_boxes_in_an_image_is_exact_to_a_ten_thousandth_of_a_pixel() -> None:
    torch.manual_seed(0)
    anchors, true = random_boxes(1000), random_boxes(1000)
    plausible = (true[:, 2:] - true[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    kept = ((plausible < 10) & (plausible > 0.1)).all(dim=1)
    coder = BoxCoder()
    back = coder.decode(anchors[kept], coder.encode(anchors[kept], true[kept]))
    assert kept.sum() > 500
    assert (back - true[kept]).abs().max() < 1e-4


def test_coding_equals_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = torchvision_detection.BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
    anchors, true, deltas = random_boxes(200), random_boxes(200), torch.randn(200, 4) * 5
    assert torch.allclose(BoxCoder().encode(anchors, true), theirs.encode_single(true, anchors), atol=1e-4)
    assert torch.allclose(BoxCoder().decode(anchors, deltas), theirs.decode_single(deltas, anchors), atol=1e-2)


def test_a_box_grows_to_at_most_62_times_its_anchor() -> None:
    decoded = BoxCoder().decode(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0.0, 0, 1e4, 1e4]]))
    # 16 × 1000 / 16 = 1000, around (8, 8).
    assert torch.allclose(decoded, torch.tensor([[-492.0, -492, 508, 508]]), atol=1e-2)


def test_batches_of_deltas_share_the_anchors() -> None:
    torch.manual_seed(0)
    anchors, deltas = random_boxes(5), torch.randn(2, 5, 4)
    decoded = BoxCoder().decode(anchors, deltas)
    assert torch.equal(decoded[1], BoxCoder().decode(anchors, deltas[1]))


def test_half_precision_deltas_are_decoded_in_float32() -> None:
    decoded = BoxCoder().decode(torch.tensor([[0.0, 0, 301, 301]]), torch.zeros(1, 4, dtype=torch.bfloat16))
    assert decoded.dtype == torch.float32
    assert decoded.tolist() == [[0, 0, 301, 301]]  # 301 is no bfloat16
