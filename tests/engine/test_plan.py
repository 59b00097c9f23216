from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from mnet_det.catalogue import CATALOGUE, imagenet_weights
from mnet_det.config import load_config
from mnet_det.engine import plan as module
from mnet_det.engine import plan as plan_module
from mnet_det.engine.plan import Axes, Plan, plan_sweep, read_plan, runs_left_out, starting_weights, write_plan
from mnet_det.errors import ConfigError, DataError, MnetDetError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {base_hw: [64, 64]}\ntrain: {epochs: 2}\n", encoding="utf-8")
    return path


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are not built to be counted, which is most of the time that a plan takes."""
    monkeypatch.setattr(module, "count_cost", lambda build, *, input_hw: SimpleNamespace(mult_adds=1, params=1))


def planned(recipe: Path, toy: Path, *words: str, **axes: object) -> Plan:
    return plan_sweep(recipe, [f"data.root={toy}", *words], Axes(**axes))  # type: ignore[arg-type]


@pytest.mark.usefixtures("uncounted")
def test_every_combination_is_a_run_and_each_point_comes_once_before_a_second_seed(recipe: Path, toy: Path) -> None:
    plan = planned(recipe, toy, alphas=[0.5, 0.25], rhos=[1, 0.75], seeds=[3, 4])
    points = [(run.point.alpha, run.point.rho, run.seed) for run in plan.runs]
    first = [(0.5, 1.0, 3), (0.25, 1.0, 3), (0.5, 0.75, 3), (0.25, 0.75, 3)]
    assert points == first + [(alpha, rho, 4) for alpha, rho, _ in first]
    assert plan.runs[2].input_hw == (48, 48)  # 64 × 0.75
    assert len({run.name for run in plan.runs}) == len({run.key for run in plan.runs}) == 8


@pytest.mark.usefixtures("uncounted")
def test_axes_that_are_not_given_stay_as_in_the_config(recipe: Path, toy: Path) -> None:
    (run,) = planned(recipe, toy, "model.rho=0.75", "train.seed=7", alphas=[0.5]).runs
    assert (run.point.rho, run.seed, run.point.head) == (0.75, 7, "ssd")


@pytest.mark.usefixtures("uncounted")
def test_each_width_starts_from_its_own_imagenet_weights_and_others_from_random_ones(recipe: Path, toy: Path) -> None:
    runs = planned(recipe, toy, "model.padding=same", alphas=[1, 0.75, 0.5, 0.25, 0.3]).runs
    assert [run.start for run in runs] == [
        "mobilenet_v1_1.0_224_quant_embedding_extractor",
        "mobilenet_v1_0.75_192_quant",
        "mobilenet_v1_0.5_160_quant",
        "mobilenet_v1_0.25_128_quant",
        None,
    ]


@pytest.mark.usefixtures("uncounted")
def test_the_config_files_own_start_is_of_one_width_and_not_used(tmp_path: Path, toy: Path) -> None:
    recipe = tmp_path / "detector.yaml"
    recipe.write_text("model: {init: ssd_mobilenet_v1_0.75_coco, base_hw: [64, 64]}\n", encoding="utf-8")
    plan = planned(recipe, toy, alphas=[0.5])
    assert plan.runs[0].start == "mobilenet_v1_0.5_160_quant"
    assert plan.set_aside == "ssd_mobilenet_v1_0.75_coco"
    assert planned(recipe, toy, "model.init=null", alphas=[0.5]).set_aside is None


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(("word", "start"), [("model.init=null", None), ("model.init=mine.pt", "mine.pt")])
def test_a_start_among_the_words_holds_for_every_run(recipe: Path, toy: Path, word: str, start: str | None) -> None:
    assert {run.start for run in planned(recipe, toy, word, alphas=[0.5, 1]).runs} == {start}


@pytest.mark.parametrize(
    ("words", "start"),
    [
        pytest.param(["model.backbone=mobilenet_v2"], "mobilenet_v2.torchvision_imagenet1k_v1", id="another backbone"),
        pytest.param(["model.separable=false"], None, id="other layers"),
        pytest.param(["model.shallow=true"], None, id="fewer layers"),
        pytest.param(["model.backbone=inception_v2"], None, id="none published"),
        pytest.param(["model.backbone=timm:mobilenetv1_100"], None, id="timm, from random weights"),
        pytest.param(["model.backbone=timm:resnet18", "model.init=pretrained"], "pretrained", id="timm's own"),
    ],
)
def test_weights_of_other_networks(words: list[str], start: str | None) -> None:
    assert starting_weights(load_config(None, words).model) == start


def test_every_entry_of_the_catalogue_says_its_backbone() -> None:
    assert {entry.backbone for entry in CATALOGUE if "torchvision" in entry.name} > {"vgg16", "squeezenet"}
    assert imagenet_weights("mobilenet_v1", alpha=0.33) is None
    detector = next(entry for entry in CATALOGUE if entry.kind == "detector")
    assert imagenet_weights("mobilenet_v1", alpha=detector.alpha) is not detector


@pytest.mark.usefixtures("uncounted")
def test_sizes_that_cells_do_not_tile_are_said_with_the_nearest_that_they_do(recipe: Path, toy: Path) -> None:
    assert planned(recipe, toy, alphas=[0.5], rhos=[1, 1.5]).notes() == []  # 64 and 96
    (note,) = planned(recipe, toy, "model.base_hw=[150,300]", alphas=[0.5, 1], rhos=[1, 0.75]).notes()
    assert note.startswith("inputs of 300x150, 225x113: no multiples of 32")
    assert note.endswith("near ones: 288x160, 224x128")  # 150 / 32 = 4.7, 300 / 32 = 9.4, 112.5 → 113 / 32 = 3.5


def test_a_network_that_cannot_be_built_is_a_fault_of_its_own_run(recipe: Path, toy: Path) -> None:
    good, bad = planned(recipe, toy, alphas=[0.5], rhos=[1, 0.25]).runs  # 64 × 0.25 = 16 pixels
    assert good.fault is None
    assert good.mult_adds
    assert bad.fault is not None
    assert "16x16" in bad.fault
    assert bad.point.rho == 0.25
    assert bad.mult_adds is None


def test_a_network_that_no_memory_holds_is_a_fault_too(
    recipe: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "MOST_TIMES", 1e13)
    good, bad = planned(recipe, toy, alphas=[0.1, 1e12]).runs
    assert good.fault is None
    assert bad.fault is not None
    assert "\n" not in bad.fault


def test_a_network_is_counted_once_however_many_seeds_it_has(
    recipe: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[object] = []

    def count(*words: object, **options: object) -> SimpleNamespace:
        counted.append(words)
        return SimpleNamespace(mult_adds=1, params=1)

    monkeypatch.setattr(module, "count_cost", count)
    assert len(planned(recipe, toy, alphas=[0.5, 0.25], seeds=[0, 1, 2]).runs) == 6
    assert len(counted) == 2


def test_a_sweep_of_which_nothing_can_be_built_is_refused(recipe: Path, toy: Path) -> None:
    with pytest.raises(ConfigError, match="none of these networks can be built"):
        planned(recipe, toy, alphas=[0.5], rhos=[0.25])


@pytest.mark.parametrize(
    ("words", "axes", "message"),
    [
        (["model.alpha=1"], {"alphas": [0.5]}, "model.alpha=1: --alpha varies that"),
        (["train.seed=1"], {"alphas": [0.5], "seeds": [0]}, "--seeds varies that"),
        ([], {"alphas": [0.5, 0.50]}, "stands there twice"),
        (["model.alhpa=1"], {"alphas": [0.5]}, "did you mean"),
        ([], {"alphas": []}, "--alpha: no value is given"),
        ([], {"alphas": [0.5], "heads": []}, "--head: no value is given"),
        ([], {"alphas": [0.5, float("nan")]}, "--alpha nan: expected numbers above 0, at most 10"),
        ([], {"alphas": [0.5], "rhos": [50]}, "--rho 50: expected numbers above 0, at most 10"),
    ],
)
def test_contradictions_are_refused(
    recipe: Path, toy: Path, words: list[str], axes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(recipe, toy, *words, **axes)


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize(
    ("word", "same"),
    [
        pytest.param("train.epochs=3", False, id="length"),
        pytest.param("model.taps=[5,11,13]", False, id="network"),
        pytest.param("eval.nms=0.5", False, id="scoring"),
        pytest.param("data.workers=0", True, id="workers"),
        pytest.param("data.cache=true", True, id="cache"),
        pytest.param("train.save_minutes=1", True, id="how often it saves"),
        pytest.param("train.device=cpu", True, id="device"),
    ],
)
def test_a_key_holds_what_a_result_depends_on(recipe: Path, toy: Path, word: str, same: bool) -> None:
    plain, other = (planned(recipe, toy, *words, alphas=[0.5]) for words in ((), (word,)))
    assert (plain.runs[0].key == other.runs[0].key) is same
    assert (plain.base_key == other.base_key) is same


@pytest.mark.usefixtures("uncounted")
def test_a_key_goes_by_the_datas_content_and_not_by_its_place(recipe: Path, toy: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(toy, moved)
    (before,) = planned(recipe, toy, alphas=[0.5]).runs
    (elsewhere,) = planned(recipe, moved, alphas=[0.5]).runs
    annotations = moved / "annotations" / "instances_val2017.json"
    content = json.loads(annotations.read_text(encoding="utf-8"))
    content["annotations"].pop()
    annotations.write_text(json.dumps(content), encoding="utf-8")
    (fewer_boxes,) = planned(recipe, moved, alphas=[0.5]).runs
    image = next((moved / "train2017").iterdir())
    image.write_bytes(image.read_bytes() + b" ")
    (other_image,) = planned(recipe, moved, alphas=[0.5]).runs
    assert before.key == elsewhere.key
    assert len({before.key, fewer_boxes.key, other_image.key}) == 3


@pytest.mark.usefixtures("uncounted")
def test_a_key_goes_by_the_content_of_weights_that_are_a_file(recipe: Path, toy: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.pt"
    keys = []
    for content in (b"one", b"another"):
        mine.write_bytes(content)
        keys += [run.key for run in planned(recipe, toy, f"model.init={mine}", alphas=[0.5]).runs]
    assert len(set(keys)) == 2


@pytest.mark.usefixtures("uncounted")
def test_seeds_and_widths_of_one_recipe_share_a_table(recipe: Path, toy: Path) -> None:
    one = planned(recipe, toy, alphas=[0.5])
    assert one.base_key == planned(recipe, toy, alphas=[1], rhos=[0.75], seeds=[1]).base_key
    assert one.base_key != planned(recipe, toy, "model.init=null", alphas=[0.5]).base_key


@pytest.mark.usefixtures("uncounted")
def test_a_second_plan_of_the_recipe_extends_the_first(recipe: Path, toy: Path, tmp_path: Path) -> None:
    for alphas in ([0.25], [1, 0.5], [0.25]):
        words = ["sweep", f"--alpha={alphas[0]}", "a b"]
        assert write_plan(tmp_path, planned(recipe, toy, alphas=alphas), command=words) == []
    content = read_plan(tmp_path)
    assert [run["point"]["alpha"] for run in content["runs"]] == [1, 0.5, 0.25]
    assert content["command"] == "sweep --alpha=1 'a b' && sweep --alpha=0.25 'a b'"  # each once, the last one last


@pytest.mark.usefixtures("uncounted")
def test_a_plan_of_other_settings_takes_the_place_of_the_first(recipe: Path, toy: Path, tmp_path: Path) -> None:
    first = planned(recipe, toy, alphas=[0.5])
    write_plan(tmp_path, first, command=[])
    other = planned(recipe, toy, "train.epochs=3", alphas=[0.5])
    assert runs_left_out(tmp_path, other) == [first.runs[0].name]
    dropped = write_plan(tmp_path, other, command=["mnet-det"])
    assert dropped == [first.runs[0].name]
    assert read_plan(tmp_path)["command"] == "mnet-det"
    assert [run["name"] for run in read_plan(tmp_path)["runs"]] != dropped


@pytest.mark.usefixtures("uncounted")
def test_a_folder_that_cannot_be_written_is_said(recipe: Path, toy: Path) -> None:
    plan = planned(recipe, toy, alphas=[0.5])
    for folder in (recipe, recipe / "sweep"):  # a file, and a folder below a file
        with pytest.raises(MnetDetError, match="cannot be written"):
            write_plan(folder, plan, command=[])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99, "runs": [], "base_key": "a"}'])
def test_a_damaged_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"sweep\.json: not the plan"):
        read_plan(tmp_path)
