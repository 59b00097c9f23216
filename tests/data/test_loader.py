"""Batches: full, seeded, shuffled anew in each epoch, and the same however many workers make them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mnet_det.data.augment import Augment, Sample
from mnet_det.data.coco import CocoData, Truth, read_coco
from mnet_det.data.faults import Fault
from mnet_det.data.loader import Batches, EpochBatches, ScoringBatches, TrainingSamples, make_loader
from mnet_det.errors import DataError
from mnet_det.images import write_image
from mnet_det.structures import Batch


@pytest.fixture
def data(tmp_path: Path) -> CocoData:
    """Seven small images; image 3 has no box, the others one each."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for index in range(7):
        name = f"{index}.png"
        write_image(tmp_path / name, rng.integers(0, 256, (20, 30, 3), np.uint8))
        images.append({"id": 100 + index, "file_name": name, "height": 20, "width": 30})
        if index != 3:
            box = {"image_id": 100 + index, "category_id": 1 + index % 2, "bbox": [5, 5, 10 + index, 10]}
            annotations.append(box | {"id": 900 + index})
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return read_coco(path, tmp_path)


def loader(data: CocoData, batches: EpochBatches | ScoringBatches, *, workers: int = 0, seed: int = 5) -> Batches:
    return make_loader(
        data, batches, preset="ssd", network_hw=(32, 32), mode="stretch", seed=seed, workers=workers, pin_memory=False
    )


def epochs(data: CocoData, *, workers: int = 0, seed: int = 5, count: int = 2) -> list[list[Batch]]:
    batches = EpochBatches(len(data), batch_size=2, seed=seed)
    made = loader(data, batches, workers=workers, seed=seed)
    result = []
    for batches.epoch in range(count):
        result.append(list(made))
    return result


