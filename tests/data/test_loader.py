"""Batches: full, seeded, shuffled anew in each epoch, and the same however many workers make them."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mnet_det.data.augment import Augment, Sample
from mnet_det.data.coco import CocoData, Truth, read_coco
from mnet_det.data.faults import Fault
from mnet_det.data.loader import Batches, EpochBatches, ScoringBatches, TrainingSamples, make_loader
from mnet_det.data.mix import Mix
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


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_the_parts_of_all_processes_make_up_the_same_batches(processes: int, accumulate: int) -> None:
    whole = list(EpochBatches(40, batch_size=12, seed=3))
    ranks = [
        list(EpochBatches(40, batch_size=12, seed=3, rank=rank, processes=processes, accumulate=accumulate))
        for rank in range(processes)
    ]
    assert {len(drawn) for drawn in ranks} == {3 * accumulate}
    for step, batch in enumerate(whole):
        parts = [drawn[step * accumulate + part] for part in range(accumulate) for drawn in ranks]
        assert {len(part) for part in parts} == {12 // processes // accumulate}
        assert [draw for part in parts for draw in part] == batch


def test_an_epoch_goes_on_behind_the_steps_that_are_done() -> None:
    batches = EpochBatches(40, batch_size=12, seed=3, processes=2, rank=1, accumulate=2)
    batches.epoch = 4
    whole = list(batches)
    batches.done = 2
    assert list(batches) == whole[4:]
    assert (batches.steps, len(batches)) == (3, 2)
    batches.done = 3
    assert list(batches) == []


def test_batches_that_cannot_be_cut_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 8 cannot be cut into 3 x 1 equal parts"):
        EpochBatches(100, batch_size=8, seed=0, accumulate=3)


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


ALWAYS = Mix(mosaic=1.0, mixup=1.0, until_epoch=1)


def mixed_samples(data: CocoData, mix: Mix) -> TrainingSamples:
    return TrainingSamples(data, Augment("ssd", network_hw=(32, 32), mode="stretch"), seed=5, mix=mix)


def same_sample(one: Sample, other: Sample) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


@pytest.mark.parametrize(
    "mix", [Mix(1.0, 0.0, until_epoch=1), Mix(0.0, 1.0, until_epoch=1), ALWAYS], ids=["mosaic", "mixup", "both"]
)
def test_only_the_early_epochs_are_mixed(data: CocoData, mix: Mix) -> None:
    plain, mixed = samples_of(data), mixed_samples(data, mix)
    for index in range(len(data)):
        assert not same_sample(mixed[0, index].sample, plain[0, index].sample)
        assert same_sample(mixed[1, index].sample, plain[1, index].sample)
        assert mixed[0, index].image_id == 100 + index


def test_mixing_with_probability_0_leaves_every_sample_as_it_is(data: CocoData) -> None:
    plain, mixed = samples_of(data), mixed_samples(data, Mix(0.0, 0.0, until_epoch=9))
    assert all(same_sample(mixed[0, index].sample, plain[0, index].sample) for index in range(len(data)))


def test_a_mixed_sample_does_not_depend_on_those_before_it(data: CocoData) -> None:
    samples = mixed_samples(data, ALWAYS)
    forward = [samples[0, index].sample for index in range(7)]
    backward = [samples[0, index].sample for index in reversed(range(7))]
    assert all(map(same_sample, forward, reversed(backward)))


def test_what_is_mixed_in_is_replaced_where_it_cannot_be_used(data: CocoData) -> None:
    for index in (1, 2, 3, 4, 5):
        data.path(index).write_bytes(b"not a picture")
    drawn = [mixed_samples(data, ALWAYS)[0, index] for index in (0, 6)]
    assert [draw.image_id for draw in drawn] == [100, 106]
    left_out = {fault.image_id for draw in drawn for fault in draw.left_out}
    assert left_out
    assert left_out <= {101, 102, 103, 104, 105}


def test_a_fault_in_a_mosaic_names_its_images(data: CocoData) -> None:
    class Failing(Augment):
        def mosaic(self, *_: object, **__: object) -> Sample:
            raise ValueError("no")

    augment = Failing("none", network_hw=(32, 32), mode="stretch")
    samples = TrainingSamples(data, augment, seed=5, mix=ALWAYS)
    pattern = r"instances\.json: images (10\d, ){3}10\d: a mosaic of them cannot be augmented \(no\)$"
    with pytest.raises(DataError, match=pattern):
        samples[0, 1]


@pytest.fixture
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch looks after its workers every five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@needs_signals
def test_workers_that_are_killed_are_started_again_where_they_were(data: CocoData, quick_watch: None) -> None:
    """The run ended; torch's message said what to look for in the kernel's log."""
    batches = EpochBatches(len(data), batch_size=2, seed=5, passes=4)
    expected = list(loader(data, batches))
    lines: list[str] = []
    made = loader(data, batches, workers=1)
    made.say_line = lines.append
    others = set(multiprocessing.active_children())
    got = []
    for number, batch in enumerate(made):
        got.append(batch)
        if number in (0, 6):
            (worker,) = set(multiprocessing.active_children()) - others
            worker.kill()
    assert same(expected, got)
    assert len(lines) == 2
    assert all("was killed" in line for line in lines)
    assert len(set(multiprocessing.active_children()) - others) == 1


@needs_signals
def test_workers_that_are_killed_again_and_again_end_in_advice(data: CocoData, quick_watch: None) -> None:
    lines: list[str] = []
    made = loader(data, ScoringBatches(len(data), batch_size=2), workers=1)
    made.say_line = lines.append
    made.dataset._augment = end_this_process  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"killed 3 times .* lower data\.workers \(now 1\)"):
        list(made)
    assert len(lines) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_whoever_is_told_of_an_image_may_fail_without_being_taken_for_a_dead_worker(
    data: CocoData, workers: int
) -> None:
    """A closed terminal broke the line that tells; workers were started again, and the batch was lost."""
    data.path(2).write_bytes(b"not a picture")
    lines: list[str] = []
    made = loader(data, ScoringBatches(len(data), batch_size=2), workers=workers)
    made.say, made.say_line = refuse_to_listen, lines.append
    got = iter(made)
    assert next(got).image_ids == [100, 101]
    with pytest.raises(BrokenPipeError):
        next(got)
    assert lines == []


def refuse_to_listen(_: Fault) -> None:
    raise BrokenPipeError


def end_this_process(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@needs_signals
def test_signals_are_for_the_main_process_to_hear(data: CocoData) -> None:
    """torchrun's SIGTERM goes to a group: the workers died, and the run that was to save waited for new ones."""
    others = set(multiprocessing.active_children())
    made = loader(data, EpochBatches(len(data), batch_size=2, seed=5, passes=4), workers=1)
    lines: list[str] = []
    made.say_line = lines.append
    batches = []
    for batch in made:
        batches.append(batch)
        for worker in set(multiprocessing.active_children()) - others:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGINT)
            assert os.getpgid(worker.pid) != os.getpgid(0)
    assert (len(batches), lines) == (14, [])


@needs_signals
def test_the_end_of_a_worker_does_not_interrupt_a_step(data: CocoData, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's handler raised wherever the program was, such as between the optimizer and the average of weights."""
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader(data, ScoringBatches(len(data), batch_size=2), workers=1))
    next(iterator)
    assert signal.getsignal(signal.SIGCHLD) is before
