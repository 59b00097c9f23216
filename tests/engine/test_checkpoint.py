"""Checkpoints: whole, complete in themselves, and refused in one line where they are not."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mnet_det.config import Config, load_config
from mnet_det.engine import checkpoint as module
from mnet_det.engine.checkpoint import (
    Checkpoint,
    load_checkpoint,
    name_of,
    open_checkpoint,
    open_detector,
    save_checkpoint,
    store_class_scores,
)
from mnet_det.errors import CheckpointError, MnetDetError
from mnet_det.models import build_classifier, build_detector

SMALL = ("model.alpha=0.1", "model.base_hw=[64,64]")
NAMES, IDS = ("cat", "naïve dog"), (17, 18)


def config(*words: str) -> Config:
    return load_config(None, [*SMALL, *words])


def make(*words: str, seed: int = 0, names: tuple[str, ...] = NAMES) -> Checkpoint:
    torch.manual_seed(seed)
    detector = build_detector(config(*words).model, num_classes=len(names))
    return Checkpoint(config(*words), names, tuple(range(17, 17 + len(names))), detector.state_dict())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "best.pt"
    save_checkpoint(path, make())
    return path


def test_it_reads_back_equal(path: Path) -> None:
    saved, loaded = make(), load_checkpoint(path)
    assert (loaded.config, loaded.class_names, loaded.category_ids) == (saved.config, NAMES, IDS)
    assert loaded.training is None
    assert loaded.weights.keys() == saved.weights.keys()
    assert all(torch.equal(loaded.weights[name], saved.weights[name]) for name in saved.weights)


def test_scores_of_classes_read_back_and_older_files_have_none(path: Path) -> None:
    assert load_checkpoint(path).class_scores is None
    save_checkpoint(path, replace(make(), class_scores=(0.25, 0.4)))
    assert load_checkpoint(path).class_scores == (0.25, 0.4)
    content = torch.load(path, weights_only=True)
    del content["class_scores"]
    torch.save(content, path)
    assert load_checkpoint(path).class_scores is None


def test_stored_scores_of_classes_change_nothing_else(path: Path) -> None:
    save_checkpoint(path, replace(make(), training={"step": 7, "raw": {"w": torch.arange(3.0)}}))
    before = torch.load(path, weights_only=True)
    store_class_scores(path, {"naïve dog": 0.31, "cat": None})
    store_class_scores(path, {"naïve dog": 0.32})  # a second measurement
    assert load_checkpoint(path).class_scores == (0.5, 0.32)  # 0.5: nothing is known of cats
    after = torch.load(path, weights_only=True)
    assert before.pop("weights").keys() == (weights := after.pop("weights")).keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in make().weights.items())
    assert torch.equal(after.pop("training")["raw"]["w"], before.pop("training")["raw"]["w"])
    assert after == before | {"class_scores": [0.5, 0.32]}
    assert list(path.parent.iterdir()) == [path]


def test_a_checkpoint_of_the_earlier_format_stays_one(path: Path) -> None:
    """What a run needs to go on from format 3 is not in it."""
    changed("mnet_det", 2)(path)
    store_class_scores(path, {"cat": 0.2})
    assert torch.load(path, weights_only=True)["mnet_det"] == 2
    assert load_checkpoint(path).class_scores == (0.2, 0.5)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"bird": 0.5}, r"best\.pt: no class 'bird'; it has cat, naïve dog"),
        ({"cat": 1.5}, "expected scores of 0 to 1, got {'cat': 1.5}"),
        ({"cat": float("nan")}, "expected scores of 0 to 1"),
    ],
)
def test_scores_that_cannot_be_a_class_s_are_not_stored(scores: dict[str, float], message: str, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        store_class_scores(path, scores)
    assert path.read_bytes() == before


def test_torch_alone_reads_it_without_running_code(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    assert content["class_names"] == list(NAMES)
    assert content["category_ids"] == list(IDS)
    assert content["config"]["model"]["alpha"] == 0.1


def test_the_detector_comes_built_with_its_weights_in_eval_mode(path: Path) -> None:
    detector = load_checkpoint(path).build()
    assert not detector.training
    assert detector.num_classes == 2
    assert torch.equal(detector.state_dict()["backbone.stem.conv.weight"], make().weights["backbone.stem.conv.weight"])


def test_a_full_disk_is_explained_and_leaves_the_checkpoint_that_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(content: Any, file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0\nframe #0: …")

    monkeypatch.setattr(module.torch, "save", fill)
    with pytest.raises(MnetDetError, match=r"best\.pt: cannot be written \(.*unexpected pos 64 vs 0\)$"):
        save_checkpoint(path, make(seed=1))
    assert list(path.parent.iterdir()) == [path]
    assert load_checkpoint(path).class_names == NAMES


def text(path: Path) -> None:
    path.write_text("these are no weights, but a text that somebody renamed\n")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1, 2]}))


def code(path: Path) -> None:
    torch.save({"mnet_det": 1, "model": torch.nn.Linear(1, 1)}, path)


def foreign(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def a_list(path: Path) -> None:
    torch.save([1, 2], path)


def changed(key: str, value: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        torch.save(torch.load(path, weights_only=True) | {key: value}, path)

    return change


def without_names(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    del content["class_names"]
    torch.save(content, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "no such file"),
        (text, "not a checkpoint that can be read .* is the file whole"),
        (empty, "not a checkpoint that can be read"),
        (folder, "a folder; a run goes on from its last.pt, and detects with its best.pt"),
        (half, "not a checkpoint that can be read"),
        (plain_pickle, "not a checkpoint that can be read"),
        (code, "holds more than tensors and plain values, which could run code as it is loaded; refused"),
        (foreign, "not a checkpoint of mnet-det; expected one written by `mnet-det train`"),
        (a_list, "not a checkpoint of mnet-det"),
        (changed("mnet_det", 99), "format 99, this version reads 2 and 3"),
        (changed("config", {"model": {"colour": "red"}}), "a checkpoint of another version .*model.colour"),
        (without_names, "a checkpoint of another version .*class_names"),
        (changed("class_scores", [0.5]), r"damaged: class_scores are \[0\.5\], expected 2 numbers from 0 to 1; get"),
        (changed("class_scores", [0.5, float("nan")]), "damaged: class_scores"),
        (changed("class_scores", 0.5), "damaged: class_scores"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(
    spoil: Callable[[Path], None], message: str, path: Path
) -> None:
    spoil(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_one_changed_byte_is_noticed(path: Path) -> None:
    """torch.load ignores the checksums in the file: a bad byte became a bad weight, or an IndexError's traceback."""
    content = bytearray(path.read_bytes())
    weights = make().weights["backbone.blocks.13.pointwise.conv.weight"].numpy().tobytes()
    content[content.index(weights[:64]) + 3] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="a checksum does not fit"):
        load_checkpoint(path)


