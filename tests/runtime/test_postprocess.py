from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, nms

from mnet_det.config import EvalConfig
from mnet_det.runtime import postprocess as module
from mnet_det.runtime.postprocess import Thresholds, postprocess
from mnet_det.structures import Detections

EVERYTHING = Thresholds(score=0.001, nms=0.6, pre_nms=10_000, max_detections=10_000)


def by_torchvision(boxes_xyxy: np.ndarray, scores: np.ndarray, thresholds: Thresholds) -> Detections:
    """Each class alone through torchvision's NMS, then all together, best first."""
    candidates, labels = np.nonzero(scores >= thresholds.score)
    boxes = boxes_xyxy[candidates, 0 if boxes_xyxy.shape[1] == 1 else labels]
    found = Detections(boxes, scores[candidates, labels], labels)
    kept = np.zeros(len(found), bool)
    for label in range(scores.shape[1]):
        of_class = np.flatnonzero(labels == label)
        of_class = of_class[np.argsort(-found.scores[of_class], kind="stable")][: thresholds.pre_nms]
        survivors = nms(torch.tensor(boxes[of_class]), torch.tensor(found.scores[of_class]), thresholds.nms)
        kept[of_class[survivors.numpy()]] = True
    found = found[kept]
    return found[np.argsort(-found.scores, kind="stable")[: thresholds.max_detections]]


