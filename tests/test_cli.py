"""The command line: what each verb writes and prints, and how it says that something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import onnx
import pytest
import timm
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from safetensors.torch import save_file
from typer.main import get_command

from mnet_det import catalogue, doctor
from mnet_det.cli import _Lasting, _run_folder, app
from mnet_det.cli import _leave_if_capture_hangs as leave_if_capture_hangs
from mnet_det.doctor import Finding
from mnet_det.errors import ConfigError, DownloadError
from mnet_det.live.capture import THREAD_NAME
from mnet_det.runtime import cache
from mnet_det.runtime.metadata import METADATA_KEY

Cli = Callable[..., Any]
NUMBERS = [
    *("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"),
    *("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"),
]
VERBS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, so that what a command leaves anywhere is seen."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def config(here: Path, toy_words: tuple[str, ...]) -> Path:
    """The toy settings as a file, outside the folder that is looked at."""
    from mnet_det.config import load_config

    path = here.parent / "tiny.yaml"
    path.write_text(load_config(None, toy_words).to_yaml())
    return path


@pytest.fixture
def annotations(toy: Path) -> Path:
    return toy / "annotations" / "instances_val2017.json"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def assert_explained(answer: Any, message: str, here: Path) -> None:
    """Exit status 1, one line on stderr, nothing left behind."""
    assert answer.status == 1, answer
    (line,) = (line for line in answer.err.splitlines() if not line.startswith("timing openvino and onnxruntime once"))
    assert line.startswith("error: ")
    assert message in line
    assert list(here.rglob("*")) == []


# How it starts and stops


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, cli: Cli) -> None:
    answer = cli(verb, "--help")
    assert answer.status == 0
    assert f"Example: mnet-det {verb}" in answer.out


def test_the_module_is_the_command() -> None:
    child = subprocess.run(
        [sys.executable, "-m", "mnet_det", "convert", "voc", "nosuch", "--out", "voc.json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 1
    assert child.stderr == "error: nosuch: no such folder\n"
    assert child.stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ["nosuchverb"],
        ["info", "--nosuchoption"],
        ["info", "--head", "faster"],
        ["info", "--alpha", "wide"],
        ["info", "one.yaml", "two.yaml"],
        ["train"],
        ["train", "a.yaml", "--overfit", "0"],
        ["eval"],
        ["eval", "--annotations", "a.json"],
        ["eval", "best.pt", "--annotations", "a.json"],
        ["eval", "best.pt", "--annotations", "a.json", "--detections", "d.json"],
        ["predict", "best.pt", "photos"],
        ["export", "best.pt"],
        ["export", "best.pt", "--format", "tensorrt"],
        ["export", "best.pt", "--format", "openvino-int8", "--images", "a"],
        ["export", "best.pt", "--format", "openvino-int8", "--annotations", "a.json"],
        ["export", "best.pt", "--format", "onnx", "--images", "a", "--annotations", "a.json"],
        ["bench", "--alpha", "1,wide"],
        ["demo", "--score", "2"],
        ["demo", "--rho", "1,0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_status_2(words: list[str], cli: Cli, here: Path) -> None:
    """Wrong values of options were called faults of the data, with exit status 1."""
    answer = cli(*words)
    assert answer.status == 2
    assert "Usage: " in answer.err
    assert answer.out == ""
    assert list(here.iterdir()) == []


def test_debug_adds_the_traceback(cli: Cli, here: Path) -> None:
    plain, debugged = cli("train", "gone.yaml"), cli("train", "gone.yaml", "--debug")
    assert plain.err == "error: gone.yaml: no such config file; the project's own are in configs/\n"
    assert debugged.status == 1
    assert debugged.err.startswith("Traceback (most recent call last):")
    assert debugged.err.endswith(plain.err)


def test_a_missing_package_is_explained_with_the_line_that_installs_it(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mnet_det.engine.evaluate", "mnet_det.engine.scorers", "pycocotools.coco"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "pycocotools", None)  # importing it fails as if it were not there
    answer = cli("eval", "--detections", "d.json", "--annotations", "a.json")
    assert_explained(answer, "this needs the package pycocotools, which is not installed: ", here)
    assert doctor.install_line("train") in answer.err


def test_a_fault_of_ours_keeps_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnet_det.data import toy

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(toy, "draw_toy", fail)
    monkeypatch.setattr(sys, "argv", ["mnet-det", "toy", "x"])
    from mnet_det.cli import main

    with pytest.raises(ZeroDivisionError):
        main()


# info


def test_info_writes_the_promised_keys(cli: Cli, tmp_path: Path) -> None:
    answer = cli("info", "--head", "classifier", "--json", tmp_path / "cost.json")
    assert answer.status == 0
    content = read(tmp_path / "cost.json")
    assert round(content["mult_adds"] / 1e6) == 569
    assert round(content["params"] / 1e6, 1) == 4.2
    kind = content["by_kind"]["1x1 convolution"]
    assert round(100 * kind["mult_adds_share"], 2) == 94.86
    assert round(100 * kind["params_share"], 2) == 74.59
    assert {"mult_adds", "params"} <= kind.keys()
    assert {"name", "kind", "mult_adds", "params", "output"} <= content["layers"][0].keys()
    assert sum(layer["params"] for layer in content["layers"]) == content["params"]
    assert "568.7 M multiply-adds, 4.232 M parameters" in answer.out


@pytest.mark.parametrize(
    ("words", "summary"),
    [
        (["--alpha", "0.25", "--head", "classifier"], "ImageNet classifier on mobilenet_v1, alpha 0.25, input 224x224"),
        ([], "ssd on mobilenet_v1, alpha 1, input 300x300: 1,224"),
        (["--classes", "90"], "ssd on mobilenet_v1, alpha 1, input 300x300: 1,237.1 M multiply-adds, 6.820 M"),
        (["--head", "ssdlite", "--alpha", "0.5"], "ssdlite on mobilenet_v1, alpha 0.5, input 320x320"),
        (["--rho", "0.64"], "ssd on mobilenet_v1, alpha 1, input 192x192"),
        (["model.alpha=0.75", "model.base_hw=[96,128]"], "ssd on mobilenet_v1, alpha 0.75, input 128x96"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_info_is_about_the_network_that_is_asked_for(words: list[str], summary: str, cli: Cli) -> None:
    answer = cli("info", *words)
    assert answer.status == 0, answer.err
    assert summary in answer.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("head", "summary"),
    [
        ("ssd", "ssd on mobilenet_v1, alpha 0.1, input 64x64"),
        ("ssdlite", "ssdlite on mobilenet_v1, alpha 0.1, input 64x64"),
        ("classifier", "ImageNet classifier on mobilenet_v1, alpha 0.1, input 224x224"),  # ImageNet's size
    ],
)
def test_info_of_a_config_takes_its_size(head: str, summary: str, cli: Cli, config: Path) -> None:
    assert summary in cli("info", config, "--head", head).out.splitlines()[-1]


def test_tables_keep_their_names_in_a_pipe(cli: Cli) -> None:
    """rich takes 80 columns for a pipe, and cut every layer's name to "backbone.block…"."""
    out = cli("info", "--head", "classifier").out
    assert "backbone.blocks.13.pointwise.conv " in out
    assert "…" not in out


