"""Which models a word means, in which order, each loaded once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mnet_det.errors import CheckpointError, ConfigError
from mnet_det.live.lineup import MOST_MODELS, ModelCard, load_lineup


def fake_load(word: str, rho: float | None) -> SimpleNamespace:
    """A model whose alpha is written in its folder's name, and whose base is 300."""
    alpha = float(Path(word).parent.name.rpartition("_")[2] or 1) if word.endswith(".pt") else 1.0
    side = round(300 * (rho or 1))
    return SimpleNamespace(word=word, rho=rho, metadata=SimpleNamespace(alpha=alpha, input_hw=(side, side)))


def test_models_come_in_the_order_given():
    lineup = load_lineup(["b.onnx", "a.onnx"], fake_load)
    assert [(model.word, model.rho) for model in lineup] == [("b.onnx", None), ("a.onnx", None)]


def test_each_model_runs_at_each_resolution():
    lineup = load_lineup(["b.onnx", "a.onnx"], fake_load, rhos=[1.0, 0.5])
    assert [(model.word, model.rho) for model in lineup] == [
        *(("b.onnx", 1.0), ("b.onnx", 0.5), ("a.onnx", 1.0), ("a.onnx", 0.5)),
    ]


def test_sweep_s_folder_gives_its_runs_from_the_widest_to_the_narrowest(tmp_path):
    for alpha in ("0.25", "1", "0.5"):
        run = tmp_path / f"alpha_{alpha}"
        run.mkdir()
        for name in ("best.pt", "last.pt"):
            (run / name).touch()
    lineup = load_lineup([str(tmp_path)], fake_load)
    assert [model.metadata.alpha for model in lineup] == [1, 0.5, 0.25]
    assert {Path(model.word).name for model in lineup} == {"best.pt"}
    (alone,) = load_lineup([str(tmp_path / "alpha_0.5")], fake_load)
    assert alone.metadata.alpha == 0.5


def test_folder_of_exported_files_gives_them_all(tmp_path):
    for name in ("a.onnx", "b.onnx", "notes.txt"):
        (tmp_path / name).touch()
    assert [Path(model.word).name for model in load_lineup([str(tmp_path)], fake_load)] == ["a.onnx", "b.onnx"]


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no model in this folder; expected a run's best\.pt"):
        load_lineup([str(tmp_path)], fake_load)


def test_too_many_models_are_refused_before_one_is_loaded():
    def load(word, rho):
        raise AssertionError("loaded")

    with pytest.raises(ConfigError, match=f"{MOST_MODELS + 1} models, expected at most {MOST_MODELS}"):
        load_lineup([f"{number}.onnx" for number in range(MOST_MODELS + 1)], load)


def test_card_says_what_runs(make_predictor):
    card = ModelCard.of(make_predictor(alpha=0.75))
    assert str(card) == "ssd   alpha 0.75   300x300   fake, 2 threads"
    assert (card.nms, card.class_names) == (0.6, ("a", "b"))
