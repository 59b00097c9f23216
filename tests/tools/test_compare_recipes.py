"""The tool that compares recipes, with a trainer that only writes what a training leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mnet_det.config import load_config
from mnet_det.errors import ConfigError
from tools import compare_recipes as module
from tools.compare_recipes import BASE, TEACHER, VARIANTS, Run, main, plan, read_result, table, train_all

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = CONFIGS / "finetune_ssd300_mobilenet_v1.yaml"
WORDS = ("train.epochs=4", "train.eval_every=2", "data.plain_epochs=1")
TRAINER = """
import sys, time
from pathlib import Path

settings, _, folder, _, auto = sys.argv[1:]
assert auto == "auto"
lines = Path(settings).read_text().splitlines()
config = dict(line.strip().split(": ", 1) for line in lines if ": " in line)  # no two sections share what is asked for
out = Path(folder)
out.mkdir(exist_ok=True)
with (out / "starts").open("a") as starts:
    starts.write("1")
if config["teacher"] != "null":
    assert Path(config["teacher"]).read_text() == "the teacher's"
if float(config["ema"]) == 0:
    print("before")
    sys.exit("error: no luck")
if config["freeze_blocks"] != "0":
    (out / "started").touch()
    time.sleep(60)
seed = int(config["seed"])
ap = 0.5 + 0.01 * seed + 0.1 * (config["class_loss"] == "focal") * (1 + seed)
rows = ["epoch,lr,AP,AP50", "1,0.1,,", f"2,0.1,{ap + 0.05},0.9", "3,0.1,,", f"4,0.1,{ap},0.8"]
(out / "metrics.csv").write_text("\\n".join(rows))
(out / "best.pt").write_text("the teacher's")
"""
"""Its AP is 0.50 with seed 0 and 0.51 with seed 1, and 0.10 and 0.20 higher with focal loss; it falls by 0.05 after its
second epoch. Without EMA it fails, and with frozen blocks it does not end."""


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER, encoding="utf-8")
    monkeypatch.setattr(module, "TRAINER", (sys.executable, "-S", str(script)))
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    return script


def planned(out: Path, *variants: str, seeds: tuple[int, ...] = (0,), words: tuple[str, ...] = WORDS) -> list[Run]:
    chosen = {name: VARIANTS[name] for name in variants}
    return plan(RECIPE, words, variants=chosen, seeds=seeds, teacher_words=["model.alpha=1.0"], out=out)


def trained(runs: list[Run], *, parallel: int = 2) -> tuple[dict[Run, str], list[str]]:
    said: list[str] = []
    return train_all(runs, parallel=parallel, threads=1, say=said.append), said


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_something_of_the_recipe(name: str, tmp_path: Path) -> None:
    *_, base, variant = planned(tmp_path, name)
    assert (base.variant, variant.variant) == (BASE, name)
    assert variant.config != base.config


def test_the_paper_era_variant_trains_as_its_config(tmp_path: Path) -> None:
    """But for the length, and for batch norm, whose averages are too slow for a small set."""
    config = load_config(CONFIGS / "ssd300_mobilenet_v1_rmsprop.yaml")
    variant = planned(tmp_path, "paper-era")[-1].config
    for key in ("optimizer", "lr", "lr_batch_size", "weight_decay", "schedule", "warmup_epochs", "clip_norm", "ema"):
        assert getattr(variant.train, key) == getattr(config.train, key), key
    for key in ("class_loss", "box_loss", "box_weight"):
        assert getattr(variant.model, key) == getattr(config.model, key), key
    assert variant.train.step_factor == 1
    assert config.train.step_epochs == (config.train.epochs,)


@pytest.mark.parametrize("name", ["ssd300_mobilenet_v1_strong", "ssdlite320_mobilenet_v1_strong"])
def test_the_strong_variant_has_what_the_strong_configs_have(name: str) -> None:
    strong = load_config(CONFIGS / f"{name}.yaml")
    assert load_config(CONFIGS / f"{name}.yaml", VARIANTS["strong"]) == strong


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_says_which_batch_its_rate_is_for(config: Path) -> None:
    train = load_config(config).train
    assert train.lr_batch_size == train.batch_size


def test_seeds_are_trained_one_after_the_other_and_the_teacher_first(tmp_path: Path) -> None:
    runs = planned(tmp_path, "focal", "distilled", seeds=(3, 4))
    names = [TEACHER, BASE, "focal", "distilled", BASE, "focal", "distilled"]
    assert [(run.variant, run.seed) for run in runs] == list(zip(names, [3, 3, 3, 3, 4, 4, 4], strict=True))
    teacher, _, focal, *_, distilled = runs
    assert teacher.config.model.alpha == 1.0
    assert distilled.config.train.teacher == (tmp_path / "teacher" / "seed3" / "best.pt").resolve()
    assert (focal.teacher, distilled.teacher) == (None, teacher)


def test_all_train_for_as_many_epochs(tmp_path: Path) -> None:
    (run,) = planned(tmp_path, words=(*WORDS, "train.patience=1"))
    assert run.config.train.patience is None


def test_a_variant_that_does_not_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"focal: .*faster_rcnn is trained with class_loss softmax"):
        planned(tmp_path, "focal", words=("model.head=faster_rcnn", "model.box_loss=smooth_l1"))


def test_the_table_pairs_seeds(trainer: Path, tmp_path: Path) -> None:
    runs = planned(tmp_path / "out", "focal", seeds=(0, 1))
    failed, said = trained(runs)
    assert not failed
    assert len(said) == 4
    assert said[-1].endswith("0 to go")
    header, _, base, focal = table(runs).splitlines()
    assert header.count("|") == base.count("|") == focal.count("|")
    # The standard deviation of two values is their distance / √2: base has 0.50 and 0.51, focal 0.60 and 0.71, which
    # differ by 0.1 and 0.2, so 0.01 / √2 = 0.007, 0.11 / √2 = 0.078, 0.1 / √2 = 0.071.
    ap, ap50, best = "0.505 ± 0.007", "0.800 ± 0.000", "0.555 ± 0.007"
    assert base == f"| base | {ap} |  | {ap50} | {best} |  | 0.900 ± 0.000 | 0.0 | 2 |"
    change = "+0.150 ± 0.071"
    assert focal == (
        f"| focal | 0.655 ± 0.078 | {change} | {ap50} | 0.705 ± 0.078 | {change} | 0.900 ± 0.000 | 0.0 | 2 |"
    )


def test_one_seed_has_no_spread(trainer: Path, tmp_path: Path) -> None:
    runs = planned(tmp_path / "out", "focal")
    trained(runs)
    assert table(runs).splitlines()[-1] == "| focal | 0.600 | +0.100 | 0.800 | 0.650 | +0.100 | 0.900 | 0.0 | 1 |"


def test_a_finished_run_is_not_repeated(trainer: Path, tmp_path: Path) -> None:
    trained(planned(tmp_path / "out", "focal"))
    more = planned(tmp_path / "out", "focal", "smooth-l1")
    _, said = trained(more)
    assert len(said) == 1
    assert [len((run.folder / "starts").read_text()) for run in more] == [1, 1, 1]


def test_a_run_that_lacks_epochs_goes_on_and_its_minutes_add_up(trainer: Path, tmp_path: Path) -> None:
    (run,) = planned(tmp_path / "out")
    trained([run])
    metrics = run.folder / "metrics.csv"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:3]))  # two epochs of four
    run.clock.write_text(json.dumps({"minutes": 7.0}))
    assert read_result(run) is None
    trained([run])
    result = read_result(run)
    assert result is not None
    assert result.minutes == pytest.approx(7.0, abs=0.5)
    assert result.minutes > 7.0
    assert len((run.folder / "starts").read_text()) == 2


def test_other_settings_do_not_pass_for_the_old_run(trainer: Path, tmp_path: Path) -> None:
    trained(planned(tmp_path / "out"))
    with pytest.raises(ConfigError, match=r"seed0: holds a run of other settings; choose another --out, or delete"):
        planned(tmp_path / "out", words=(*WORDS, "train.lr=0.1"))


def test_a_failure_is_reported_and_the_rest_goes_on(trainer: Path, tmp_path: Path) -> None:
    runs = planned(tmp_path / "out", "no-ema", "focal")
    failed, said = trained(runs, parallel=1)
    (run,) = failed
    assert run.variant == "no-ema"
    assert failed[run] == f"failed, error: no luck ({run.log})"
    assert said[1] == f"no-ema, seed 0: {failed[run]}; 1 to go"
    assert table(runs).splitlines()[3:] == [
        "| no-ema |  |  |  |  |  |  |  | 0 |",
        "| focal | 0.600 | +0.100 | 0.800 | 0.650 | +0.100 | 0.900 | 0.0 | 1 |",
    ]


def test_a_pupil_waits_for_its_teacher(trainer: Path, tmp_path: Path) -> None:
    runs = planned(tmp_path / "out", "distilled")
    failed, said = trained(runs, parallel=3)
    assert not failed
    order = [line.replace(":", ",").split(",")[0] for line in said if ": AP " in line]
    assert order.index("teacher") < order.index("distilled")


def test_a_pupil_of_a_teacher_that_failed_is_not_trained(trainer: Path, tmp_path: Path) -> None:
    chosen = {"distilled": VARIANTS["distilled"]}
    runs = plan(RECIPE, WORDS, variants=chosen, seeds=[0], teacher_words=["train.ema=0"], out=tmp_path / "out")
    failed, _ = trained(runs)
    assert {run.variant: reason.partition(",")[0] for run, reason in failed.items()} == {
        TEACHER: "failed",
        "distilled": "its teacher failed",
    }


def test_stopping_ends_what_runs(trainer: Path, tmp_path: Path) -> None:
    runs = planned(tmp_path / "out", "frozen-blocks")[1:]
    processes: list[subprocess.Popen[bytes]] = []
    start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen

    def remember(*words: object, **settings: object) -> subprocess.Popen[bytes]:
        processes.append(start(*words, **settings))
        return processes[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.subprocess, "Popen", remember)
        failed = train_all(
            runs, parallel=1, threads=1, say=print, stopped=lambda: (runs[0].folder / "started").exists()
        )
    assert not failed
    assert [process.poll() is None for process in processes] == [False]


@pytest.mark.skipif(os.name == "nt", reason="a console's Ctrl-C there cannot be sent to one process alone")
def test_ctrl_c_stops_and_says_how_to_go_on(trainer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    began = time.monotonic()

    def interrupt() -> None:
        while not (out / "frozen-blocks" / "seed0" / "started").exists() and time.monotonic() - began < 30:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=interrupt)
    user.start()
    with pytest.raises(SystemExit) as stopped:
        main([str(RECIPE), *WORDS, "--out", str(out), "--seeds", "0", "--variants", "frozen-blocks"])
    user.join()
    assert stopped.value.code == 130
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
    assert time.monotonic() - began < 30  # the run would have slept for a minute
    assert "| base | 0.500 |" in (out / "table.md").read_text(encoding="utf-8")


def test_the_page_holds_table_changes_failures_and_command(
    trainer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [str(RECIPE), *WORDS, "--out", str(out), "--seeds", "0", "--parallel", "2"]
    chosen = ["--variants", "distilled,no-ema", "--add", "own: model.class_loss=focal", "--teacher-words"]
    with pytest.raises(SystemExit, match="error: 1 of 5 runs failed; the same command tries them again"):
        main([*words, *chosen, "model.alpha=1.0"])
    page = (out / "table.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.endswith(page)
    names = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")]
    assert names == ["recipe", "---", "teacher", "base", "distilled", "no-ema", "own"]
    assert "after 4 epochs" in page
    assert "- teacher: `model.alpha=1.0`\n- distilled: `train.teacher=TEACHER`" in page
    assert "- own: `model.class_loss=focal`" in page
    assert "- no-ema, seed 0: failed, error: no luck" in page
    assert f"`python tools/compare_recipes.py {RECIPE} train.epochs=4" in page
    assert not list(out.glob(".*"))


def test_without_a_teacher_the_others_are_compared(trainer: Path, tmp_path: Path) -> None:
    names = module.parse([str(RECIPE), "--out", str(tmp_path)]).variants
    assert list(names) == [name for name in VARIANTS if name != "distilled"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--variants", "focal,mosaik"], "--variants mosaik: expected some of paper-era,"),
        (["--variants", "distilled"], "distilled needs --teacher-words"),
        (["--seeds", "0,0"], "got '0,0', expected whole numbers, each once, such as 0,1,2"),
        (["--seeds", "a"], "got 'a', expected whole numbers"),
        (["--parallel", "0"], "got '0', expected a whole number from 1 on"),
        (["--add", "base: train.ema=0"], "got 'base: train.ema=0', expected a name"),
        (["--add", "../x: train.ema=0"], "expected a name of letters, digits and -"),
        (["--add", "large"], "got 'large', expected a name"),
    ],
)
def test_a_word_that_means_nothing_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(RECIPE), "--out", str(tmp_path), *words])
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_mistake_in_the_settings_is_one_line_before_anything_trains(trainer: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: base: .*did you mean 'epochs'"):
        main([str(RECIPE), "train.epoch=4", "--out", str(tmp_path / "out"), "--variants", "focal"])
    assert not (tmp_path / "out").exists()