# train


def test_train_leaves_a_run_and_says_where(cli: Cli, config: Path, here: Path) -> None:
    answer = cli("train", config, "train.epochs=1")
    assert answer.status == 0, answer.err
    folder = here / "runs" / "tiny"
    assert {"config.yaml", "metrics.csv", "last.pt", "best.pt"} <= {path.name for path in folder.iterdir()}
    last = answer.out.splitlines()[-1]
    assert last.startswith("best AP 0.0")
    assert last.endswith(f"checkpoints, metrics.csv and pictures are in {Path('runs/tiny')}")
    assert all(name in answer.out for name in NUMBERS)


def test_a_second_run_gets_its_own_folder(cli: Cli, config: Path, here: Path) -> None:
    (here / "runs" / "tiny").mkdir(parents=True)
    (here / "runs" / "tiny" / "last.pt").touch()
    assert cli("train", config, "train.epochs=1").status == 0
    assert (here / "runs" / "tiny-2" / "last.pt").is_file()
    assert (here / "runs" / "tiny" / "last.pt").read_bytes() == b""


def test_a_named_folder_with_a_run_is_not_started_over(cli: Cli, config: Path, here: Path, toy_run: Path) -> None:
    why = "holds a run already (last.pt, previous.pt, best.pt); go on with --resume auto"
    assert_explained(cli("train", config, "--out", toy_run), why, here)


@pytest.mark.parametrize("resume", ["auto", "runs/tiny/last.pt"])
def test_resume_goes_on_in_the_folder(resume: str, cli: Cli, config: Path, here: Path, toy_run: Path) -> None:
    shutil.copytree(toy_run, here / "runs" / "tiny")
    assert cli("train", config, "train.epochs=3", "--resume", resume).status == 0
    lines = (here / "runs" / "tiny" / "metrics.csv").read_text().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["epoch", "1", "2", "3"]


def test_resume_auto_takes_the_newest_run_of_the_config(cli: Cli, config: Path, here: Path, toy_run: Path) -> None:
    """The second run of a config lies in NAME-2; auto went on with the first one."""
    for name, stamp in (("tiny", 1000), ("tiny-2", 3000), ("tiny-3", 2000), ("tinier-4", 4000)):
        shutil.copytree(toy_run, here / "runs" / name)
        os.utime(here / "runs" / name / "last.pt", (stamp, stamp))
    assert cli("train", config, "train.epochs=3", "--resume", "auto").status == 0
    epochs = {path.parent.name: len(path.read_text().splitlines()) - 1 for path in here.glob("runs/*/metrics.csv")}
    assert epochs == {"tiny": 2, "tiny-2": 3, "tiny-3": 2, "tinier-4": 2}


def test_resume_auto_takes_the_checkpoint_before_one_that_is_missing(
    cli: Cli, config: Path, here: Path, toy_run: Path
) -> None:
    shutil.copytree(toy_run, here / "runs" / "tiny")
    (here / "runs" / "tiny" / "last.pt").unlink()
    answer = cli("train", config, "train.epochs=3", "--resume", "auto")
    assert answer.status == 0
    assert "last.pt: no such file\ngoing on from the one before it, runs/tiny/previous.pt" in answer.out
    assert not (here / "runs" / "tiny-2").exists()


def test_resume_auto_leaves_a_run_alone_that_nothing_can_go_on_from(here: Path, toy_run: Path) -> None:
    (here / "runs" / "tiny").mkdir(parents=True)
    shutil.copy(toy_run / "best.pt", here / "runs" / "tiny")
    assert _run_folder("tiny", None, "auto") == (Path("runs/tiny-2"), None)