def test_published_imagenet_weights_are_no_detector(tmp_path: Path) -> None:
    classifier = build_classifier(config().model, num_classes=5)
    names = tuple("abcde")
    path = tmp_path / "imagenet.pt"
    save_checkpoint(
        path, Checkpoint(config(), names, tuple(range(5)), classifier.state_dict(), kind="classifier", folded=True)
    )
    loaded = open_checkpoint(path)
    assert (loaded.kind, loaded.folded, loaded.class_names) == ("classifier", True, names)
    message = (
        r"imagenet\.pt: is an ImageNet classifier, not a detector; train one from it with model\.init=.*imagenet\.pt$"
    )
    with pytest.raises(CheckpointError, match=message):
        open_detector(path)


def test_stored_anchors_come_along_and_are_used(tmp_path: Path) -> None:
    """Published weights keep theirs, rounded: only with them are published scores reproduced."""
    checkpoint = make()
    detector = checkpoint.build()
    images = torch.zeros((1, 3, 64, 64), dtype=torch.uint8)
    boxes_xyxy = detector(images).boxes_xyxy[0, :, 0]
    anchors = torch.zeros((len(boxes_xyxy), 4)) + torch.tensor([0.25, 0.25, 0.75, 0.75])
    path = tmp_path / "stored.pt"
    save_checkpoint(path, replace(checkpoint, weights={**checkpoint.weights, "stored_anchors": anchors}))
    stored = load_checkpoint(path).build()
    centres_xy = (stored(images).boxes_xyxy[0, :, 0, :2] + stored(images).boxes_xyxy[0, :, 0, 2:]) / 2
    assert (centres_xy - 32).abs().max() < 16  # all of them near the middle of the picture, where these anchors are
    other_size = torch.zeros((1, 3, 96, 96), dtype=torch.uint8)  # other maps, other anchors: ours stand in
    assert torch.equal(stored(other_size).boxes_xyxy, detector(other_size).boxes_xyxy)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/toy/best.pt", "toy"),
        ("runs/toy/last.pt", "toy"),
        ("best.pt", "best"),
        ("models/ssd_0.75.pt", "ssd_0.75"),
        ("models/mobilenet.tflite", "mobilenet"),
    ],
)
def test_a_model_is_called_by_its_file_or_its_run(path: str, name: str) -> None:
    assert name_of(Path(path)) == name
