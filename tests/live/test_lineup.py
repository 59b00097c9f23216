"""Which models a word means, in which order, each loaded once."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mnet_det.errors import CheckpointError, ConfigError
from mnet_det.live.lineup import MOST_MODELS, ModelCard, cards_of, load_lineup


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
    assert (card.name, card.class_scores) == ("ssd", None)
    assert ModelCard.of(make_predictor(class_scores=(0.3, 0.4))).class_scores == (0.3, 0.4)


# A sweep's folder


def name_of_run(alpha: float, seed: int, *, key: str = "1f3a9c") -> str:
    return f"ssd-mobilenet_v1-alpha{alpha:g}-rho1-seed{seed}-{key}"


class Sweep:
    """A folder with the plan of three widths, two seeds each, and no run yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = [
            {
                "name": name_of_run(alpha, seed),
                "key": f"{alpha}/{seed}",
                "point": {"head": "ssd", "backbone": "mobilenet_v1", "alpha": alpha, "rho": 1.0},
                "seed": seed,
            }
            for alpha in (0.5, 1.0, 0.25)
            for seed in (0, 1)
        ]
        self.plan({"format": 1, "runs": self.runs})

    def plan(self, content: object) -> None:
        (self.folder / "sweep.json").write_text(json.dumps(content), encoding="utf-8")

    def finish(self, alpha: float, seed: int, *, key: str | None = None) -> Path:
        """Measured and with a best.pt, under the plan's key or another one."""
        run = self.folder / name_of_run(alpha, seed)
        run.mkdir()
        (run / "best.pt").touch()
        (run / "measured.json").write_text(json.dumps({"key": key or f"{alpha}/{seed}"}), encoding="utf-8")
        return run


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def load_of_sweep(word: str, rho: float | None) -> SimpleNamespace:
    """A model whose alpha is written in its run's name."""
    run = Path(word).parent.name
    alpha = float(run.split("-alpha")[1].split("-")[0])
    return SimpleNamespace(run=run, metadata=SimpleNamespace(alpha=alpha, input_hw=(300, 300)))


def test_sweep_gives_the_first_finished_run_of_each_network_the_widest_first(sweep):
    sweep.finish(0.5, 1)
    sweep.finish(0.5, 0)
    sweep.finish(1.0, 1)  # its seed 0 is not done
    assert [model.run for model in load_lineup([str(sweep.folder)], load_of_sweep)] == [
        name_of_run(1.0, 1),
        name_of_run(0.5, 0),
    ]


def test_sweep_leaves_alone_what_is_not_finished_or_not_in_its_plan(sweep):
    sweep.finish(0.5, 0)
    sweep.finish(1.0, 0, key="of an earlier plan")
    (sweep.finish(0.25, 0) / "best.pt").unlink()
    (sweep.finish(1.0, 1) / "measured.json").write_text("{half", encoding="utf-8")
    (sweep.finish(0.25, 1) / "measured.json").unlink()
    other = sweep.folder / name_of_run(0.75, 0)
    other.mkdir()
    (other / "best.pt").touch()
    assert [model.run for model in load_lineup([str(sweep.folder)], load_of_sweep)] == [name_of_run(0.5, 0)]
    (alone,) = load_lineup([str(other)], load_of_sweep)  # named itself, it is taken
    assert alone.run == other.name


def test_sweep_that_has_finished_nothing_says_what_to_do(sweep):
    sweep.finish(0.5, 0, key="of an earlier plan")
    message = r"of this sweep's 6 runs none is finished; run its `mnet-det sweep` command again, which goes on"
    with pytest.raises(CheckpointError, match=message):
        load_lineup([str(sweep.folder)], load_of_sweep)


def test_sweep_that_is_not_done_says_how_far_it_is(sweep):
    said = []
    sweep.finish(0.5, 0)
    load_lineup([str(sweep.folder)], load_of_sweep, say=said.append)
    sweep.finish(0.5, 1)  # another seed is no other network
    sweep.finish(1.0, 1)
    load_lineup([str(sweep.folder)], load_of_sweep, say=said.append)
    sweep.finish(0.25, 0)
    load_lineup([str(sweep.folder)], load_of_sweep, say=said.append)
    assert said == [f"{sweep.folder}: {count} of this sweep's 3 networks are finished" for count in (1, 2)]


def test_network_that_cannot_be_built_is_not_waited_for(sweep):
    said = []
    sweep.plan(
        {
            "format": 1,
            "runs": [run | {"fault": "too small" if run["point"]["alpha"] < 1 else None} for run in sweep.runs],
        }
    )
    sweep.finish(1.0, 0)
    assert len(load_lineup([str(sweep.folder)], load_of_sweep, say=said.append)) == 1
    assert said == []


@pytest.mark.parametrize("content", [[], {}, {"runs": 3}, {"runs": [{"name": "a"}]}, {"runs": ["a"]}, "plan"], ids=repr)
def test_damaged_plan_is_explained(sweep, content):
    sweep.finish(0.5, 0)
    sweep.plan(content)
    with pytest.raises(
        CheckpointError, match=r"sweep\.json: damaged, or not the plan of a sweep; run its `mnet-det sw"
    ):
        load_lineup([str(sweep.folder)], load_of_sweep)


def test_plan_that_is_no_json_is_explained(sweep):
    (sweep.folder / "sweep.json").write_bytes(b'{"runs": [\xff')
    with pytest.raises(CheckpointError, match=r"sweep\.json: damaged"):
        load_lineup([str(sweep.folder)], load_of_sweep)


def test_models_of_a_sweep_are_counted_after_the_choice(sweep, monkeypatch):
    for alpha in (0.5, 1.0, 0.25):
        for seed in (0, 1):
            sweep.finish(alpha, seed)
    monkeypatch.setattr("mnet_det.live.lineup.MOST_MODELS", 3)
    assert len(load_lineup([str(sweep.folder)], load_of_sweep)) == 3
    with pytest.raises(
        ConfigError, match=r"6 models, expected at most 3, .*; name those to compare, such as the folders"
    ):
        load_lineup([str(sweep.folder)], load_of_sweep, rhos=[1.0, 0.5])


def test_run_of_a_sweep_is_called_by_its_network(make_predictor):
    models = [make_predictor(name=name_of_run(alpha, 0), alpha=alpha) for alpha in (1.0, 0.5)]
    assert [str(card) for card in cards_of([*models, make_predictor(name="mine")])] == [
        "ssd-mobilenet_v1   alpha 1   300x300   fake, 2 threads",
        "ssd-mobilenet_v1   alpha 0.5   300x300   fake, 2 threads",
        "mine   alpha 0.5   300x300   fake, 2 threads",
    ]


def test_runs_that_differ_in_their_seed_alone_keep_their_names(make_predictor):
    names = [name_of_run(0.5, seed) for seed in (0, 1)]
    assert [card.name for card in cards_of([make_predictor(name=name) for name in names])] == names