def test_who_reads_may_go_while_the_work_goes_on() -> None:
    """A closed terminal ended training in a traceback before it had saved."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        console = Console(file=_Lasting(stream))  # type: ignore[arg-type]
        for _ in range(2):
            console.print("one more epoch")
            console.file.flush()


def test_resume_auto_starts_where_nothing_is(cli: Cli, config: Path, here: Path) -> None:
    assert cli("train", config, "train.epochs=1", "--resume", "auto", "--out", "new").status == 0
    assert (here / "new" / "last.pt").is_file()


def test_overfit_is_passed_on(cli: Cli, config: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mnet_det.engine import overfit, train

    monkeypatch.setattr(overfit, "OVERFIT_EPOCHS", 4)
    monkeypatch.setattr(train, "OVERFIT_STEPS", 1)
    answer = cli("train", config, "--overfit", "1", "--out", "run")
    assert answer.status == 0, answer.err
    assert "1 images, " in answer.out


def test_a_run_that_torchrun_starts_again_keeps_its_folder(here: Path) -> None:
    """It took the newest run of that name, which may be another's, or began a new one where another machine failed."""
    from torch.distributed import HashStore

    from mnet_det.cli import _chosen_run
    from mnet_det.engine.distributed import World

    def save(folder: str) -> Path:
        last = Path("runs") / folder / "last.pt"
        last.parent.mkdir(parents=True)
        last.touch()
        return last

    world = World(store=HashStore())
    save("ssd")
    assert _chosen_run(world, "ssd", None, None) == (Path("runs/ssd-2"), None)
    assert _chosen_run(world, "ssd", None, None) == (Path("runs/ssd-2"), None)  # it died before it saved
    ours = save("ssd-2")
    save("ssd-3")
    assert _chosen_run(world, "ssd", None, None) == (Path("runs/ssd-2"), ours)
    world = World(store=HashStore())
    theirs, new = Path("runs/ssd/last.pt"), Path("new")
    assert _chosen_run(world, "ssd", new, str(theirs)) == (new, theirs)
    assert _chosen_run(world, "ssd", new, str(theirs)) == (new, theirs)
    world = World(store=HashStore())
    for _ in range(2):  # refused at first, the folder was taken for its own by the next
        with pytest.raises(ConfigError, match="holds a run already"):
            _chosen_run(world, "ssd", Path("runs/ssd"), None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.alhpa=0.5"], "model.alhpa: no such setting; did you mean 'alpha'?"),
        (["train.epochs=many"], "train.epochs"),
        ([f"train.seed={2**63}"], f"train.seed: got {2**63}: "),
        (["--resume", "."], ".: a folder; a run goes on from its last.pt"),
        (["data.root=gone"], "no such folder of images"),
        (["data.train_annotations=gone.json"], "gone.json: no such file"),
        (["model.init=gone.pt"], "gone.pt: no such file"),
        (["--resume", "gone.pt"], "gone.pt: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_explains_what_is_wrong_and_writes_nothing(
    words: list[str], message: str, cli: Cli, config: Path, here: Path
) -> None:
    assert_explained(cli("train", config, *words), message, here)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not COCO JSON; expected an object with images, annotations and categories"),
        ('{"images": []}', "not COCO JSON; expected a list of annotations, found nothing"),
    ],
)
def test_train_explains_what_is_no_coco_json(content: str, message: str, cli: Cli, config: Path, here: Path) -> None:
    path = here.parent / "bad.json"
    path.write_text(content)
    assert_explained(cli("train", config, f"data.train_annotations={path}"), message, here)


def test_check_never_writes_over_what_it_reads(cli: Cli, annotations: Path, toy: Path, here: Path) -> None:
    """`--json` of the annotations' own name replaced them, and the exit status was 0."""
    path = here / "mine.json"
    path.write_bytes(annotations.read_bytes())
    answer = cli("check", path, "--images", toy / "val2017", "--json", path)
    assert (answer.status, answer.err.strip()) == (
        1,
        f"error: {path}: is read too, or gets another output; choose another name",
    )
    assert path.read_bytes() == annotations.read_bytes()


def test_eval_scores_a_model_on_some_classes_alone(
    cli: Cli, toy_run: Path, toy: Path, annotations: Path, here: Path
) -> None:
    """A run with data.classes could not be scored on its own validation file by `eval`."""
    words = [
        "eval",
        toy_run / "best.pt",
        "--images",
        toy / "val2017",
        "--annotations",
        annotations,
        "--runtime",
        "torch",
    ]
    assert cli(*words, "--classes", "ring,disc", "--json", here / "few.json").status == 0
    assert set(read(here / "few.json")["per_class"]) == {"disc", "ring"}


def test_train_explains_classes_that_differ(cli: Cli, config: Path, here: Path, annotations: Path) -> None:
    content = read(annotations)
    content["categories"].append({"id": 99, "name": "unicorn"})
    content["annotations"][0]["category_id"] = 99
    path = here.parent / "more.json"
    path.write_text(json.dumps(content))
    answer = cli("train", config, f"data.val_annotations={path}")
    assert_explained(answer, "the class 'unicorn' is not among the 6 of the training data", here)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.alpha=0.2"], "was trained with model.alpha=0.1 (now 0.2); resume with its own settings"),
        (
            ["data.classes=[disc,ring]"],
            "was trained on 6 classes (disc, ring, square, …), the data have 2 (disc, ring)",
        ),
    ],
    ids=["alpha", "classes"],
)
def test_resume_explains_what_does_not_fit(
    words: list[str], message: str, cli: Cli, config: Path, here: Path, toy_run: Path
) -> None:
    resume = shutil.copytree(toy_run, here.parent / "run") / "last.pt"
    assert_explained(cli("train", config, "train.epochs=3", *words, "--resume", resume), message, here)


def test_resume_explains_what_is_no_checkpoint(cli: Cli, config: Path, here: Path) -> None:
    path = here.parent / "text.pt"
    path.write_text("hello")
    assert_explained(cli("train", config, "--resume", path), "not a checkpoint that can be read", here)


# eval