def ids(epoch: list[Batch]) -> list[int]:
    return [image_id for batch in epoch for image_id in batch.image_ids]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(
        torch.equal(a.images, b.images)
        and a.image_ids == b.image_ids
        and all(torch.equal(s.boxes_xyxy, t.boxes_xyxy) for s, t in zip(a.targets, b.targets, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def test_a_batch_is_uint8_with_a_target_and_an_id_for_each_image(data: CocoData) -> None:
    batch = next(iter(loader(data, ScoringBatches(len(data), batch_size=4))))
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.image_ids == [100, 101, 102, 103]
    assert [target.labels.dtype for target in batch.targets] == [torch.int64] * 4
    assert batch.targets[3].boxes_xyxy.shape == (0, 4)
    assert batch.targets[0].valid_hw == (32, 32)


def test_epochs_have_orders_and_augmentations_of_their_own(data: CocoData) -> None:
    first, second = epochs(data)
    assert ids(first) != ids(second)
    pictures = [
        {image_id: pixels for batch in epoch for image_id, pixels in zip(batch.image_ids, batch.images, strict=True)}
        for epoch in (first, second)
    ]
    both = set(pictures[0]) & set(pictures[1])
    assert any(not torch.equal(pictures[0][image_id], pictures[1][image_id]) for image_id in both)


def test_an_epoch_is_reproducible_and_another_seed_gives_another(data: CocoData) -> None:
    first, second = epochs(data)
    again = epochs(data)
    assert same(first, again[0])
    assert same(second, again[1])
    assert ids(epochs(data, seed=6)[0]) != ids(first)


def test_a_later_epoch_does_not_depend_on_those_before(data: CocoData) -> None:
    batches = EpochBatches(len(data), batch_size=2, seed=5)
    batches.epoch = 1
    assert same(list(loader(data, batches)), epochs(data)[1])


def test_batches_do_not_depend_on_the_number_of_workers(data: CocoData) -> None:
    for alone, together in zip(epochs(data), epochs(data, workers=2), strict=True):
        assert same(alone, together)


@pytest.mark.parametrize(
    ("num_images", "batch_size", "num_batches"), [(7, 2, 3), (6, 3, 2), (5, 5, 1), (3, 8, 1), (1, 2, 1)]
)
def test_every_batch_is_full(num_images: int, batch_size: int, num_batches: int) -> None:
    batches = EpochBatches(num_images, batch_size=batch_size, seed=0)
    drawn = list(batches)
    assert len(batches) == len(drawn) == num_batches
    assert {len(batch) for batch in drawn} == {batch_size}


def test_an_epoch_shows_no_image_twice_where_there_are_enough() -> None:
    indices = [index for batch in EpochBatches(100, batch_size=16, seed=0) for _, index in batch]
    assert len(indices) == len(set(indices)) == 96


def test_a_set_smaller_than_a_batch_is_repeated_evenly() -> None:
    (batch,) = EpochBatches(3, batch_size=8, seed=0)
    counts = np.bincount([index for _, index in batch])
    assert sorted(counts) == [2, 3, 3]


def test_scoring_visits_every_image_once_in_order(data: CocoData) -> None:
    made = loader(data, ScoringBatches(len(data), batch_size=3))
    assert [batch.image_ids for batch in made] == [[100, 101, 102], [103, 104, 105], [106]]
    assert len(made) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_takes_the_place_of_one_that_cannot_be_used(data: CocoData, workers: int) -> None:
    """A corrupt file ended the run at whichever epoch first drew it."""
    data.path(2).write_bytes(b"not a picture")
    told: list[Fault] = []
    made = loader(data, ScoringBatches(len(data), batch_size=3), workers=workers)
    made.say = told.append
    first, again = ids(list(made)), ids(list(made))
    assert first == again  # what takes the place follows from seed and draw
    assert first[:2] + first[3:] == [100, 101, 103, 104, 105, 106]
    assert first[2] != 102
    assert [(fault.kind, fault.image_id, fault.file) for fault in told] == [("not-an-image", 102, "2.png")]
    assert list(made.left_out) == [102]


def test_what_takes_a_place_is_another_image_in_each_epoch(data: CocoData) -> None:
    """The image behind a bad one, or behind a hundred of them, was seen all the more often."""
    for index in (2, 3, 4):
        data.path(index).unlink()  # after the set was opened
    samples = samples_of(data)
    drawn = [samples[(epoch, 2)] for epoch in range(30)]
    assert {draw.image_id for draw in drawn} == {100, 101, 105, 106}
    assert {fault.kind for draw in drawn for fault in draw.left_out} == {"missing-file"}


def test_a_replaced_image_looks_as_when_it_was_drawn_itself(data: CocoData) -> None:
    """What is random about a sample follows from its own index, so a run with and one without a bad file agree."""
    before = samples_of(data)[(3, 4)].sample.image
    for index in (0, 1, 2, 3, 5, 6):
        data.path(index).write_bytes(b"")
    assert np.array_equal(samples_of(data)[(3, 3)].sample.image, before)


def test_data_of_which_most_cannot_be_used_are_refused_in_one_line(data: CocoData) -> None:
    for index in (0, 2, 4, 5):
        data.path(index).write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"^4 of 7 images cannot be used, such as .*: image \d+, \d\.png: not an image"):
        list(loader(data, ScoringBatches(len(data), batch_size=2)))
    for index in range(7):
        data.path(index).write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"^[^\n]*: image 100, 0\.png: the file is empty[^\n]*; nor can 6 others that were tried in its place$",
    ):
        list(loader(data, ScoringBatches(len(data), batch_size=2)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_augmentation_names_file_and_annotation(data: CocoData, workers: int) -> None:
    """torch wraps what a worker raises in the worker's whole traceback, and the user's fault looked like ours."""
    made = loader(data, ScoringBatches(len(data), batch_size=2), workers=workers)
    made.dataset._augment = refuse_wide_boxes  # type: ignore[attr-defined]
    with pytest.raises(DataError) as caught:
        list(made)
    expected = f"{data.path(5)}: image 105, annotation 905: cannot be augmented (first line second line)"
    assert str(caught.value) == expected


def test_a_fault_of_the_pixels_is_blamed_on_no_annotation(data: CocoData) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("no")

    samples = TrainingSamples(data, fail, seed=0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"1\.png: image 101: cannot be augmented \(no\)"):
        samples[(0, 1)]


def refuse_wide_boxes(image: np.ndarray, truth: Truth, *, seed: int) -> Sample:
    if any(truth.boxes_xyxy[:, 2] >= 20):  # image 105 has the first box that reaches to x = 20
        raise ValueError("first line\nsecond line")
    return Augment("none", network_hw=(32, 32), mode="stretch")(image, truth, seed=seed)


def test_boxes_follow_pixels_that_were_made_smaller(data: CocoData) -> None:
    augment = Augment("none", network_hw=(32, 32), mode="stretch")
    small = TrainingSamples(
        data, augment, seed=0, pixels=lambda index: np.ascontiguousarray(data.image(index)[::2, ::3])
    )
    for index in (0, 3):
        expected = TrainingSamples(data, augment, seed=0)[(0, index)].sample.boxes_xyxy
        np.testing.assert_allclose(small[(0, index)].sample.boxes_xyxy, expected, atol=1e-4)


def samples_of(data: CocoData) -> TrainingSamples:
    return TrainingSamples(data, Augment("ssd", network_hw=(32, 32), mode="stretch"), seed=5)


def test_samples_can_be_sent_to_spawned_workers(data: CocoData) -> None:
    samples = samples_of(data)
    copied = pickle.loads(pickle.dumps(samples))
    assert np.array_equal(copied[(1, 4)].sample.image, samples[(1, 4)].sample.image)