def random_candidates(
    seed: int, *, candidates: int, classes: int, per_class: bool, grid: float, score_levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, R, 4] on a grid, so that IoUs repeat, and scores [N, K] with ties."""
    rng = np.random.default_rng(seed)
    shape = (candidates, classes if per_class else 1, 2)
    corners = np.round(rng.uniform(0, 200, shape) / grid) * grid
    sizes = np.round(rng.uniform(0, 100, shape) / grid) * grid
    boxes_xyxy = np.concatenate([corners, corners + sizes], axis=-1).astype(np.float32)
    scores = np.round(rng.uniform(0, 1, (candidates, classes)) ** 4 * score_levels) / score_levels
    return boxes_xyxy, scores.astype(np.float32)


@pytest.mark.parametrize(
    ("case", "thresholds"),
    [
        ({"candidates": 300, "classes": 1, "per_class": False, "grid": 0.01, "score_levels": 10**6}, EVERYTHING),
        ({"candidates": 200, "classes": 5, "per_class": True, "grid": 0.01, "score_levels": 10**6}, EVERYTHING),
        ({"candidates": 300, "classes": 3, "per_class": False, "grid": 25, "score_levels": 5}, EVERYTHING),
        (
            {"candidates": 300, "classes": 3, "per_class": True, "grid": 20, "score_levels": 8},
            Thresholds(score=0.125, nms=0.5, pre_nms=50, max_detections=20),
        ),
        (
            {"candidates": 1917, "classes": 90, "per_class": False, "grid": 0.01, "score_levels": 10**6},
            Thresholds(score=0.001, nms=0.6, pre_nms=1000, max_detections=100),
        ),
        (
            {"candidates": 600, "classes": 20, "per_class": False, "grid": 0.01, "score_levels": 10**6},
            Thresholds(score=0.001, nms=0.6, pre_nms=5, max_detections=1000),
        ),
    ],
    ids=["one class", "boxes per class", "ties", "limits", "SSD at COCO's size", "a limit that takes several looks"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_detections_equal_torchvision(seed: int, case: dict, thresholds: Thresholds) -> None:
    boxes_xyxy, scores = random_candidates(seed, **case)
    found = postprocess(boxes_xyxy, scores, thresholds)
    expected = by_torchvision(boxes_xyxy, scores, thresholds)
    assert len(found) > 10
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.labels, expected.labels)


def assert_equals_batched_nms(boxes_xyxy: np.ndarray, scores: np.ndarray, thresholds: Thresholds) -> None:
    """No limit before suppression, since `batched_nms` has none."""
    candidates, labels = np.nonzero(scores >= thresholds.score)
    boxes = boxes_xyxy[candidates, 0 if boxes_xyxy.shape[1] == 1 else labels]
    pairs = scores[candidates, labels]
    kept = batched_nms(torch.tensor(boxes), torch.tensor(pairs), torch.tensor(labels), thresholds.nms).numpy()
    kept = kept[: thresholds.max_detections]
    found, expected = postprocess(boxes_xyxy, scores, thresholds), Detections(boxes[kept], pairs[kept], labels[kept])
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(in_fixed_order(found), in_fixed_order(expected))


def in_fixed_order(found: Detections) -> np.ndarray:
    """Rows of box, score and label, sorted: with many candidates `batched_nms` orders equal scores as it happens."""
    rows = np.column_stack([found.boxes_xyxy, found.scores, found.labels])
    rows = rows[found.scores > found.scores[-1:]]  # which of the last ones are left out is chance, too
    return rows[np.lexsort(rows.T)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    candidates=st.integers(0, 60),
    classes=st.integers(1, 4),
    per_class=st.booleans(),
    grid=st.sampled_from([1, 10, 50]),
    score_levels=st.sampled_from([1, 3, 1000]),
    limit=st.sampled_from([0.0, 0.3, 0.5, 0.6, 1.0]),
    max_detections=st.sampled_from([1, 7, 1000]),
    sizes=st.sampled_from([(1, 1), (2, 3), (16, 8), (1024, 128)]),
)
def test_any_candidates_give_what_batched_nms_gives(
    seed: int,
    candidates: int,
    classes: int,
    per_class: bool,
    grid: int,
    score_levels: int,
    limit: float,
    max_detections: int,
    sizes: tuple[int, int],
) -> None:
    """Whole coordinates: `batched_nms` moves each class aside, which rounds others. Small looks and blocks, so that
    many of them are needed."""
    boxes_xyxy, scores = random_candidates(
        seed, candidates=candidates, classes=classes, per_class=per_class, grid=grid, score_levels=score_levels
    )
    thresholds = Thresholds(score=0.001, nms=limit, pre_nms=10_000, max_detections=max_detections)
    with mock.patch.object(module, "FIRST_LOOK", sizes[0]), mock.patch.object(module, "BLOCK", sizes[1]):
        assert_equals_batched_nms(boxes_xyxy, scores, thresholds)


@pytest.mark.parametrize("score_levels", [10**6, 200], ids=["few ties", "ties everywhere"])
def test_candidates_of_coco_s_size_give_what_batched_nms_gives(score_levels: int) -> None:
    """So many that `batched_nms` takes class after class, and coordinates need not be whole."""
    boxes_xyxy, scores = random_candidates(
        3, candidates=1917, classes=90, per_class=False, grid=0.01, score_levels=score_levels
    )
    assert_equals_batched_nms(boxes_xyxy, scores, Thresholds(score=0.001, nms=0.6, pre_nms=10_000, max_detections=500))


@pytest.mark.parametrize(
    ("limit", "second", "kept"),
    [(0.5, [0, 0, 10, 30], 2), (0.6, [0, 0, 10, 25], 1)],
    ids=["15/30 is exact and stays", "15/25 in float32 is a little above 0.6 and goes"],
)
def test_an_iou_at_the_threshold_is_judged_as_torchvision_does(limit: float, second: list[int], kept: int) -> None:
    boxes_xyxy = np.array([[[0, 0, 10, 15]], [second]], np.float32)
    scores = np.array([[0.9], [0.8]], np.float32)
    thresholds = Thresholds(score=0.1, nms=limit, pre_nms=10, max_detections=10)
    assert len(postprocess(boxes_xyxy, scores, thresholds)) == kept
    assert len(by_torchvision(boxes_xyxy, scores, thresholds)) == kept


@pytest.mark.parametrize(("candidates", "score"), [(0, 0.9), (5, 0.0001)], ids=["no candidate", "none good enough"])
def test_nothing_found_is_empty_in_the_right_types(candidates: int, score: float) -> None:
    boxes_xyxy = np.zeros((candidates, 1, 4), np.float32)
    found = postprocess(boxes_xyxy, np.full((candidates, 3), score, np.float32), EVERYTHING)
    assert found.boxes_xyxy.shape == (0, 4)
    assert [array.dtype for array in (found.boxes_xyxy, found.scores, found.labels)] == [
        np.float32,
        np.float32,
        np.int64,
    ]


def test_a_score_at_the_threshold_is_kept() -> None:
    boxes_xyxy = np.array([[[0, 0, 1, 1]], [[5, 5, 6, 6]]], np.float32)
    scores = np.array([[0.5], [0.49]], np.float32)
    assert postprocess(boxes_xyxy, scores, Thresholds(0.5, 0.6, 10, 10)).scores.tolist() == [0.5]


def random_scores_of_classes(seed: int, classes: int, *, levels: int) -> tuple[float, ...]:
    """Some at the very scores that candidates have, some at both ends."""
    rng = np.random.default_rng(seed)
    return tuple(float(np.float32(score)) for score in np.round(rng.uniform(0, 1, classes) ** 2 * levels) / levels)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    candidates=st.integers(0, 60),
    classes=st.integers(1, 4),
    per_class=st.booleans(),
    score_levels=st.sampled_from([3, 20, 1000]),
    pre_nms=st.sampled_from([2, 1000]),
    max_detections=st.sampled_from([1, 7, 1000]),
    sizes=st.sampled_from([(1, 1), (2, 3), (1024, 128)]),
)
def test_a_score_for_each_class_equals_its_candidates_below_it_never_having_been(
    seed: int,
    candidates: int,
    classes: int,
    per_class: bool,
    score_levels: int,
    pre_nms: int,
    max_detections: int,
    sizes: tuple[int, int],
) -> None:
    """A score of 0 marks no candidate at all, so those below are set to it; both limits count what is left."""
    boxes_xyxy, scores = random_candidates(
        seed, candidates=candidates, classes=classes, per_class=per_class, grid=10, score_levels=score_levels
    )
    least = random_scores_of_classes(seed, classes, levels=score_levels)
    thresholds = Thresholds(score=least, nms=0.5, pre_nms=pre_nms, max_detections=max_detections)
    with mock.patch.object(module, "FIRST_LOOK", sizes[0]), mock.patch.object(module, "BLOCK", sizes[1]):
        found = postprocess(boxes_xyxy, scores, thresholds)
    left = np.where(scores >= np.array(least, np.float32), scores, np.float32(0))
    expected = by_torchvision(boxes_xyxy, left, replace(thresholds, score=1e-9))
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_a_score_for_each_class_equals_the_least_of_them_and_then_each_class_its_own() -> None:
    """Suppression looks at better ones of the same class alone, which reach its score if the worse one does."""
    boxes_xyxy, scores = random_candidates(5, candidates=600, classes=5, per_class=False, grid=0.01, score_levels=10**6)
    least = random_scores_of_classes(5, 5, levels=10**6)
    found = postprocess(boxes_xyxy, scores, replace(EVERYTHING, score=least))
    all_of_them = postprocess(boxes_xyxy, scores, replace(EVERYTHING, score=min(least)))
    expected = all_of_them[all_of_them.scores >= np.array(least, np.float32)[all_of_them.labels]]
    assert 100 < len(found) < len(all_of_them)
    np.testing.assert_array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_the_most_detections_are_counted_after_each_class_s_score() -> None:
    """Class 0 is better everywhere, and not good enough for its own score; the one place is for class 1."""
    boxes_xyxy = np.array([[[0, 0, 10, 10]], [[20, 20, 30, 30]]], np.float32)
    scores = np.array([[0.8, 0.4], [0.7, 0.3]], np.float32)
    found = postprocess(boxes_xyxy, scores, Thresholds((0.9, 0.2), 0.6, 10, 1))
    assert (found.labels.tolist(), found.scores.tolist()) == ([1], [np.float32(0.4)])


@pytest.mark.parametrize("score", [0.1, 0.7, 0.9])  # of which 0.7 and 0.9 are smaller in float32 than in double
def test_one_score_for_all_equals_the_same_for_each(score: float) -> None:
    boxes_xyxy = np.array([[[0, 0, 1, 1]], [[5, 5, 6, 6]]], np.float32)
    scores = np.array([[score, 0.05], [score - 1e-6, score]], np.float32)
    one = postprocess(boxes_xyxy, scores, Thresholds(score, 0.6, 10, 10))
    each = postprocess(boxes_xyxy, scores, Thresholds((score, score), 0.6, 10, 10))
    assert one.scores.tolist() == each.scores.tolist() == [np.float32(score)] * 2


def test_scores_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a score for each of 3 classes, got 2"):
        postprocess(
            np.zeros((0, 1, 4), np.float32), np.zeros((0, 3), np.float32), replace(EVERYTHING, score=(0.1, 0.2))
        )


def test_unused_slots_are_never_detections() -> None:
    scores = np.array([[0.5], [0.0]], np.float32)
    assert len(postprocess(np.zeros((2, 1, 4), np.float32), scores, Thresholds(0.0, 0.6, 10, 10))) == 1


def test_classes_do_not_suppress_each_other() -> None:
    found = postprocess(
        np.array([[[0, 0, 10, 10]]], np.float32), np.array([[0.3, 0.9]], np.float32), Thresholds(0.1, 0.5, 10, 10)
    )
    assert found.labels.tolist() == [1, 0]


def test_equal_scores_rank_by_candidate_then_class() -> None:
    boxes_xyxy = np.array([[[0, 0, 1, 1]], [[5, 5, 6, 6]]], np.float32)
    found = postprocess(boxes_xyxy, np.full((2, 2), 0.5, np.float32), EVERYTHING)
    assert found.boxes_xyxy[:, 0].tolist() == [0, 0, 5, 5]
    assert found.labels.tolist() == [0, 1, 0, 1]


def test_pre_nms_limits_each_class_and_not_the_image() -> None:
    """Class 0 has the three best pairs, but class 1 still brings its own best two."""
    boxes_xyxy = np.array([[[10 * i, 0, 10 * i + 5, 5]] for i in range(3)], np.float32)
    scores = np.array([[0.9, 0.3], [0.8, 0.2], [0.7, 0.1]], np.float32)
    found = postprocess(boxes_xyxy, scores, Thresholds(0.05, 0.6, 2, 10))
    np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.3, 0.2])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_dropped(bad: float) -> None:
    boxes_xyxy = np.array([[[0, 0, 10, 10]], [[bad, 0, 10, 10]], [[20, 20, 30, 30]]], np.float32)
    scores = np.array([[0.5, 0.4], [0.9, 0.9], [bad, 0.3]], np.float32)
    found = postprocess(boxes_xyxy, scores, EVERYTHING)
    np.testing.assert_allclose(found.scores, [0.5, 0.4, 0.3])


def test_boxes_too_large_to_multiply_do_not_crash() -> None:
    boxes_xyxy = np.array([[[-3e38, -3e38, 3e38, 3e38]], [[0, 0, 10, 10]]], np.float32)
    assert len(postprocess(boxes_xyxy, np.array([[0.9], [0.8]], np.float32), EVERYTHING)) == 2


def test_arguments_are_not_changed() -> None:
    boxes_xyxy, scores = random_candidates(0, candidates=50, classes=2, per_class=False, grid=1, score_levels=100)
    before = boxes_xyxy.copy(), scores.copy()
    postprocess(boxes_xyxy, scores, EVERYTHING)
    np.testing.assert_array_equal(boxes_xyxy, before[0])
    np.testing.assert_array_equal(scores, before[1])


def test_thresholds_come_from_the_settings_of_evaluation() -> None:
    assert Thresholds.of(EvalConfig()) == Thresholds(score=0.001, nms=0.6, pre_nms=1000, max_detections=100)