@pytest.mark.shared
def test_eval_of_a_results_file_gives_the_published_numbers(cli: Cli, shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "cocoeval_check"
    results = folder / "instances_val2014_fakebbox100_results.json"
    words = ["--annotations", folder / "instances_val2014_100.json", "--json", tmp_path / "scores.json"]
    answer = cli("eval", "--detections", results, *words)
    assert answer.status == 0, answer.err
    published = [0.505, 0.697, 0.573, 0.586, 0.519, 0.501, 0.387, 0.594, 0.595, 0.640, 0.566, 0.564]
    content = read(tmp_path / "scores.json")
    assert [round(content[name], 3) for name in NUMBERS] == published
    assert (content["images"], content["runtime"]) == (100, None)
    rows = {
        cells[1].strip(): cells[2].strip() for line in answer.out.splitlines() if len(cells := line.split("│")) == 4
    }
    assert [rows[name] for name in NUMBERS] == [f"{value:.3f}" for value in published]
    assert rows["person"] == f"{content['per_class']['person']:.3f}"


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "torch"])
def test_eval_reports_what_pycocotools_makes_of_its_saved_detections(
    runtime: str, cli: Cli, toy: Path, toy_run: Path, toy_model: Path, annotations: Path, tmp_path: Path
) -> None:
    model = toy_run / "best.pt" if runtime == "torch" else toy_model
    words = ["--images", toy / "val2017", "--annotations", annotations, "--runtime", runtime]
    saved, scores = tmp_path / "detections.json", tmp_path / "scores.json"
    answer = cli("eval", model, *words, "--save-detections", saved, "--json", scores)
    assert answer.status == 0, answer.err
    content = read(scores)
    assert (content["runtime"], content["images"]) == (runtime, 4)
    judge = COCO(str(annotations))
    alone = COCOeval(judge, judge.loadRes(str(saved)), "bbox")
    alone.evaluate()
    alone.accumulate()
    alone.summarize()
    assert [-1 if content[name] is None else content[name] for name in NUMBERS] == alone.stats.tolist()
    assert {result["category_id"] for result in read(saved)} <= {3, 7, 11, 18, 24, 40}
    # And so does `eval` itself, of the saved file.
    assert cli("eval", "--detections", saved, "--annotations", annotations, "--json", scores).status == 0
    assert read(scores) == content | {"runtime": None}


def test_eval_without_detections_gives_0_and_a_hint(cli: Cli, annotations: Path, tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    words = ["--annotations", annotations, "--json", tmp_path / "scores.json"]
    answer = cli("eval", "--detections", tmp_path / "none.json", *words)
    assert answer.status == 0
    assert read(tmp_path / "scores.json")["AP"] == 0
    assert "no detections at all, so AP is 0: is the model trained?" in answer.out


def test_eval_never_prints_minus_one(cli: Cli, annotations: Path, tmp_path: Path) -> None:
    content = read(annotations)
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 3 and a["area"] > 96**2]
    assert content["annotations"]
    (tmp_path / "large.json").write_text(json.dumps(content))
    found = [
        {"image_id": a["image_id"], "category_id": 3, "bbox": a["bbox"], "score": 1.0} for a in content["annotations"]
    ]
    (tmp_path / "found.json").write_text(json.dumps(found))
    words = ["--annotations", tmp_path / "large.json", "--json", tmp_path / "scores.json"]
    answer = cli("eval", "--detections", tmp_path / "found.json", *words)
    scores = read(tmp_path / "scores.json")
    assert scores["AP"] == pytest.approx(1)
    assert scores["AP_small"] is scores["AR_small"] is scores["per_class"]["ring"] is None
    assert "n/a" in answer.out
    assert "-1" not in answer.out


def test_eval_refuses_data_with_classes_the_model_lacks(
    cli: Cli, here: Path, toy: Path, toy_model: Path, annotations: Path
) -> None:
    content = read(annotations)
    content["categories"].append({"id": 99, "name": "unicorn"})
    content["annotations"][0]["category_id"] = 99
    path = here.parent / "more.json"
    path.write_text(json.dumps(content))
    words = ["--images", toy / "val2017", "--annotations", path, "--json", "scores.json", "--runtime", "openvino"]
    answer = cli("eval", toy_model, *words)
    assert_explained(answer, "the model has 6 classes, the data 7: the model does not know 1 of them (unicorn)", here)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "--images", "gone", "--annotations", "ANNOTATIONS"], "gone: no such folder of images"),
        (["MODEL", "--images", "IMAGES", "--annotations", "gone.json"], "gone.json: no such file"),
        (["MODEL", "--images", "IMAGES", "--annotations", "ANNOTATIONS", "--runtime", "x"], "runtime: got 'x'"),
        (["gone.pt", "--images", "IMAGES", "--annotations", "ANNOTATIONS"], "gone.pt: no such model file"),
        (["a.h5", "--images", "IMAGES", "--annotations", "ANNOTATIONS"], "ImageNet weights, not a detector"),
        (["--detections", "gone.json", "--annotations", "ANNOTATIONS"], "gone.json: no such file"),
        (["--detections", "ANNOTATIONS", "--annotations", "ANNOTATIONS"], "not COCO results; expected a list of them"),
    ],
)
def test_eval_explains_what_is_wrong(
    words: list[str], message: str, cli: Cli, here: Path, toy: Path, toy_model: Path, annotations: Path
) -> None:
    places = {
        "MODEL": toy_model,
        "ANNOTATIONS": annotations,
        "IMAGES": toy / "val2017",
    }
    answer = cli("eval", *(places.get(word, word) for word in words), "--save-detections", "d.json")
    assert_explained(answer, message, here)


# predict, demo, export, bench


def test_predict_writes_pictures_and_coco_results(cli: Cli, toy: Path, toy_model: Path, tmp_path: Path) -> None:
    words = [toy / "val2017", "--out", tmp_path / "found", "--json", tmp_path / "found.json", "--score", "0.01"]
    answer = cli("predict", toy_model, *words)
    assert answer.status == 0, answer.err
    names = sorted(path.name for path in (toy / "val2017").iterdir())
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == names
    results = read(tmp_path / "found.json")
    assert {result["image_id"] for result in results} == set(names)
    assert all(result.keys() == {"image_id", "category_id", "bbox", "score"} for result in results)
    assert all(result["score"] >= 0.01 and len(result["bbox"]) == 4 for result in results)
    assert {result["category_id"] for result in results} <= {3, 7, 11, 18, 24, 40}
    counts = [
        f"{tmp_path / 'found' / name}: {sum(r['image_id'] == name for r in results)} detections" for name in names
    ]
    assert answer.out.splitlines() == counts


