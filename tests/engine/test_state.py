"""What changes while a run goes on: the running average, and that saving and restoring lose nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mnet_det.config import Config, load_config
from mnet_det.data import open_data
from mnet_det.data.coco import CocoData
from mnet_det.engine import state as module
from mnet_det.engine.checkpoint import load_checkpoint, save_checkpoint
from mnet_det.engine.state import State, restore_state, save_best, save_state, start_state, take_over
from mnet_det.errors import CheckpointError
from mnet_det.structures import Target

CPU = torch.device("cpu")
OTHER_SETTINGS = [
    (["model.alpha=0.2"], r"was trained with model\.alpha=0\.1 \(now 0\.2\); resume with its own settings"),
    (["model.head=ssdlite"], r"model\.head=ssd \(now ssdlite\)"),
    (["model.base_hw=[96,64]"], r"model\.base_hw=\[64,64\] \(now \[96,64\]\)"),
    (["train.ema=0"], r"was trained with train\.ema=0\.9998; resume with that"),
    (["train.optimizer=adamw"], r"train\.optimizer=sgd \(now adamw\)"),
    (["train.lr=0.5", "train.momentum=0.5"], r"train\.lr=0\.05 \(now 0\.5\), train\.momentum=0\.9 \(now 0\.5\)"),
    (["train.weight_decay=0.1"], r"train\.weight_decay=4e-05 \(now 0\.1\)"),
    (["train.frozen_bn=true"], r"train\.frozen_bn=false \(now true\)"),
    (["train.batch_size=3"], r"train\.batch_size=2 \(now 3\)"),
]


@pytest.fixture
def config(toy_words: tuple[str, ...]) -> Config:
    return load_config(None, toy_words)


@pytest.fixture
def data(config: Config) -> CocoData:
    return open_data(config.data, "val")


def start(config: Config, *, seed: int = 0, scale_loss: bool = False) -> State:
    torch.manual_seed(seed)
    return start_state(config, num_classes=6, steps_per_epoch=3, device=CPU, scale_loss=scale_loss)


def step(state: State) -> None:
    """One training step on a picture of noise."""
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    target = Target(torch.tensor([[8.0, 8, 50, 40]]), torch.tensor([2]), torch.zeros(0, 4), (64, 64))
    torch.stack(list(state.detector.train().losses(images, [target, target]).values())).sum().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.average is not None:
        state.average.update_parameters(state.detector)


def kill(path: Path, checkpoint: object) -> None:
    raise KeyboardInterrupt


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_the_average_starts_at_the_weights_and_forgets_its_start(config: Config) -> None:
    state = start(config)
    weight, mean = state.detector.backbone.stem.conv.weight, state.detector.backbone.stem.bn.running_mean
    averaged = state.to_score
    assert averaged is not state.detector

    def update(value: float) -> tuple[float, float]:
        with torch.no_grad():
            weight.fill_(value)
            mean.fill_(value)
        assert state.average is not None
        state.average.update_parameters(state.detector)
        stem = averaged.backbone.stem
        return float(stem.conv.weight.detach().mean()), float(stem.bn.running_mean.mean())

    assert update(0.0) == (0, 0)
    # After n updates the decay is min(0.9998, (1 + n) / (10 + n)): 2/11 after one, 3/12 after two.
    assert update(1.0) == pytest.approx((9 / 11,) * 2)
    assert update(1.0) == pytest.approx((9 / 11 * 3 / 12 + 9 / 12,) * 2)


def test_without_averaging_the_detector_itself_is_scored(config: Config, toy_words: tuple[str, ...]) -> None:
    state = start(load_config(None, [*toy_words, "train.ema=0"]))
    assert state.average is None
    assert state.to_score is state.detector


def test_best_holds_the_averaged_weights_and_nothing_to_go_on_from(
    config: Config, data: CocoData, tmp_path: Path
) -> None:
    state = start(config)
    step(state)
    save_best(state, config, data, tmp_path)
    best = load_checkpoint(tmp_path / "best.pt")
    assert best.training is None
    assert best.class_names == data.class_names
    assert best.category_ids == data.category_ids
    assert equal(best.weights, state.to_score.state_dict())


def test_the_last_checkpoint_becomes_the_previous_one(config: Config, data: CocoData, tmp_path: Path) -> None:
    state = start(config)
    for state.epoch in (1, 2, 3):
        save_state(state, config, data, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
    saved = [load_checkpoint(tmp_path / name).training for name in ("previous.pt", "last.pt")]
    assert [training and training["epoch"] for training in saved] == [2, 3]


def test_a_run_killed_while_it_saves_can_go_on(
    config: Config, data: CocoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """last.pt was renamed before the new one came; killed in between, `--resume auto` found none and started over."""
    state = start(config)
    save_state(state, config, data, tmp_path)
    monkeypatch.setattr(module, "save_checkpoint", kill)
    with pytest.raises(KeyboardInterrupt):
        save_state(state, config, data, tmp_path)
    assert load_checkpoint(tmp_path / "last.pt").training is not None


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_good_one(
    config: Config, data: CocoData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gone on from previous.pt, the next save made the damaged last.pt the previous one; killed then, none was left."""
    state = start(config)
    for state.epoch in (1, 2):
        save_state(state, config, data, tmp_path)
    (tmp_path / "last.pt").write_bytes(b"damaged")
    take_over(tmp_path / "previous.pt", tmp_path)
    for save in (kill, save_checkpoint):
        monkeypatch.setattr(module, "save_checkpoint", save)
        with suppress(KeyboardInterrupt):
            save_state(state, config, data, tmp_path)
        saved = load_checkpoint(tmp_path / "previous.pt").training
        assert saved is not None
        assert saved["epoch"] == 1


