"""`auto`: the quicker engine, timed once, with the reason."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mnet_det.errors import CheckpointError
from mnet_det.runtime import backends, load_predictor
from mnet_det.runtime import choice as module
from mnet_det.runtime.backends import Backend
from mnet_det.runtime.choice import choose_runtime
from mnet_det.runtime.metadata import ModelMetadata
from mnet_det.structures import Candidates

WriteModel = Callable[..., Path]


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, metadata: ModelMetadata) -> Callable[..., list[str]]:
    """Stand-ins that take so many milliseconds, or cannot load the file; gives the list of what was loaded."""

    def install(**ms_of: float | None) -> list[str]:
        loaded: list[str] = []

        def engine(engine_name: str, ms: float | None) -> Callable[..., Backend]:
            class StandIn(Backend):
                name, threads = engine_name, 1

                def __init__(self) -> None:
                    self.metadata = metadata

                def candidates(self, images: NDArray[np.uint8]) -> Candidates:
                    time.sleep((ms or 0) / 1000)
                    return Candidates(np.zeros((1, 1, 1, 4)), np.zeros((1, 1, 2)))

            def load(path: Path, *, threads: int | None = None, **_: Any) -> Backend:
                loaded.append(engine_name)
                if ms is None:
                    raise CheckpointError(f"{path}: not for {engine_name}")
                return StandIn()

            return load

        monkeypatch.setattr(module, "ENGINES", {name: engine(name, ms) for name, ms in ms_of.items()})
        return loaded

    return install


@pytest.mark.parametrize(
    ("ms_of", "quicker"),
    [({"openvino": 1, "onnxruntime": 8}, "openvino"), ({"openvino": 8, "onnxruntime": 1}, "onnxruntime")],
    ids=["openvino", "onnxruntime"],
)
def test_the_quicker_engine_is_chosen_and_the_figures_are_given(
    ms_of: dict[str, float],
    quicker: str,
    engines: Callable[..., list[str]],
    write_model: WriteModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engines(**ms_of)
    choice = choose_runtime(write_model())
    other = ({*ms_of} - {quicker}).pop()
    assert choice.runtime == quicker
    fastest, slowest = (float(word) for word in choice.reason.split() if word.replace(".", "").isdigit())
    assert capsys.readouterr().err == "timing openvino and onnxruntime once for tiny.onnx\n"
    assert 1 <= fastest < 8 <= slowest
    assert f" in {other}, timed on 20" in choice.reason


def test_a_file_is_timed_once_for_each_number_of_threads(
    engines: Callable[..., list[str]], write_model: WriteModel
) -> None:
    loaded = engines(openvino=0, onnxruntime=1)
    path = write_model()
    first = choose_runtime(path)
    assert choose_runtime(path) == first
    assert loaded == ["openvino", "onnxruntime"]
    choose_runtime(path, threads=1)
    assert len(loaded) == 4
    path.write_bytes(path.read_bytes() + b"another model")
    choose_runtime(path)
    assert len(loaded) == 6


@pytest.mark.parametrize(
    "content",
    ["", "[1]", '{"runtime": "x"}', '{"runtime": "x", "reason": "y"}'],
    ids=["empty", "list", "half", "another engine"],
)
def test_a_damaged_answer_is_measured_again(
    content: str, engines: Callable[..., list[str]], write_model: WriteModel, tmp_path: Path
) -> None:
    loaded = engines(openvino=0, onnxruntime=1)
    path = write_model()
    first = choose_runtime(path)
    (answer,) = (tmp_path / "cache" / "runtimes").iterdir()
    answer.write_text(content, encoding="utf-8")
    assert choose_runtime(path).runtime == first.runtime
    assert len(loaded) == 4


def test_an_engine_that_cannot_load_the_model_leaves_the_other(
    engines: Callable[..., list[str]], write_model: WriteModel
) -> None:
    engines(openvino=None, onnxruntime=1)
    choice = choose_runtime(write_model())
    assert choice.runtime == "onnxruntime"
    assert choice.reason.startswith("the other one failed: ")
    assert choice.reason.endswith("not for openvino")


def test_an_engine_that_cannot_be_imported_leaves_the_other(
    write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows without Microsoft's C++ library its import fails; `auto`, the default, then failed as well. Its
    distribution may have another name than its module, too, such as onnxruntime-gpu."""

    def fail() -> None:
        raise ImportError("DLL load failed")

    monkeypatch.setattr(backends, "import_onnxruntime", fail)
    monkeypatch.setattr(module, "installed_version", lambda name: None)
    choice = choose_runtime(write_model())
    assert choice.runtime == "openvino"
    assert choice.reason.endswith("the runtime 'onnxruntime' cannot be imported: DLL load failed")


@pytest.mark.parametrize(("ms", "rounds"), [(0, module.MOST_ROUNDS), (300, 1)], ids=["quick", "slow"])
def test_a_slow_model_is_timed_in_fewer_rounds(
    ms: float,
    rounds: int,
    engines: Callable[..., list[str]],
    write_model: WriteModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each engine ran it thirty times, in silence, however long that took."""
    engines(openvino=ms, onnxruntime=ms)
    taken: list[int] = []

    def note(runs: Any, *, rounds: int, **_: Any) -> list[list[float]]:
        taken.append(rounds)
        return [[1.0], [2.0]]

    monkeypatch.setattr(module, "interleave", note)
    choose_runtime(write_model())
    assert taken == [rounds]


def test_a_model_that_none_can_load_is_the_first_one_s_fault(
    engines: Callable[..., list[str]], write_model: WriteModel
) -> None:
    engines(openvino=None, onnxruntime=None)
    with pytest.raises(CheckpointError, match="not for openvino"):
        choose_runtime(write_model())


def test_nothing_is_timed_where_there_is_no_choice(
    engines: Callable[..., list[str]], write_model: WriteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = engines(openvino=0, onnxruntime=1)
    assert choose_runtime(tmp_path / "model.xml").runtime == "openvino"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_runtime(write_model()) == module.Choice("openvino", "the only one installed")
    assert loaded == []


def test_a_cache_that_cannot_be_written_is_no_fault(
    engines: Callable[..., list[str]], write_model: WriteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines(openvino=0, onnxruntime=5)
    (tmp_path / "file").write_text("a file, not a folder", encoding="utf-8")
    monkeypatch.setenv("MNET_DET_CACHE", str(tmp_path / "file"))
    assert choose_runtime(write_model()).runtime == "openvino"


def test_a_predictor_knows_why_its_engine_runs(write_model: WriteModel) -> None:
    path = write_model()
    predictor = load_predictor(path)
    assert predictor.choice is not None
    assert predictor.runtime == predictor.choice.runtime
    assert load_predictor(path, runtime="openvino").choice is None