def test_demo_records_the_clip_frame_by_frame_and_counts_what_it_saw(
    cli: Cli, toy: Path, toy_model: Path, tmp_path: Path
) -> None:
    recorded, stats = tmp_path / "out.mp4", tmp_path / "stats.json"
    words = ["--screen", "none", "--record", recorded, "--stats", stats, "--score", "0.1", "--runtime", "openvino"]
    answer = cli("demo", toy / "clip.mp4", "--model", toy_model, *words)
    assert answer.status == 0, answer.err
    content = read(stats)
    assert {"frames", "read", "dropped", "fps", "first_frame_s", "detections"} <= content.keys()
    for key in ("network_ms", "end_to_end_ms", "lag_ms"):
        assert content[key].keys() >= {"p50", "p95"}
    assert (content["frames"], content["read"], content["dropped"]) == (180, 180, 0)
    assert set(content["detections"]) <= {"disc", "ring", "square", "triangle", "star", "cross"}
    assert f"180 frames shown, 0 dropped, {content['fps']:.1f} a second on openvino" in answer.out
    source, copy = cv2.VideoCapture(str(toy / "clip.mp4")), cv2.VideoCapture(str(recorded))
    for what in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT):
        assert copy.get(what) == pytest.approx(source.get(what))


@pytest.fixture
def scored_model(toy_model: Path, tmp_path: Path) -> Path:
    """The toy model with scores of its own: so low for discs and rings that they are found everywhere, 1 for others."""
    path = tmp_path / "scored.onnx"
    model = onnx.load(toy_model)
    (entry,) = (entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = json.dumps(json.loads(entry.value) | {"class_scores": [0.001, 0.001, 1, 1, 1, 1]})
    onnx.save(model, path)
    return path


def test_predict_and_demo_show_each_class_from_its_own_score_on_unless_one_is_given(
    cli: Cli, toy: Path, scored_model: Path, tmp_path: Path
) -> None:
    found, stats = tmp_path / "found.json", tmp_path / "stats.json"
    for given, categories in ([], {3, 7}), (["--score", "0.001"], {3, 7, 11, 18, 24, 40}):
        words = ["--out", tmp_path / "found", "--json", found, "--runtime", "openvino", *given]
        answer = cli("predict", scored_model, toy / "val2017", *words)
        assert answer.status == 0
        assert {result["category_id"] for result in read(found)} == categories
        said = "shown by class, from the score of its best F1 on, 0.00 to 1.00; --score sets one for all"
        assert (said in answer.err) == (not given)
    for given, names in ([], {"disc", "ring"}), (["--score", "1"], set()):
        words = ["--screen", "none", "--frames", "3", "--stats", stats, "--runtime", "openvino", *given]
        assert cli("demo", toy / "clip.mp4", "--model", scored_model, *words).status == 0
        assert read(stats)["detections"].keys() == names


def test_demo_of_a_sweep_runs_its_finished_networks(
    cli: Cli, toy: Path, toy_run: Path, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "sweep"
    runs = [
        {
            "name": f"ssd-mobilenet_v1-alpha{alpha:g}-rho1-seed{seed}-1f3a9c",
            "key": f"{alpha} {seed}",
            "point": {"head": "ssd", "backbone": "mobilenet_v1", "alpha": alpha, "rho": 1.0},
        }
        for alpha in (0.1, 0.2)
        for seed in (0, 1)
    ]
    for run in runs[:3]:
        folder = sweep / str(run["name"])
        folder.mkdir(parents=True)
        shutil.copy(toy_run / "best.pt", folder)
        (folder / "measured.json").write_text(json.dumps({"key": run["key"]}))
    (sweep / "sweep.json").write_text(json.dumps({"format": 1, "runs": runs}))
    converted: list[str] = []

    def convert(path: Path, cached: Path, rho: float | None) -> None:
        converted.append(path.parent.name)
        shutil.copy(toy_model, cached)

    monkeypatch.setattr(cache, "_convert", convert)
    monkeypatch.setenv("MNET_DET_CACHE", str(tmp_path / "cache"))
    words = ["--screen", "none", "--frames", "2", "--runtime", "openvino"]
    answer = cli("demo", toy / "clip.mp4", "--model", sweep, *words)
    assert answer.status == 0, answer.err
    assert converted == [runs[0]["name"]]  # the others' content is the same, so one export serves them
    assert "of this sweep's" not in answer.out + answer.err  # both networks are finished
    shutil.rmtree(sweep / str(runs[2]["name"]))
    answer = cli("demo", toy / "clip.mp4", "--model", sweep, *words)
    assert f"{sweep}: 1 of this sweep's 2 networks are finished" in answer.out


def test_demo_stops_after_the_frames_asked_for(cli: Cli, toy: Path, toy_model: Path, tmp_path: Path) -> None:
    words = ["--screen", "none", "--frames", "5", "--stats", tmp_path / "stats.json", "--runtime", "onnxruntime"]
    answer = cli("demo", toy / "clip.mp4", "--model", toy_model, *words, "--threads", "1")
    assert "5 frames shown" in answer.out
    assert "on onnxruntime" in answer.out
    assert read(tmp_path / "stats.json")["frames"] == 5


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process in other ways")
def test_demo_ends_well_by_kill_however_often_and_whoever_listens(toy: Path, toy_model: Path, tmp_path: Path) -> None:
    """A second signal broke what the first had begun, nohup did not hold, and a reader who had gone ended the run."""
    files = ["--record", str(tmp_path / "out.mp4"), "--stats", str(tmp_path / "stats.json")]
    words = ["--model", str(toy_model), "--runtime", "openvino", "--screen", "browser", "--port", "0", *files]
    demo = subprocess.Popen(
        [sys.executable, "-m", "mnet_det", "demo", str(toy / "clip.mp4"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # as nohup does
    )
    assert demo.stdout is not None
    with demo:
        assert demo.stdout.readline().startswith("watch at http://127.0.0.1:")
        demo.stdout.close()
        while not list(tmp_path.glob(".out*")):
            assert demo.poll() is None
            time.sleep(0.01)
        demo.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert demo.poll() is None
        demo.send_signal(signal.SIGTERM)
        demo.send_signal(signal.SIGTERM)
        _, complaint = demo.communicate(timeout=30)
    assert (demo.returncode, complaint) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "stats.json"]
    assert 0 < read(tmp_path / "stats.json")["frames"] < 180
    assert cv2.VideoCapture(str(tmp_path / "out.mp4")).read()[0]


@pytest.mark.parametrize(
    "words",
    [["--record", "CLIP"], ["--stats", "MODEL"], ["--record", "x.mp4", "--stats", "x.mp4"]],
    ids=" ".join,
)
def test_demo_writes_over_nothing_that_it_reads_or_writes(
    words: list[str], cli: Cli, here: Path, toy: Path, toy_model: Path, tmp_path: Path
) -> None:
    places = {"CLIP": Path(shutil.copy(toy / "clip.mp4", tmp_path)), "MODEL": Path(shutil.copy(toy_model, tmp_path))}
    before = {path: path.read_bytes() for path in places.values()}
    answer = cli("demo", places["CLIP"], "--model", places["MODEL"], *(places.get(word, word) for word in words))
    assert_explained(answer, "is read too, or gets another output; choose another name", here)
    assert {path: path.read_bytes() for path in places.values()} == before


def test_a_camera_that_hangs_does_not_crash_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    leave_if_capture_hangs(1)
    assert ends == []
    release = threading.Event()
    hanging = threading.Thread(target=release.wait, name=f"{THREAD_NAME} of camera 0", daemon=True)
    hanging.start()
    leave_if_capture_hangs(1)
    release.set()
    hanging.join()
    assert ends == [1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone.mp4", "--model", "MODEL"], "gone.mp4"),
        (["99999999999", "--model", "MODEL"], "99999999999: no such file"),
        (["ftp://user:secret@host/" + 300 * "a", "--model", "MODEL"], "expected an address that begins with"),
        (["CLIP", "--model", "gone.onnx"], "gone.onnx: no such model file"),
        (["gone.mp4", "--screen", "cinema"], "cinema"),  # before anything is opened
        (["gone.mp4", "--record", "clip.gif"], "clip.gif: not a kind of video"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_demo_explains_what_is_wrong(
    words: list[str], message: str, cli: Cli, here: Path, toy: Path, toy_model: Path
) -> None:
    places = {"CLIP": toy / "clip.mp4", "MODEL": toy_model}
    assert_explained(cli("demo", *(places.get(word, word) for word in words), "--stats", "s.json"), message, here)


@pytest.mark.parametrize("words", [["demo", "CLIP"], ["predict", "PHOTOS", "--out", "found"]], ids=["demo", "predict"])
def test_the_published_detector_is_taken_where_no_model_is_named(
    words: list[str], cli: Cli, here: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pull(entry: catalogue.Entry, **_: object) -> Path:
        raise DownloadError(f"no network for {entry.name}")

    monkeypatch.setattr(catalogue, "pull", pull)
    places = {"CLIP": toy / "clip.mp4", "PHOTOS": toy / "val2017"}
    answer = cli(*(places.get(word, word) for word in words))
    assert_explained(answer, "no network for ssd_mobilenet_v1_0.75_coco", here)


def test_export_writes_beside_the_checkpoint_and_says_how_it_compares(
    cli: Cli, toy_run: Path, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnet_det.engine import export

    monkeypatch.setattr(export, "write_onnx", lambda d, m, path, *, batch: shutil.copyfile(toy_model, path))
    shutil.copyfile(toy_run / "best.pt", tmp_path / "best.pt")
    answer = cli("export", tmp_path / "best.pt", "--format", "onnx")
    assert answer.status == 0, answer.err
    assert (tmp_path / "best.onnx").is_file()
    assert answer.out.startswith("compared with torch on 4 images: ")
    assert answer.out.endswith(f"wrote {tmp_path / 'best.onnx'}\n")


def test_an_unknown_format_is_answered_with_the_three_that_are_known(cli: Cli) -> None:
    answer = cli("export", "best.pt", "--format", "int8")
    assert answer.status == 2
    assert all(name in answer.err for name in ("--format int8", "onnx", "openvino", "openvino-int8"))


@pytest.mark.parametrize(("after", "warns"), [(0.191, False), (0.189, True)])
def test_int8_that_costs_more_than_a_hundredth_of_ap_is_kept_with_a_warning(
    after: float, warns: bool, cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnet_det.engine import quantize
    from mnet_det.engine.export import Parity
    from mnet_det.runtime.metadata import Quantization

    asked: dict[str, Any] = {}

    def export_int8(path: Path, out: Path, **options: Any) -> quantize.Int8Export:
        asked.update(options, path=path, out=out)
        quantization = Quantization(calibration_images=300, scored_images=50, ap_float32=0.2, ap_int8=after)
        return quantize.Int8Export(Parity(8, 30, 0.1, 1e-4), quantization)

    monkeypatch.setattr(quantize, "export_int8", export_int8)
    words = ["--calibration", "photos", "--images", "val", "--annotations", "val.json", "--batch", "4"]
    (here / "best.pt").touch()
    answer = cli("export", "best.pt", "--format", "openvino-int8", *words)
    assert answer.status == 0
    compared, *lines = answer.out.splitlines()
    assert compared.startswith("compared with torch on 8 images: ")
    assert lines == [
        f"int8, calibrated on 300 images: AP 0.200 before, {after} after, on 50 images",
        "wrote best-int8.xml",
    ]
    assert answer.err == ("warning: int8 costs 0.011 AP, more than 0.01\n" if warns else "")
    assert (asked["path"], asked["out"]) == (Path("best.pt"), Path("best-int8.xml"))
    given = {name: asked[name] for name in ("calibration", "images", "annotations", "batch")}
    assert given == {"calibration": Path("photos"), "images": Path("val"), "annotations": Path("val.json"), "batch": 4}


def test_export_that_fails_its_comparison_is_exit_status_1(
    cli: Cli, toy_run: Path, toy_model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mnet_det.engine import export

    monkeypatch.setattr(export, "write_onnx", lambda d, m, path, *, batch: shutil.copyfile(toy_model, path))
    monkeypatch.setattr(export, "compare", lambda *_, **__: export.Parity(8, 30, 12.0, 0.5))
    answer = cli("export", toy_run / "best.pt", "--format", "onnx", "--out", "model.onnx")
    assert_explained(answer, "not kept, the exported model differs from torch: 12 px (at most 0.5)", here)


def test_bench_writes_the_promised_keys(cli: Cli, toy_model: Path, tmp_path: Path) -> None:
    words = ["--runtime", "openvino,onnxruntime", "--threads", "1", "--rounds", "1"]
    words += ["--json", tmp_path / "bench.json", "--picture", tmp_path / "bench.png"]
    answer = cli("bench", toy_model, *words)
    assert answer.status == 0, answer.err
    content = read(tmp_path / "bench.json")
    assert content["machine"]["cpu"] == doctor.cpu_name()
    assert content["machine"]["cpu"] in answer.out
    assert [row["runtime"] for row in content["rows"]] == ["openvino", "onnxruntime"]
    for row in content["rows"]:
        assert row["model"].startswith(str(toy_model))
        assert (row["alpha"], row["input_hw"], row["threads"]) == (0.1, [64, 64], 1)
        for stage in ("preprocess_ms", "network_ms", "postprocess_ms", "total_ms"):
            assert 0 < row[stage]["p50"] <= row[stage]["p95"]
        assert "mult_adds" not in row  # an exported file does not say them
    product = content["matrix_product"]
    assert (product["size"], product["threads"]) == (1024, 1)
    assert product["g_mult_adds_per_s"] == pytest.approx(1024**3 / product["ms"]["p50"] / 1e6)
    assert product["library"] in answer.out
    assert (content["images"], content["frame_hw"], content["score"]) == ("8 drawn scenes", [480, 640], 0.5)
    assert cv2.imread(str(tmp_path / "bench.png")).shape[1] == 1200


def test_bench_of_a_checkpoint_on_a_folder_of_images_says_what_part_of_the_machine_is_used(
    cli: Cli, toy: Path, toy_run: Path, tmp_path: Path
) -> None:
    words = ["--images", toy / "val2017", "--frame", "96x64", "--score", "0.01", "--runtime", "torch", "--rounds", "1"]
    answer = cli("bench", toy_run / "best.pt", *words, "--threads", "1", "--json", tmp_path / "bench.json")
    assert answer.status == 0, answer.err
    content = read(tmp_path / "bench.json")
    assert content["images"] == f"4 images of {toy / 'val2017'}"
    assert (content["frame_hw"], content["score"]) == ([64, 96], 0.01)
    (row,) = content["rows"]
    assert row["detections"] > 0
    rates = row["g_mult_adds_per_s"], content["matrix_product"]["g_mult_adds_per_s"]
    assert row["fraction_of_matrix_product"] == pytest.approx(rates[0] / rates[1])
    assert row["g_mult_adds_per_s"] == pytest.approx(row["mult_adds"] / row["network_ms"]["p50"] / 1e6)


@pytest.mark.parametrize("frame", ["640", "640x", "640x-3", "32x640", "axb"])
def test_bench_refuses_what_is_no_size_of_a_frame(frame: str, cli: Cli, toy_model: Path) -> None:
    answer = cli("bench", toy_model, "--frame", frame)
    assert answer.status == 2
    assert f"--frame {frame}: expected width and height, at least 64 each" in " ".join(answer.err.split())


def test_bench_refuses_another_picture_than_png_before_measuring(cli: Cli, toy_model: Path, here: Path) -> None:
    answer = cli("bench", toy_model, "--picture", "bench.docx")
    assert_explained(answer, "bench.docx: expected a name that ends in .png", here)


def test_bench_says_before_measuring_that_matplotlib_is_missing(
    cli: Cli, toy_model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "mnet_det.report.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    answer = cli("bench", toy_model, "--picture", "bench.png")
    assert_explained(answer, "this needs the package matplotlib, which is not installed: ", here)


@pytest.mark.slow
def test_bench_measures_a_config_with_random_weights_and_says_what_it_costs(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(
        "model: {head: faster_rcnn, fpn: true, alpha: 0.1, base_hw: [64, 64], proposals: 5}"
    )
    words = ["--backbone", "mobilenet_v1", "--runtime", "openvino", "--threads", "1", "--rounds", "1"]
    words += ["--json", tmp_path / "bench.json"]
    answer = cli("bench", tmp_path / "tiny.yaml", "model.base_hw=[96,96]", *words)
    assert answer.status == 0, answer.err
    assert "G multiply-adds" in answer.out
    (row,) = read(tmp_path / "bench.json")["rows"]
    assert (row["model"], row["input_hw"]) == ("tiny on mobilenet_v1 (random weights)", [96, 96])
    assert row["params"] > 13e6  # the fully connected layers of the second stage
    assert row["mult_adds"] > 5 * 13e6  # run five times
    assert row["fraction_of_matrix_product"] > 0


def test_bench_takes_settings_for_configs_only(cli: Cli, toy_model: Path, tmp_path: Path) -> None:
    answer = cli("bench", toy_model, "model.alpha=0.5")
    assert answer.status == 2
    assert "settings and --backbone are for config files" in answer.err


# doctor, toy, browse


@pytest.mark.parametrize(("found", "status"), [("ok", 0), ("missing", 0), ("fault", 1)])
def test_doctor_fails_on_a_fault_alone(found: Any, status: int, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda *, cache: [Finding("torch", found, "2.9", "mend it")])
    answer = cli("doctor")
    assert answer.status == status
    assert "torch" in answer.out


def test_toy_draws_a_data_set_and_never_over_another(cli: Cli, here: Path) -> None:
    answer = cli("toy", "drawn", "--train", "2", "--val", "1")
    assert answer.status == 0
    assert answer.out == "drew 2 training and 1 validation images and clip.mp4 into drawn\n"
    assert len(read(here / "drawn" / "annotations" / "instances_train2017.json")["images"]) == 2
    again = cli("toy", "drawn")
    assert again.status == 1
    assert again.err.startswith("error: ")
    assert "holds something already" in again.err


def test_browse_writes_a_picture(cli: Cli, config: Path, here: Path) -> None:
    answer = cli("browse", config, "--out", "samples.png")
    assert answer.out == "wrote samples.png\n"
    # 12 pictures of 64 pixels, each shown as 4, with 4 black ones between
    assert cv2.imread(str(here / "samples.png")).shape == (3 * 256 + 2 * 4, 4 * 256 + 3 * 4, 3)


def test_browse_explains_a_format_that_is_none(cli: Cli, config: Path, here: Path) -> None:
    assert_explained(cli("browse", config, "--out", "samples.xyz"), "cannot write this kind of image", here)


# Published weights


@pytest.mark.parametrize("verb", ["list", "pull", "import"])
def test_every_weights_verb_has_help_with_an_example(verb: str, cli: Cli) -> None:
    answer = cli("weights", verb, "--help")
    assert answer.status == 0
    assert f"Example: mnet-det weights {verb}" in answer.out


def test_weights_list_tells_all_that_is_known(cli: Cli, tmp_path: Path) -> None:
    answer = cli("weights", "list", "--json", tmp_path / "weights.json")
    entries = read(tmp_path / "weights.json")
    assert answer.status == 0
    for entry in entries:
        assert entry["name"] in answer.out
        assert entry["url"] in answer.out
        assert (entry["sha256"] or "not known") in answer.out


def test_weights_pull_takes_a_file_fetched_by_hand_and_verifies_it(
    cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNET_DET_CACHE", str(here.parent / "cache"))
    path = here.parent / "fetched.tflite"
    path.write_bytes(b"\0\0\0\0TFL3 not the published one")
    answer = cli("weights", "pull", "mobilenet_v1_0.5_160_quant", "--from", path)
    assert_explained(answer, "3cc6d2ca460abd2e0f699a6d0d2550c6b61c6e3b0e27a3616e384ea74cb86f43", here)
    assert not list((here.parent / "cache").rglob("*.tflite"))


def test_weights_import_makes_a_checkpoint_that_training_starts_from(cli: Cli, config: Path, here: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("mobilenetv1_100").state_dict(), here / "model.safetensors")
    answer = cli("weights", "import", "model.safetensors", "--out", "imagenet.pt")
    assert answer.status == 0, answer
    assert answer.out == (
        "wrote imagenet.pt: classifier, mobilenet_v1, alpha 1, input 224x224, 1000 classes; padding symmetric, relu6, "
        "pixels (x - 127.5) / 127.5\n"
    )
    assert "not a detector" in cli("export", "imagenet.pt", "--format", "onnx").err
    words = ("model.init=imagenet.pt", "model.alpha=1", "model.base_hw=[32,32]", "train.epochs=1")
    answer = cli("train", config, *words, "--out", "run")
    assert answer.status == 0, answer
    assert "the weights need model.bn_eps=1e-05 (was 0.001)" in answer.out
    assert "imagenet.pt: 162 of 234 tensors loaded" in answer.out
    assert "batch norm" not in answer.out.split("tensors loaded")[1].split("\n")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pull", "mobilenet_v1_0.5_16_quant"], "did you mean mobilenet_v1_0.5_160_quant"),
        (["pull", "mobilenet_v1_0.5_160_quant", "--from", "gone.tflite"], "gone.tflite: no such file"),
        (["import", "gone.h5", "--out", "a.pt"], "gone.h5: no such weights file"),
        (["import", "README.md", "--out", "a.pt"], "README.md: neither a file nor the name of published weights"),
        (["import", "gone.h5", "--out", "a.onnx"], "a.onnx: expected a name that ends in .pt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_weights_explains_what_is_wrong(words: list[str], message: str, cli: Cli, here: Path) -> None:
    assert_explained(cli("weights", *words), message, here)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ssd_mobilenet_v1_0.75_coc", "PHOTOS"], "did you mean ssd_mobilenet_v1_0.75_coco"),
        (["gone", "PHOTOS"], "gone: neither a file nor the name of published weights"),
        (["PHOTOS", "gone.jpg"], "gone.jpg: no such file or folder"),
        (["mobilenet_v1_0.5_160_quant", "PHOTOS"], "an ImageNet classifier, not a detector"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_predict_looks_at_its_words_before_it_fetches_a_model(
    words: list[str], message: str, cli: Cli, here: Path, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "pull", lambda *_, **__: pytest.fail("it fetched a model"))
    answer = cli("predict", *(toy / "val2017" if word == "PHOTOS" else word for word in words), "--out", "found")
    assert_explained(answer, message, here)


def test_predict_takes_a_runs_folder_for_its_best_checkpoint_and_names_the_model(
    cli: Cli, toy: Path, toy_run: Path, tmp_path: Path
) -> None:
    """The folder counted as one of pictures, and the published detector looked at them without a word."""
    answer = cli("predict", toy_run, toy / "val2017", "--out", tmp_path / "found", "--runtime", "torch")
    assert answer.status == 0, answer.err
    assert "model toy" in answer.err
    assert len(list((tmp_path / "found").iterdir())) == 4
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").touch()
    answer = cli("predict", sweep, toy / "val2017", "--out", tmp_path / "found")
    assert (answer.status, "give the folder of one of its runs" in answer.err) == (1, True)


def test_predict_wants_images_after_a_model(cli: Cli, here: Path) -> None:
    answer = cli("predict", "ssd_mobilenet_v1_0.75_coco", "--out", "found")
    assert answer.status == 2
    assert "give image files or folders after" in answer.err
