"""Training: what a run leaves behind, that it goes on after an interruption, and what it refuses before it starts."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from mnet_det.config import Config, load_config
from mnet_det.data import open_data
from mnet_det.data.coco import CocoData, read_coco_json
from mnet_det.data.loader import ScoringBatches
from mnet_det.data.toy import draw_toy
from mnet_det.engine import overfit as overfit_module
from mnet_det.engine import train as module
from mnet_det.engine import validate
from mnet_det.engine.checkpoint import load_checkpoint, save_checkpoint
from mnet_det.engine.device import pick_device
from mnet_det.engine.distributed import ALONE, World
from mnet_det.engine.evaluate import Scores
from mnet_det.engine.guard import Guard
from mnet_det.engine.left_out import LeftOut
from mnet_det.engine.objective import Objective
from mnet_det.engine.overfit import overfit_config
from mnet_det.engine.state import State, restore_state, start_state
from mnet_det.engine.train import Run, train
from mnet_det.engine.validate import rehearse_scoring, validation_loss
from mnet_det.errors import CheckpointError, ConfigError, DataError
from mnet_det.structures import Batch, Target


@pytest.fixture
def configure(toy_words: tuple[str, ...]) -> Callable[..., Config]:
    return lambda *words: load_config(None, [*toy_words, *words])


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    training = load_checkpoint(folder / "last.pt").training
    assert training is not None
    saved: dict[str, torch.Tensor] = training["detector"]
    return saved


def noise_batch(config: Config, *, count: int = 2, boxes: float = 30.0) -> Batch:
    height, width = config.model.input_hw
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    target = Target(torch.tensor([[4.0, 4, boxes, 40]]), torch.tensor([1]), torch.zeros(0, 4), (height, width))
    return Batch(images, [target] * count, list(range(100, 100 + count)))


def start(config: Config) -> State:
    torch.manual_seed(0)
    return start_state(config, num_classes=6, steps_per_epoch=3, device=torch.device("cpu"), scale_loss=False)


def run_of(config: Config, state: State) -> Run:
    """What a step needs of a run; it has no data."""
    console = Console(quiet=True)
    return Run(
        config,
        Path("nowhere"),
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        {},
        torch.device("cpu"),
        ALONE,
        console,
        Objective(state.detector),
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        Guard(state.detector, out=Path("nowhere"), class_names=(), world=ALONE, console=console),
        LeftOut(Path("nowhere"), console),
        resumed_from=None,
    )


def step(config: Config, state: State, batch: Batch) -> dict[str, torch.Tensor] | None:
    return module._step(run_of(config, state), state, [batch], None)


def test_a_run_leaves_its_settings_numbers_pictures_and_checkpoints(
    toy_run: Path, configure: Callable[..., Config]
) -> None:
    expected = {
        "config.yaml",
        "metrics.csv",
        "tensorboard",
        "train_batch.jpg",
        "val_predictions.jpg",
        "last.pt",
        "previous.pt",
        "best.pt",
    }
    assert {path.name for path in toy_run.iterdir()} == expected
    assert load_config(toy_run / "config.yaml") == configure() == load_checkpoint(toy_run / "best.pt").config
    assert any((toy_run / "tensorboard").iterdir())
    for name in ("train_batch.jpg", "val_predictions.jpg"):
        assert cv2.imread(str(toy_run / name)) is not None


def test_each_epoch_has_its_losses_rate_and_scores(toy_run: Path) -> None:
    rows = metrics(toy_run)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        assert float(row["loss"]) == pytest.approx(float(row["loss_class"]) + float(row["loss_box"]), rel=1e-4)
        assert float(row["val_loss"]) > 0
        assert 0 <= float(row["AP"]) <= float(row["AP50"]) <= 1
        assert float(row["images_per_second"]) > 0
        assert 0 <= float(row["waiting_for_data"]) <= 1


def test_both_checkpoints_load_without_running_code(toy_run: Path) -> None:
    for name in ("best.pt", "last.pt"):
        assert torch.load(toy_run / name, weights_only=True)["category_ids"] == [3, 7, 11, 18, 24, 40]


@pytest.mark.parametrize("words", [(), ("model.head=ssdlite",), ("model.class_loss=focal", "model.box_loss=giou")])
def test_every_parameter_has_a_gradient_after_a_step(words: tuple[str, ...], configure: Callable[..., Config]) -> None:
    config = configure("model.base_hw=[96,96]", *words)
    state = start(config)
    # Six objects, each exactly an anchor of another map: no predictor has nothing to learn.
    maps = [(6, 6), (3, 3), (2, 2), (1, 1), (1, 1), (1, 1)]
    anchors = state.detector.anchors(maps, (96, 96))
    sizes = [h * w * count for (h, w), count in zip(maps, state.detector.anchors.num_per_cell, strict=True)]
    boxes = torch.from_numpy(anchors[np.cumsum([0, *sizes[:-1]])])
    target = Target(boxes, torch.arange(6), torch.zeros(0, 4), (96, 96))
    batch = noise_batch(config)
    step(config, state, Batch(batch.images, [target, target], batch.image_ids))
    gradients = {name: parameter.grad for name, parameter in state.detector.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.any()] == []


def test_a_gradient_is_clipped_to_the_norm_that_is_set(configure: Callable[..., Config]) -> None:
    config = configure("train.clip_norm=0.5")
    state = start(config)
    step(config, state, noise_batch(config))
    norm = torch.stack([p.grad.norm() for p in state.detector.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-4)


REGIONS = (
    "model.head=faster_rcnn",
    "model.fpn=true",
    "model.anchor_sizes=[16,32]",
    "model.proposals=8",
    "model.train_proposals=50",
    "model.roi_samples=4",
)
"""Of a head whose losses draw at random."""


@pytest.mark.slow
def test_an_interrupted_run_of_two_stages_draws_the_same_regions(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    """A resumed run drew those of its first epoch again, and ended elsewhere."""
    steps = ("train.schedule=steps", "train.step_epochs=[1]")  # the same in the first epoch, however many follow
    train(configure(*REGIONS, *steps), out=tmp_path / "straight")
    train(configure(*REGIONS, *steps, "train.epochs=1"), out=tmp_path / "halted")
    torch.rand(3)
    train(configure(*REGIONS, *steps), out=tmp_path / "halted", resume=tmp_path / "halted" / "last.pt")
    straight, resumed = weights(tmp_path / "straight"), weights(tmp_path / "halted")
    for name in straight:
        torch.testing.assert_close(resumed[name], straight[name], atol=1e-6, rtol=0)


def test_a_run_of_the_version_that_spelt_out_taps_can_be_resumed(
    configure: Callable[..., Config], toy_run: Path
) -> None:
    """`model.taps` was [11, 13] unless set; then it became the backbone's own choice, and resuming was refused."""
    checkpoint = load_checkpoint(toy_run / "last.pt")
    model = checkpoint.config.model.model_copy(update={"taps": (11, 13)})
    old = replace(checkpoint, config=checkpoint.config.model_copy(update={"model": model}))
    config = configure()
    state = start(config)
    restore_state(state, old, config, open_data(config.data, "train"), source=toy_run / "last.pt")
    assert state.epoch == 2


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    configure: Callable[..., Config], toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    def one_epoch(*arguments: Any) -> Any:
        monkeypatch.setattr(module, "_train_epoch", interrupt)
        return true_epoch(*arguments)

    true_epoch = module._train_epoch
    monkeypatch.setattr(module, "_train_epoch", one_epoch)
    with pytest.raises(KeyboardInterrupt):
        train(configure(), out=tmp_path)
    assert [row["epoch"] for row in metrics(tmp_path)] == ["1"]
    monkeypatch.setattr(module, "_train_epoch", true_epoch)
    train(configure(), out=tmp_path, resume=tmp_path / "last.pt")

    straight, resumed = weights(toy_run), weights(tmp_path)
    assert straight.keys() == resumed.keys()
    for name in straight:
        torch.testing.assert_close(resumed[name], straight[name], atol=1e-6, rtol=0)
    ours, theirs = load_checkpoint(tmp_path / "last.pt").weights, load_checkpoint(toy_run / "last.pt").weights
    for name in ours:  # and so do their averages
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)
    for one, other in zip(metrics(tmp_path), metrics(toy_run), strict=True):
        assert [one[key] for key in ("epoch", "lr")] == [other[key] for key in ("epoch", "lr")]
        for key in ("loss", "val_loss", "AP"):
            assert float(one[key]) == pytest.approx(float(other[key]), rel=1e-4)
    assert load_checkpoint(tmp_path / "previous.pt").training["epoch"] == 1  # type: ignore[index]