def test_a_run_stays_where_it_is_unless_it_went_back(config: Config, data: CocoData, tmp_path: Path) -> None:
    save_state(start(config), config, data, tmp_path / "run")
    before = (tmp_path / "run" / "last.pt").stat()
    take_over(tmp_path / "run" / "last.pt", tmp_path / "run")
    assert (tmp_path / "run" / "last.pt").stat() == before


def test_a_run_that_goes_on_elsewhere_is_whole_there(config: Config, data: CocoData, tmp_path: Path) -> None:
    """best.pt stayed where it was, and killed before its first save the run began anew."""
    state = start(config)
    for folder, bias in (("run", 1.0), ("new", 2.0)):
        with torch.no_grad():
            next(state.detector.parameters()).fill_(bias)
        save_state(state, config, data, tmp_path / folder)
        save_best(state, config, data, tmp_path / folder)
        take_over(tmp_path / "run" / "last.pt", tmp_path / folder)
    for name in ("last.pt", "best.pt"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_an_epoch_has_no_losses_where_all_steps_were_skipped(config: Config) -> None:
    state = start(config)
    state.count(None)
    assert state.losses == {}
    state.count({"class": torch.tensor(3.0)})
    state.count({"class": torch.tensor(4.0)})
    assert state.losses == {"class": 3.5}


@pytest.mark.parametrize("words", [(), ("train.ema=0",), ("train.optimizer=adamw",), ("train.optimizer=rmsprop",)])
def test_a_restored_run_is_where_it_was(
    words: tuple[str, ...], toy_words: tuple[str, ...], data: CocoData, tmp_path: Path
) -> None:
    config = load_config(None, [*toy_words, *words])
    state = start(config)
    step(state)
    state.epoch, state.step, state.best_ap, state.stale = 1, 2, 0.25, 4
    state.count({"class": torch.tensor(0.5)})
    state.count(None)
    save_state(state, config, data, tmp_path)
    restored = start(config, seed=7)
    restore_state(restored, load_checkpoint(tmp_path / "last.pt"), config, data, source=tmp_path / "last.pt")
    assert (restored.epoch, restored.step, restored.skipped, restored.best_ap, restored.stale) == (1, 4, 1, 0.25, 4)
    assert restored.sums == {"class": torch.tensor(0.5)}
    for _ in range(2):
        for part in ("detector", "to_score", "optimizer"):
            assert equal(getattr(restored, part).state_dict(), getattr(state, part).state_dict()), part
        step(state)  # and it stays so
        step(restored)


@pytest.mark.parametrize(("words", "message"), OTHER_SETTINGS, ids=[words[0] for words, _ in OTHER_SETTINGS])
def test_a_run_does_not_go_on_with_other_settings(
    words: list[str], message: str, toy_run: Path, toy_words: tuple[str, ...], data: CocoData
) -> None:
    """Another optimiser ended in a KeyError; another learning rate or weight decay was ignored without a word.

    Both come back with the optimiser's state. Another batch size put the schedule, which counts steps, elsewhere.
    """
    config = load_config(None, [*toy_words, *words])
    with pytest.raises(CheckpointError, match=message):
        restore_state(start(config), load_checkpoint(toy_run / "last.pt"), config, data, source=toy_run / "last.pt")


def test_more_epochs_and_another_device_setting_are_no_other_run(
    toy_run: Path, toy_words: tuple[str, ...], data: CocoData
) -> None:
    config = load_config(None, [*toy_words, "train.epochs=9", "train.device=auto", "data.workers=1"])
    state = start(config)
    restore_state(state, load_checkpoint(toy_run / "last.pt"), config, data, source=toy_run / "last.pt")
    assert state.epoch == 2


def test_a_run_does_not_go_on_with_other_classes(
    config: Config, data: CocoData, toy_run: Path, toy_words: tuple[str, ...]
) -> None:
    fewer = open_data(load_config(None, [*toy_words, "data.classes=[disc,ring]"]).data, "val")
    message = r"was trained on 6 classes \(disc, ring, square, …\), the data have 2 \(disc, ring\); start from it with "
    with pytest.raises(CheckpointError, match=message):
        restore_state(start(config), load_checkpoint(toy_run / "last.pt"), config, fewer, source=toy_run / "last.pt")


def test_weights_alone_are_no_run_to_go_on_with(config: Config, data: CocoData, toy_run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.pt: holds weights only; resume from last\.pt, or start from it"):
        restore_state(start(config), load_checkpoint(toy_run / "best.pt"), config, data, source=toy_run / "best.pt")


def test_where_the_weights_once_started_from_does_not_matter(
    toy_run: Path, toy_words: tuple[str, ...], data: CocoData
) -> None:
    """A run started with model.init=x.pt could only be resumed with the same word, which resuming does not read."""
    config = load_config(None, [*toy_words, "model.init=gone.pt"])
    restore_state(start(config), load_checkpoint(toy_run / "last.pt"), config, data, source=toy_run / "last.pt")


def test_a_run_without_loss_scaling_goes_on_with_it(config: Config, data: CocoData, toy_run: Path) -> None:
    """Restoring the scaler's empty state raised RuntimeError: a run begun on a CPU could not go on in fp16."""
    state = start(config, scale_loss=True)
    restore_state(state, load_checkpoint(toy_run / "last.pt"), config, data, source=toy_run / "last.pt")
    assert state.scaler.is_enabled()


def test_a_run_does_not_go_on_with_other_data(config: Config, data: CocoData, toy_run: Path) -> None:
    """The schedule counts steps: with more images it jumped back, with fewer it ended before the run did."""
    state = start_state(
        config, num_classes=len(data.class_names), steps_per_epoch=7, device=torch.device("cpu"), scale_loss=False
    )
    with pytest.raises(CheckpointError, match="an epoch had 3 steps, now it has 7; resume with the same images"):
        restore_state(state, load_checkpoint(toy_run / "last.pt"), config, data, source=toy_run / "last.pt")
