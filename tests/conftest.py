"""Fixtures for every test: real files, a cache of the tests' own, and a toy run that is drawn and trained once."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: threads of two processes would stall each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images, weights and clips beside the checkout; tests that need it are marked `shared`."""
    folder = Path(os.environ.get("MNET_DET_SHARED", Path(__file__).parents[1].parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set MNET_DET_SHARED to the folder of real images, weights and clips")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNET_DET_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set of 6 training and 4 validation images with a film of 180 frames; not to be written to."""
    from mnet_det.data.toy import draw_toy

    folder = tmp_path_factory.mktemp("data") / "toy"
    draw_toy(folder, train_images=6, val_images=4)
    return folder


@pytest.fixture(scope="session")
def toy_words(toy: Path) -> tuple[str, ...]:
    """Settings of the smallest run on the toy data: two epochs of three steps, scored after each."""
    return (
        f"data.root={toy}",
        "data.augment=flip",
        "data.workers=0",
        "model.alpha=0.1",
        "model.base_hw=[64,64]",
        "train.epochs=2",
        "train.batch_size=2",
        "train.eval_every=1",
        "train.device=cpu",
    )


@pytest.fixture(scope="session")
def toy_run(toy_words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with `toy_words`; not to be written to."""
    from mnet_det.config import load_config
    from mnet_det.engine.train import train

    folder = tmp_path_factory.mktemp("runs") / "toy"
    train(load_config(None, toy_words), out=folder)
    return folder


@pytest.fixture(scope="session")
def toy_model(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`best.pt` of `toy_run` as an ONNX file."""
    from mnet_det.engine.export import export_detector

    path = tmp_path_factory.mktemp("models") / "toy.onnx"
    export_detector(toy_run / "best.pt", path)
    return path


@dataclass(frozen=True)
class Answer:
    """What a command came to: exit status and all that it wrote."""

    status: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`cli("eval", path, …)` is `mnet-det eval PATH …` in this process."""
    from mnet_det.cli import main

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["mnet-det", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return Answer(int(stop.value.code or 0), *capfd.readouterr())

    return call