def test_a_finished_run_goes_on_for_more_epochs(
    configure: Callable[..., Config], toy_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(toy_run, folder)
    result = train(configure("train.epochs=3"), out=folder, resume=folder / "last.pt")
    assert [row["epoch"] for row in metrics(folder)] == ["1", "2", "3"]
    assert result.best_ap >= max(float(row["AP"]) for row in metrics(folder)) - 1e-6
    assert load_config(folder / "config.yaml").train.epochs == 3


def test_a_finished_run_has_nothing_to_go_on_to(
    configure: Callable[..., Config], toy_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(toy_run, folder)
    with pytest.raises(ConfigError, match=r"last\.pt: has done 2 epochs; set train\.epochs above that to go on"):
        train(configure(), out=folder, resume=folder / "last.pt")


@pytest.mark.parametrize("resume", [None, "last.pt"], ids=["anew", "from another run"])
def test_a_run_folder_is_never_started_over(
    resume: str | None, configure: Callable[..., Config], toy_run: Path, tmp_path: Path
) -> None:
    """`train --resume OTHER/last.pt --out RUN` went on in RUN, over the checkpoints that it held."""
    folder = tmp_path / "run"
    shutil.copytree(toy_run, folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    why = r"holds a run already \(last.pt, previous.pt, best.pt\); go on with --resume auto, or choose another --out"
    with pytest.raises(ConfigError, match=why):
        train(configure("train.epochs=3"), out=folder, resume=toy_run / resume if resume else None)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_best_weights_alone_are_a_run_too(configure: Callable[..., Config], toy_run: Path, tmp_path: Path) -> None:
    """Whoever keeps nothing else to save space lost them to the next run."""
    shutil.copy(toy_run / "best.pt", tmp_path)
    with pytest.raises(ConfigError, match=r"holds a run already \(best.pt\); choose another --out"):
        train(configure(), out=tmp_path)


def test_it_can_start_from_another_run(configure: Callable[..., Config], toy_run: Path, tmp_path: Path) -> None:
    console = Console(record=True, width=200, file=(tmp_path / "log").open("w"))
    with console.file:
        config = configure(f"model.init={toy_run / 'best.pt'}", "train.epochs=1", "train.eval_every=1")
        train(config, out=tmp_path / "run", console=console)
        assert "best.pt: 234 of 234 tensors loaded" in console.export_text()


def test_folded_batch_norm_is_unfolded_on_training_images(
    configure: Callable[..., Config], toy_run: Path, tmp_path: Path
) -> None:
    """Mean 0 and variance 1 are right in eval mode alone: the first step would throw away what was learned."""
    path = tmp_path / "folded.pt"
    save_checkpoint(path, replace(load_checkpoint(toy_run / "best.pt"), folded=True, training=None))
    console = Console(record=True, width=200, file=(tmp_path / "log").open("w"))
    with console.file:
        config = configure(f"model.init={path}", "train.epochs=1", "train.eval_every=1")
        train(config, out=tmp_path / "run", console=console)
    text = console.export_text()
    assert "folded.pt: 234 of 234 tensors loaded" in text
    assert "batch norm was folded in these weights; unfolded on 6 training images" in text
    assert not load_checkpoint(tmp_path / "run" / "best.pt").folded


def test_a_run_goes_on_with_what_its_weights_need_though_the_first_ones_are_gone(
    configure: Callable[..., Config], toy_run: Path, tmp_path: Path
) -> None:
    path, folder = tmp_path / "there.pt", tmp_path / "run"
    origin = load_checkpoint(toy_run / "best.pt")
    needs = origin.config.model.model_copy(update={"padding": "same", "pixel_mean": (128.0,) * 3})
    save_checkpoint(path, replace(origin, config=origin.config.model_copy(update={"model": needs})))
    config = configure(f"model.init={path}", "train.epochs=1")
    train(config, out=folder)
    path.unlink()
    train(configure(f"model.init={path}", "train.epochs=2"), out=folder, resume=folder / "last.pt")
    model = load_checkpoint(folder / "last.pt").config.model
    assert (model.padding, model.pixel_mean) == ("same", (128.0,) * 3)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ([], None, ""),
        (["model.init=gone.pt"], CheckpointError, r"gone\.pt: no such file"),
        (["data.root=gone"], DataError, r"train2017: no such folder of images"),
        (["data.val_annotations=gone.json"], DataError, r"gone\.json: no such file"),
        (["data.classes=[unicorn]"], DataError, r"has no class unicorn; it has"),
        (["train.device=tpu9"], ConfigError, r"train\.device: got 'tpu9', expected auto, cpu, cuda"),
    ],
    ids=lambda value: "".join(value) or "sound" if isinstance(value, list) else None,
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    words: list[str],
    error: type[Exception] | None,
    message: str,
    configure: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_train_epoch", lambda *_: pytest.fail("training began"))
    if error is None:
        with pytest.raises(pytest.fail.Exception, match="training began"):
            train(configure(), out=tmp_path / "run")
        return
    with pytest.raises(error, match=message):
        train(configure(*words), out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def val_content(toy: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((toy / "annotations" / "instances_val2017.json").read_text())
    return content


def test_validation_ids_in_another_order_give_the_identical_scores(
    configure: Callable[..., Config], toy: Path, toy_run: Path, tmp_path: Path
) -> None:
    """Labels went by the order of ids, so every validation loss would have been computed on wrong classes."""
    content = val_content(toy)
    new_ids = {3: 40, 7: 3, 11: 90, 18: 7, 24: 1, 40: 24}
    for category in content["categories"]:
        category["id"] = new_ids[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = new_ids[annotation["category_id"]]
    content["categories"].reverse()
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    train(configure(f"data.val_annotations={path}"), out=tmp_path / "run")
    for expected, row in zip(metrics(toy_run), metrics(tmp_path / "run"), strict=True):
        for name in ("val_loss", "AP", "AP50", "loss"):
            assert row[name] == expected[name]


def test_classes_that_validation_lacks_are_said_and_not_scored(
    configure: Callable[..., Config], toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = val_content(toy)
    content["categories"] = [c for c in content["categories"] if c["name"] != "ring"]
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] != 7]
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    words = ["train.epochs=1", f"data.val_annotations={path}"]
    result = train(configure(*words), out=tmp_path / "run", console=Console(width=200))
    assert "4 validation images, none of them of ring" in capsys.readouterr().out
    assert result.scores.classes_left_out == 1
    assert "ring" not in result.scores.per_class
    assert len(load_checkpoint(tmp_path / "run" / "best.pt").class_names) == 6


def test_validation_classes_that_training_lacks_are_refused_with_the_difference(
    configure: Callable[..., Config], toy: Path, tmp_path: Path
) -> None:
    content = val_content(toy)
    content["categories"][0]["name"] = "Disc"
    content["categories"] += [{"id": 90, "name": "unicorn"}, {"id": 91, "name": "a class without boxes does no harm"}]
    content["annotations"] += [{**content["annotations"][0], "id": 5000, "category_id": 90}]
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    message = (
        r"val\.json: category Disc: the class 'Disc' is not among the 6 of the training data; did it mean 'disc'\?"
    )
    with pytest.raises(DataError, match=rf"{message} \(and 1 more; `mnet-det check` lists them all\)"):
        train(configure(f"data.val_annotations={path}"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_validation_without_any_of_the_chosen_classes_is_refused(
    configure: Callable[..., Config], toy: Path, tmp_path: Path
) -> None:
    """Its classes were spelt otherwise, and AP was 0 without a word."""
    content = val_content(toy)
    for category in content["categories"]:
        category["name"] = category["name"].title()
    path = tmp_path / "val.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"val\.json: lists none of the training data's disc; it has Disc, Ring"):
        train(configure("data.classes=[disc]", f"data.val_annotations={path}"), out=tmp_path / "run")


def test_a_subset_of_classes_leaves_the_others_of_validation_out(
    configure: Callable[..., Config], toy: Path, tmp_path: Path
) -> None:
    result = train(configure("train.epochs=1", "data.classes=[ring,disc]"), out=tmp_path / "run")
    assert set(result.scores.per_class) == {"disc", "ring"}


def test_data_without_boxes_are_refused(configure: Callable[..., Config], toy: Path, tmp_path: Path) -> None:
    """They were trained on to the end, with an AP of 0."""
    content = val_content(toy)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    path = tmp_path / "train.json"
    path.write_text(json.dumps(content))
    words = [f"data.train_annotations={path}", f"data.train_images={toy / 'val2017'}"]
    with pytest.raises(DataError, match=r"train\.json: has no box of a single object, so there is nothing to learn"):
        train(configure(*words), out=tmp_path / "run")


def faulty_set(folder: Path, *, cache: bool = False) -> list[str]:
    """Drawn scenes with gappy ids, a corrupt, an empty and a grey image, one without boxes, and degenerate boxes."""
    draw_toy(folder, train_images=8, val_images=4)
    names = {3: 7, 7: 42, 11: 1000}  # the toy set's ids and new ones
    for split in ("train", "val"):
        path = folder / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        content["categories"] = [{**c, "id": names[c["id"]]} for c in content["categories"] if c["id"] in names]
        kept = [a for a in content["annotations"] if a["category_id"] in names]
        content["annotations"] = [{**a, "category_id": names[a["category_id"]]} for a in kept]
        files = [folder / f"{split}2017" / image["file_name"] for image in content["images"]]
        files[0].write_bytes(files[0].read_bytes()[:500])
        cv2.imwrite(str(files[1]), cv2.imread(str(files[1]), cv2.IMREAD_GRAYSCALE))
        if split == "train":
            files[2].write_bytes(b"")
        without = content["images"][3]["id"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != without]
        for bbox in ([5, 5, 0, 9], [20, 20, -4, 9], [9999, 5, 3, 3]):
            content["annotations"].append(
                {"id": 5000 + len(content["annotations"]), "image_id": content["images"][1]["id"], "category_id": 42}
                | {"bbox": bbox, "area": 9, "iscrowd": 0}
            )
        path.write_text(json.dumps(content))
    return [f"data.root={folder}", f"data.cache={folder / 'cache' if cache else 'false'}"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_faulty_set_is_trained_on_to_the_end(
    configure: Callable[..., Config], tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*faulty_set(tmp_path / "data", cache=bool(workers)), f"data.workers={workers}", "data.augment=ssd"]
    result = train(configure(*words), out=tmp_path / "run", console=Console(width=400))
    assert result.scores.images == 3
    assert result.scores.numbers["AP"] is not None
    listed = json.loads((tmp_path / "run" / "left_out.json").read_text())["left_out"]
    kinds = sorted((entry["kind"], Path(entry["source"]).stem[10:15]) for entry in listed)
    of_boxes = [(kind, split) for kind in ("box-outside", "empty-box", "negative-box") for split in ("train", "val20")]
    of_files = [("empty-file", "train"), ("truncated-image", "train"), ("truncated-image", "val20")]
    assert kinds == sorted(of_boxes + of_files)
    assert {entry["image_id"] for entry in listed if entry["kind"] == "empty-file"} == {3}
    assert all(entry["message"] and entry["where"] and entry["file"] for entry in listed)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 4  # all boxes in one, then each image as it is met
    assert "boxes without area (2)" in lines[0]


def test_scoring_is_rehearsed_on_an_image_that_can_be_used(configure: Callable[..., Config], tmp_path: Path) -> None:
    """It took two images, and where both were damaged a run over thousands of good ones was refused."""
    draw_toy(tmp_path, train_images=6, val_images=4)
    config = configure(f"data.root={tmp_path}")
    val_data = open_data(config.data, "val")
    truth = read_coco_json(val_data.source)
    for index in (0, 1, 2):
        val_data.path(index).write_bytes(b"")
    detector = start(config).detector
    rehearse_scoring(detector, val_data, val_data, truth, config)
    val_data.path(3).write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images cannot be used"):
        rehearse_scoring(detector, val_data, val_data, truth, config)


def test_every_process_rehearses_its_part(configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first alone did: with train.sync_bn its batch norm waited for the others, which were a step further."""
    config = configure()
    state = start(config)
    run = replace(run_of(config, state), world=World(rank=1, size=2))
    before = {name: tensor.clone() for name, tensor in state.detector.state_dict().items()}
    seen: list[int] = []
    state.detector.get_submodule("backbone.stem.bn").register_forward_hook(
        lambda layer, inputs, output: seen.append(len(output))
    )
    monkeypatch.setattr(module, "rehearse_scoring", lambda *_: pytest.fail("the first scores"))
    module._rehearse(run, state, noise_batch(config))  # and writes nothing: there is no folder
    assert seen == [2]
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.detector.state_dict().items())


def test_processes_score_with_the_batch_norm_of_the_first(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each scored with the statistics of its own images, so that AP was of weights that nobody had saved."""
    events: list[Any] = []

    @dataclass(frozen=True)
    class Two(World):
        def align(self, tensors: Iterable[torch.Tensor]) -> None:
            events.append([id(tensor) for tensor in tensors])

    def judge(*_: Any, **__: Any) -> Scores:
        events.append("scored")
        return Scores({"AP": 0.5, "AP50": 0.7}, {}, images=1, detections=1)

    config = configure()
    state = start(config)
    none = SimpleNamespace(without=lambda faults: None)
    run = replace(run_of(config, state), world=Two(rank=1, size=2), val_data=none)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "score", judge)
    monkeypatch.setattr(module, "validation_loss", lambda *_, **__: 2.0)
    _, numbers = module._validate(run, state)
    assert events == [[id(buffer) for buffer in state.to_score.buffers()], "scored"]
    assert numbers == {"val_loss": 2.0, "AP": 0.5, "AP50": 0.7}
    assert state.best_ap == 0.5


def test_batch_norm_is_unfolded_on_as_many_images_however_batches_are_cut(
    configure: Callable[..., Config], toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took as many parts as if each were a whole batch."""

    def count(*arguments: Any) -> None:
        *_, batches, _ = arguments
        raise RuntimeError(sum(len(batch.images) for batch in batches))

    monkeypatch.setattr(module, "_start", count)
    monkeypatch.setattr(module, "UNFOLD_IMAGES", 4)
    words = (f"model.init={toy_run / 'best.pt'}", "train.batch_size=4", "train.accumulate=2")
    with pytest.raises(RuntimeError, match=r"^4$"):
        train(configure(*words), out=tmp_path / "run")


def test_an_epoch_whose_steps_were_all_skipped_has_no_loss() -> None:
    row: dict[str, float | None] = dict.fromkeys(["loss", "images_per_second", "AP", "AP50"])
    assert module._epoch_line(1, 2, row) == "epoch 1/2: loss n/a"
    line = module._epoch_line(1, 2, row | {"val_loss": 1.25})
    assert line == "epoch 1/2: loss n/a; validation loss 1.250, AP n/a, AP50 n/a"


def test_overfit_trains_and_scores_on_the_same_images_without_augmentation(
    configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overfit_module, "OVERFIT_EPOCHS", 4)  # scored four times
    monkeypatch.setattr(module, "OVERFIT_STEPS", 3)
    seen: dict[str, list[Any]] = {"trained": [], "scored": []}
    true_step, true_judge = module._step, validate.score_model

    def step(run: Run, state: State, parts: list[Batch], normalizer: None) -> Any:
        assert run.config.data.augment == "none"
        assert state.average is None
        seen["trained"].extend(parts)
        return true_step(run, state, parts, normalizer)

    def judge(predictor: Any, data: CocoData, truth: Any, *, batch_size: int, scorer: str, world: World) -> Any:
        assert [image["id"] for image in truth["images"]] == data.image_ids.tolist()
        seen["scored"].append(data.image_ids.tolist())
        return true_judge(predictor, data, truth, batch_size=batch_size, scorer=scorer, world=world)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_step", step)
    monkeypatch.setattr(module, "rehearse_scoring", lambda *_: None)
    monkeypatch.setattr(validate, "score_model", judge)
    result = train(configure(), out=tmp_path, overfit=2)
    data = open_data(configure().data, "train")
    expected = data.head(2).image_ids.tolist()
    assert len(seen["trained"]) == 4 * 3
    assert all(sorted(batch.image_ids) == sorted(expected) for batch in seen["trained"])
    assert seen["scored"] == [expected] * 4
    assert result.scores.images == 2
    pixels = {}
    for batch in seen["trained"]:
        for image_id, image in zip(batch.image_ids, batch.images, strict=True):
            assert np.array_equal(pixels.setdefault(image_id, image.numpy()), image.numpy())  # never flipped


@pytest.mark.parametrize("images", [1, 4, 100])
def test_an_overfit_epoch_has_the_same_steps_however_few_the_images(
    images: int, configure: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overfit_module, "OVERFIT_EPOCHS", 4)  # scored four times
    monkeypatch.setattr(module, "OVERFIT_STEPS", 6)
    seen: list[Batch] = []
    true_step = module._step

    def step(run: Run, state: State, parts: list[Batch], normalizer: None) -> Any:
        seen.extend(parts)
        return true_step(run, state, parts, normalizer)

    monkeypatch.setattr(module, "_step", step)
    result = train(configure(), out=tmp_path, overfit=images)
    assert len(seen) == 4 * 6
    assert {len(batch.images) for batch in seen} == {2}  # one image comes twice: batch norm needs two
    assert len({image_id for batch in seen for image_id in batch.image_ids}) == result.scores.images == min(images, 6)


@pytest.mark.parametrize(("images", "batch_size"), [(1, 2), (8, 8), (64, 32)])
def test_overfit_leaves_out_what_blurs(images: int, batch_size: int) -> None:
    config = overfit_config(load_config(None, ["train.batch_size=32", "train.lr=0.32"]), images=images)
    assert config.train.batch_size == batch_size
    assert config.train.lr == pytest.approx(0.01 * batch_size)
    assert config.data.augment == "none"
    assert config.train.ema == 0
    assert config.model.bn_momentum == 0.1


def test_no_images_to_overfit_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="--overfit 0: expected at least one image"):
        overfit_config(Config(), images=0)


@pytest.mark.slow
def test_a_detector_learns_three_images_by_heart(configure: Callable[..., Config], tmp_path: Path) -> None:
    words = ("model.alpha=0.25", "model.base_hw=[96,128]", "model.bn_momentum=0.1", "train.optimizer=adamw")
    result = train(configure(*words, "train.lr=0.003"), out=tmp_path, overfit=3)
    assert result.scores.numbers["AP50"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("words", [(), REGIONS], ids=["one stage", "two stages"])
def test_validation_loss_is_the_same_for_any_size_of_batches(
    words: tuple[str, ...], configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was the mean over batches, each divided by its own number of matched anchors."""
    config = configure(*words)
    state = start(config)
    if words:  # whose regions are drawn at random: all of them, then
        monkeypatch.setattr(
            state.detector, "losses", lambda images, *_, **__: {"all": images.float().mean() * len(images)}
        )
    data = open_data(config.data, "val")
    found = [
        validation_loss(state.detector, data, configure(*words, f"train.batch_size={size}"), torch.device("cpu"))
        for size in (2, 3, 4)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-5)
    assert found[0] > 0


def test_validation_loss_of_random_regions_is_the_same_again(
    configure: Callable[..., Config],
) -> None:
    config = configure(*REGIONS)
    state = start(config)
    data = open_data(config.data, "val")
    first = validation_loss(state.to_score, data, config, torch.device("cpu"))
    torch.rand(1)
    assert validation_loss(state.to_score, data, config, torch.device("cpu")) == first


def test_validation_loss_changes_nothing_in_the_detector(configure: Callable[..., Config]) -> None:
    config = configure()
    state = start(config)
    before = {name: tensor.clone() for name, tensor in state.detector.state_dict().items()}
    validation_loss(state.to_score, open_data(config.data, "val"), config, torch.device("cpu"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.detector.state_dict().items())


def test_progress_is_told_line_by_line(
    configure: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(configure("train.epochs=1"), out=tmp_path, console=Console(width=200))
    out = capsys.readouterr().out
    assert "ssd on mobilenet_v1, alpha 0.1, input 64x64, 6 classes, on cpu" in out
    assert "6 training images with" in out
    assert "batch norm eps 0.001 and momentum 0.03, seed 0" in out
    assert "epoch 1/1: loss " in out
    assert "; validation loss " in out
    assert "waiting for data" in out


def test_without_a_console_nothing_is_printed(
    configure: Callable[..., Config], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(configure("train.epochs=1"), out=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_the_device_is_the_best_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert pick_device("auto").type == expected
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("amp", ["bf16", "auto"])
def test_mixed_precision_trains_with_float32_losses(amp: str, configure: Callable[..., Config]) -> None:
    config = configure(f"train.amp={amp}")
    state = start(config)
    kinds: list[torch.dtype] = []
    state.detector.get_submodule("backbone.stem.conv").register_forward_hook(
        lambda layer, inputs, output: kinds.append(output.dtype)
    )
    run = run_of(config, state)
    run.objective.register_forward_hook(
        lambda objective, inputs, losses: kinds.extend(v.dtype for v in losses.values())
    )
    # Whether it is taken or skipped: on CPUs, torch's gradient of a bf16 convolution of 1×1 maps may not be finite.
    module._step(run, state, [noise_batch(config)], None)
    first = torch.bfloat16 if amp == "bf16" else torch.float32  # auto is off on a CPU
    assert kinds == [first, torch.float32, torch.float32]
    assert all(isinstance(p, nn.Parameter) and p.dtype == torch.float32 for p in state.detector.parameters())


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    "name", ["ssd300_mobilenet_v1", "faster_rcnn320_fpn_mobilenet_v1", "faster_rcnn300_mobilenet_v1"]
)
def test_eight_real_images_are_learned_by_heart(name: str, shared: Path, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    config = load_config(recipe, [f"data.root={shared / 'data' / 'coco_tiny'}", "data.workers=0"])
    result = train(config, out=tmp_path, overfit=8)
    assert result.scores.numbers["AP50"] is not None
    assert result.scores.numbers["AP50"] > 0.95


@pytest.mark.slow
@pytest.mark.shared
def test_the_published_detector_learns_blood_cells_in_eight_epochs(shared: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for split in ("train", "val"):
        words = ["convert", "voc", shared / "data" / "bccd", "--split", split, "--out", tmp_path / f"{split}.json"]
        subprocess.run([sys.executable, "-m", "mnet_det", *words], check=True)
    words = [
        *(f"data.{split}_images={shared / 'data' / 'bccd' / 'JPEGImages'}" for split in ("train", "val")),
        *(f"data.{split}_annotations={tmp_path / split}.json" for split in ("train", "val")),
        f"model.init={shared / 'weights' / 'ssd_mobilenet_v1_coco_quant.tflite'}",
        "train.epochs=8",
        "train.eval_every=8",
    ]
    config = load_config(root / "configs" / "finetune_ssd300_mobilenet_v1.yaml", words)
    result = train(config, out=tmp_path / "run")
    assert result.scores.numbers["AP50"] is not None
    assert result.scores.numbers["AP50"] > 0.8


def test_no_more_workers_than_cores_are_started(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe for a large machine asked a laptop for eight; torch warned, and each took memory for nothing."""
    config = configure("data.workers=8")
    data = open_data(config.data, "train")
    monkeypatch.setattr(validate, "usable_cores", lambda: 1)
    batches = ScoringBatches(len(data), batch_size=2)
    assert validate.training_loader(data, batches, config, torch.device("cpu"), preset="none").num_workers == 1
