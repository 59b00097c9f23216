from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mnet_det.data import open_data
from mnet_det.engine import measure
from mnet_det.engine.checkpoint import open_detector
from mnet_det.engine.evaluate import evaluate
from mnet_det.engine.measure import measure_latency, measure_run, read_measured, read_trained, validation_images
from mnet_det.engine.torch_backend import load_torch_predictor
from mnet_det.errors import CheckpointError, DataError
from mnet_det.models import build_detector
from mnet_det.models.cost import count_cost
from mnet_det.runtime import load_predictor
from mnet_det.runtime.benchmark import BenchmarkRow, StageSummary
from mnet_det.runtime.choice import installed_engines


@pytest.fixture(scope="module")
def run(toy_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy run, measured."""
    folder = tmp_path_factory.mktemp("measured") / "run"
    shutil.copytree(toy_run, folder)
    measure_run(folder, key="abc", minutes=2.5)
    return folder


@pytest.fixture
def measured(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "measured.json").read_text(encoding="utf-8"))
    return content


def test_a_run_is_scored_as_eval_scores_it(run: Path, measured: dict[str, Any]) -> None:
    checkpoint = open_detector(run / "best.pt")
    data = open_data(checkpoint.config.data, "val")
    predictor = load_torch_predictor(run / "best.pt")
    scores, results = evaluate(predictor, data, checkpoint.config.data.annotations("val"))
    assert measured["scores"] == scores.to_json(runtime="torch")
    assert json.loads((run / "detections.json").read_text(encoding="utf-8")) == results
    assert measured["analysis"]["per_class"].keys() == measured["scores"]["per_class"].keys()


def test_its_cost_is_that_of_its_network_and_its_size_that_of_its_export(run: Path, measured: dict[str, Any]) -> None:
    config = open_detector(run / "best.pt").config.model
    cost = count_cost(lambda: build_detector(config, num_classes=6), input_hw=config.input_hw)
    assert (measured["mult_adds"], measured["params"]) == (cost.mult_adds, cost.params)
    assert measured["file_bytes"] > 4 * measured["params"]  # float32


def test_what_it_is_stands_beside(measured: dict[str, Any]) -> None:
    assert measured["point"] == {"head": "ssd", "backbone": "mobilenet_v1", "alpha": 0.1, "rho": 1.0}
    assert (measured["key"], measured["minutes"], measured["seed"], measured["start"]) == ("abc", 2.5, 0, None)
    assert (measured["epochs"], measured["training_images"], measured["validation_images"]) == (2, 6, 4)
    assert measured["input_hw"] == [64, 64]
    assert measured["name"] == "run"


def test_the_best_thresholds_become_part_of_the_checkpoint(run: Path, measured: dict[str, Any]) -> None:
    best = measured["analysis"]["best_f1"]
    expected = tuple(0.5 if best[name] is None else best[name]["score"] for name in measured["class_names"])
    assert open_detector(run / "best.pt").class_scores == expected
    assert load_predictor(run / "best.pt", runtime="openvino").metadata.class_scores == expected


def test_measuring_counts_until_other_weights_come(run: Path, toy_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    assert read_measured(folder) == read_measured(run) is not None
    shutil.copyfile(toy_run / "best.pt", folder / "best.pt")  # without thresholds: not the file that was measured
    assert read_measured(folder) is None
    assert read_measured(toy_run) is None


def test_a_run_that_was_never_scored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a sweep nor a run"):
        measure_run(tmp_path)
    (tmp_path / "last.pt").touch()
    with pytest.raises(CheckpointError, match=r"no best\.pt in it"):
        measure_run(tmp_path)


def test_weights_that_a_training_replaces_meanwhile_are_not_said_to_be_measured(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`report` of a run that was still trained gave the new weights the numbers and thresholds of the old ones."""
    folder = tmp_path / "run"
    shutil.copytree(toy_run, folder)
    analyse_model = measure.analyse_model

    def slow(*arguments: Any) -> Any:
        shutil.copyfile(toy_run / "last.pt", folder / "best.pt")
        return analyse_model(*arguments)

    monkeypatch.setattr(measure, "analyse_model", slow)
    with pytest.raises(CheckpointError, match="changed while it was scored"):
        measure_run(folder)
    assert not (folder / "measured.json").exists()


@pytest.mark.parametrize(
    ("text", "epochs", "best"),
    [
        ("epoch,AP\n1,0.1\n2,0.3\n3,\n4,0.3\n", 4, 2),  # of equals training keeps the first
        ("epoch,loss\n1,2.5\n", 1, None),
        ("epoch,AP\n", 0, None),
    ],
)
def test_the_epochs_of_a_run(tmp_path: Path, text: str, epochs: int, best: int | None) -> None:
    (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
    trained = read_trained(tmp_path)
    assert (trained.epochs, trained.best_epoch) == (epochs, best)


def test_speeds_are_measured_in_turns_and_kept_for_the_same_weights(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    benchmark = measure.benchmark

    def quick(predictors: Any, images: Any) -> Any:
        asked.append(len(predictors))
        return benchmark(predictors, images, rounds=1, rest_s=0)

    monkeypatch.setattr(measure, "benchmark", quick)
    content = measure_latency(tmp_path, [run], threads=1)
    (row,) = content["rows"]
    assert row["name"] == "run"
    assert row["fps"] == pytest.approx(1000 / row["total_ms"]["p50"])
    assert content["images"].startswith("4 images of")
    assert row["runtime"] in installed_engines()
    assert measure_latency(tmp_path, [run], threads=1) == content
    assert asked == [len(installed_engines())]  # in each of them; the quicker one is kept
    measure_latency(tmp_path, [run], threads=1, again=True)
    assert asked == 2 * [len(installed_engines())]
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert [row["name"] for row in measure_latency(tmp_path, [run, other], threads=1)["rows"]] == ["run", "other"]
    assert asked[2:] == [2 * len(installed_engines())]


def test_the_quicker_engine_stands_for_a_network(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pretend(predictors: Any, images: Any) -> list[BenchmarkRow]:
        rows = []
        for name, predictor in predictors:
            stage = StageSummary(2.0 if predictor.runtime == "openvino" else 1.0, 3.0)
            rows.append(replace(benchmark([(name, predictor)], images, rounds=1, rest_s=0)[0], total_ms=stage))
        return rows

    benchmark = measure.benchmark
    monkeypatch.setattr(measure, "benchmark", pretend)
    (row,) = measure_latency(tmp_path, [run], threads=1)["rows"]
    assert row["runtime"] == ("onnxruntime" if "onnxruntime" in installed_engines() else "openvino")


def test_a_run_is_measured_where_its_data_are_now(toy_run: Path, toy: Path, tmp_path: Path) -> None:
    """It was trained where they were before."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    shutil.copytree(toy_run, run)
    shutil.copytree(toy, moved)
    for missing in (moved / "val2017").iterdir():  # so that it shows which images are looked at
        missing.unlink()
    config = open_detector(run / "best.pt").config.data
    with pytest.raises(DataError, match=r"moved.*are missing"):
        measure_run(run, data_config=config.model_copy(update={"root": moved}))
    with pytest.raises(DataError, match=r"moved.*are missing"):
        measure_latency(tmp_path, [run], data_config=config.model_copy(update={"root": moved}))


def test_a_damaged_file_of_speeds_is_measured_again(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = measure.benchmark
    quick = functools.partial(benchmark, rounds=1, rest_s=0)
    monkeypatch.setattr(measure, "benchmark", quick)
    (tmp_path / "latency.json").write_text("{", encoding="utf-8")
    assert len(measure_latency(tmp_path, [run])["rows"]) == 1


def test_images_that_cannot_be_read_are_not_looked_at(toy: Path, run: Path, tmp_path: Path) -> None:
    config = open_detector(run / "best.pt").config
    broken = tmp_path / "val2017"
    shutil.copytree(toy / "val2017", broken)
    names = sorted(broken.iterdir())
    names[0].write_bytes(b"no image")
    changed = config.data.model_copy(update={"val_images": broken})
    assert len(validation_images(changed)) == 3
    for name in names:
        name.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of its 4 images can be read"):
        validation_images(changed)
