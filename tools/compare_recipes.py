"""Train variants of a recipe against each other: several seeds each, and a table of what every change gains or costs.

    python tools/compare_recipes.py configs/finetune_ssd300_mobilenet_v1.yaml data.root=my_data train.epochs=12 \
        data.plain_epochs=3 --out runs/recipes --seeds 0,1,2 --parallel 2 \
        --teacher-words model.alpha=1.0 model.init=mobilenet_v1_1.0_224_quant

Each variant is the base (the config and the words after it) with one change; `VARIANTS` names them, `--variants`
chooses some, `--add "NAME: key=value …"` adds one's own. The teacher that `distilled` learns from is the base with
`--teacher-words`, trained first. Everything is trained by `mnet-det train`, several runs at a time, all for as many
epochs (`train.patience` is off). The same command again goes on where it was interrupted: finished runs are not
repeated, others go on from their last checkpoint, failed ones are tried again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mnet_det.config import Config, load_config
from mnet_det.errors import ConfigError, MnetDetError
from mnet_det.files import write_json, write_text
from mnet_det.interrupt import StopWish
from mnet_det.runtime.benchmark import machine

BASE, TEACHER = "base", "teacher"
TAUGHT = "train.teacher=TEACHER"
"""A variant's word that asks for the teacher; its weights take TEACHER's place."""
MIX = ("data.mosaic=0.5", "data.mixup=0.15")
VARIANTS: dict[str, tuple[str, ...]] = {
    # TensorFlow's ssd_mobilenet_v1_coco.config: the learning rate never falls, nothing is averaged nor clipped
    "paper-era": (
        *("train.optimizer=rmsprop", "train.lr=0.004", "train.lr_batch_size=24", "train.weight_decay=0.00004"),
        *("train.schedule=steps", "train.step_epochs=[1]", "train.step_factor=1", "train.warmup_epochs=0"),
        *("train.clip_norm=0", "train.ema=0", "model.class_loss=softmax", "model.box_loss=smooth_l1"),
        "model.box_weight=1",
    ),
    "smooth-l1": ("model.box_loss=smooth_l1", "model.box_weight=1"),
    "focal": ("model.class_loss=focal",),
    "quality-focal": ("model.class_loss=quality_focal",),
    "mosaic": MIX[:1],
    "mosaic-mixup": MIX,
    "no-ema": ("train.ema=0",),
    "slow-backbone": ("train.backbone_lr_factor=0.1",),
    "frozen-blocks": ("train.freeze_blocks=3",),
    "random-weights": ("model.init=null",),
    "distilled": (TAUGHT,),
    "strong": ("model.class_loss=quality_focal", *MIX),
}
"""Each a change of `configs/finetune_ssd300_mobilenet_v1.yaml`, which has softmax, GIoU, AdamW, cosine, EMA, crops."""
TRAINER = (sys.executable, "-m", "mnet_det", "train")
POLL_SECONDS = 0.2
STOP_SECONDS = 120.0
"""How long runs have to save what they have when the comparison is stopped."""


@dataclass(frozen=True)
class Run:
    """One training; what belongs to it lies beside its folder, under the folder's name.

    Attributes:
        variant: `BASE`, `TEACHER`, or a variant's name.
        config: all settings, the seed included.
        folder: of `mnet-det train`.
        teacher: the run that has to be finished before.
    """

    variant: str
    config: Config
    folder: Path
    teacher: Run | None = None

    @property
    def seed(self) -> int:
        return self.config.train.seed

    @property
    def settings(self) -> Path:
        """What it is trained with, as YAML."""
        return self.folder.with_suffix(".yaml")

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder.with_suffix(".log")

    @property
    def clock(self) -> Path:
        """How many minutes it took, in all its attempts."""
        return self.folder.with_suffix(".json")

    def __str__(self) -> str:
        return f"{self.variant}, seed {self.seed}"


@dataclass(frozen=True)
class Result:
    """AP and AP50 of a finished run: of its last epoch and of its best one. Minutes are None where nobody took them."""

    ap: float
    ap50: float
    best_ap: float
    best_ap50: float
    minutes: float | None


def plan(
    base: Path,
    words: Sequence[str],
    *,
    variants: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    teacher_words: Sequence[str] = (),
    out: Path,
) -> list[Run]:
    """Every run, in the order of training: the teacher if a variant needs one, then seed after seed.

    Raises:
        ConfigError: a variant does not fit the base, or `out` holds a run of its name with other settings.
    """

    def run(variant: str, change: Sequence[str], seed: int, teacher: Run | None = None) -> Run:
        fixed = [f"train.seed={seed}", "train.patience=null"]
        try:
            config = load_config(base, [*words, *change, *fixed])
        except ConfigError as error:
            raise ConfigError(f"{variant}: {error}") from None
        planned = Run(variant, config, out / variant / f"seed{seed}", teacher)
        _refuse_other_settings(planned)
        return planned

    teacher = None
    taught = TAUGHT
    if any(TAUGHT in change for change in variants.values()):
        teacher = run(TEACHER, teacher_words, seeds[0])
        # JSON quotes a path so that YAML, too, takes it as it stands
        taught = f"train.teacher={json.dumps(str((teacher.folder / 'best.pt').resolve()))}"
    runs = [] if teacher is None else [teacher]
    for seed in seeds:
        runs.append(run(BASE, (), seed))
        for name, change in variants.items():
            words_of_it = [taught if word == TAUGHT else word for word in change]
            runs.append(run(name, words_of_it, seed, teacher if TAUGHT in change else None))
    return runs


def _refuse_other_settings(run: Run) -> None:
    if not any((run.folder / name).exists() for name in ("metrics.csv", "last.pt")):
        return
    if not run.settings.exists() or load_config(run.settings) != run.config:
        raise ConfigError(
            f"{run.folder}: holds a run of other settings; choose another --out, or delete {run.folder.parent}"
        )


def train_all(
    runs: Sequence[Run],
    *,
    parallel: int,
    threads: int,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> dict[Run, str]:
    """Train what is not finished yet, `parallel` runs at a time, until `stopped` says to stop them.

    Returns:
        Why runs failed.
    """
    waiting = [run for run in runs if read_result(run) is None]
    running: list[Training] = []
    failed: dict[Run, str] = {}
    try:
        while (waiting or running) and not stopped():
            for training in [training for training in running if training.process.poll() is not None]:
                running.remove(training)
                training.keep_time()
                what = _outcome(training.run)
                if read_result(training.run) is None:
                    failed[training.run] = what
                say(f"{training.run}: {what}; {len(waiting) + len(running)} to go")
            for run in [run for run in waiting if run.teacher in failed]:
                waiting.remove(run)
                failed[run] = "its teacher failed"
            ready = [run for run in waiting if run.teacher is None or read_result(run.teacher) is not None]
            for run in ready[: parallel - len(running)]:
                waiting.remove(run)
                running.append(Training(run, threads=threads))
            time.sleep(POLL_SECONDS)
    finally:
        _stop(running)
    return failed


def _outcome(run: Run) -> str:
    """One line on a run that has ended."""
    result = read_result(run)
    if result is None:
        return f"failed, {_last_line(run.log)} ({run.log})"
    return f"AP {result.ap:.3f}, {result.minutes or 0:.1f} minutes"


class Training:
    """A run that is being trained in a process of its own."""

    def __init__(self, run: Run, *, threads: int) -> None:
        """Start it, or let it go on from its last checkpoint; what it prints goes to its log.

        It does not hear a Ctrl-C at the terminal, which would reach it a second time through us.
        """
        self.run = run
        self._started = time.monotonic()
        write_text(run.settings, run.config.to_yaml())
        with run.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*TRAINER, str(run.settings), "--out", str(run.folder), "--resume", "auto"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )

    def keep_time(self) -> None:
        """Add the minutes since its start to those of earlier attempts."""
        minutes = (time.monotonic() - self._started) / 60
        write_json(self.run.clock, {"minutes": minutes + (_minutes(self.run) or 0.0)})


def _stop(running: Sequence[Training]) -> None:
    """Ask all to end, which saves what they have; then wait, and end those that do not."""
    for training in running:
        training.process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for training in running:
        try:
            training.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            training.process.kill()
            training.process.wait()
        training.keep_time()


def read_result(run: Run) -> Result | None:
    """What a run came to, from its `metrics.csv`; None unless all of its epochs are there."""
    try:
        with (run.folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        return None
    if not rows or int(rows[-1]["epoch"]) < run.config.train.epochs or not rows[-1].get("AP"):
        return None
    scores = [(float(row["AP"]), float(row["AP50"])) for row in rows if row["AP"]]
    best = max(scores, key=lambda score: score[0])
    return Result(*scores[-1], *best, minutes=_minutes(run))


def _minutes(run: Run) -> float | None:
    with suppress(FileNotFoundError):
        minutes: float = json.loads(run.clock.read_text(encoding="utf-8"))["minutes"]
        return minutes
    return None


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def table(runs: Sequence[Run]) -> str:
    """Markdown: a row a variant with the mean and the sample standard deviation over the seeds that are finished."""
    finished = {(run.variant, run.seed): result for run in runs if (result := read_result(run)) is not None}
    lines = [
        "| recipe | AP | to the base | AP50 | best AP | to the base | best AP50 | minutes | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for variant in dict.fromkeys(run.variant for run in runs):
        results = {seed: result for (name, seed), result in finished.items() if name == variant}
        pairs = [
            (result, finished[BASE, seed])
            for seed, result in results.items()
            if variant not in (BASE, TEACHER) and (BASE, seed) in finished
        ]
        cells = [
            _spread([result.ap for result in results.values()]),
            _spread([ours.ap - base.ap for ours, base in pairs], sign="+"),
            _spread([result.ap50 for result in results.values()]),
            _spread([result.best_ap for result in results.values()]),
            _spread([ours.best_ap - base.best_ap for ours, base in pairs], sign="+"),
            _spread([result.best_ap50 for result in results.values()]),
            _mean([result.minutes for result in results.values() if result.minutes is not None]),
            str(len(results)),
        ]
        lines.append(f"| {' | '.join([variant, *cells])} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], *, sign: str = "") -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):{sign}.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f}" if values else ""


def report(
    runs: Sequence[Run], failed: Mapping[Run, str], *, changes: Mapping[str, Sequence[str]], command: str
) -> str:
    """Markdown: the table, how to read it, what each variant changes, what failed, and how to get it again."""
    epochs = runs[-1].config.train.epochs
    paragraphs = [
        table(runs).rstrip(),
        f"Mean ± sample standard deviation over the seeds, after {epochs} epochs; best: of the validation with the "
        "highest AP of a run, so it reads high. Differences are those to the base with the same seed.",
        "\n".join(f"- {name}: `{shlex.join(words)}`" for name, words in changes.items()),
        "\n".join(f"- {run}: {reason}" for run, reason in failed.items()),
        f"`{command}`, {', '.join(f'{key} {value}' for key, value in machine().items())}",
    ]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """Train and print."""
    chosen = parse(words)
    command = f"python tools/compare_recipes.py {shlex.join(sys.argv[1:] if words is None else words)}"
    try:
        runs = plan(
            chosen.config,
            chosen.words,
            variants=chosen.variants,
            seeds=chosen.seeds,
            teacher_words=chosen.teacher_words,
            out=chosen.out,
        )
        changes = {TEACHER: chosen.teacher_words} if runs[0].variant == TEACHER else {}
        changes |= chosen.variants
        page = chosen.out / "table.md"

        def say(line: str) -> None:
            print(line, flush=True)
            write_text(page, report(runs, {}, changes=changes, command=command))

        with StopWish().listening() as wish, wish.deferred():
            failed = train_all(
                runs,
                parallel=chosen.parallel,
                threads=chosen.threads,
                say=say,
                stopped=lambda: wish.number is not None,
            )
        text = report(runs, failed, changes=changes, command=command)
        write_text(page, text)
    except MnetDetError as error:
        sys.exit(f"error: {error}")
    print(text, end="")
    if wish.number is not None:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + wish.number)
    if failed:
        sys.exit(f"error: {len(failed)} of {len(runs)} runs failed; the same command tries them again")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("config", type=Path, help="the base: a YAML file")
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings of every run")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs and of table.md")
    parser.add_argument("--seeds", type=_whole_numbers, default=[0, 1, 2], help="0,1,2 unless given")
    parser.add_argument("--parallel", type=_count, default=1, help="runs at a time")
    parser.add_argument("--threads", type=_count, default=1, help="of each run")
    parser.add_argument("--variants", metavar="NAME,…", help=f"of {', '.join(VARIANTS)}; all unless given")
    parser.add_argument("--add", action="append", default=[], type=_variant, metavar="NAME: key=value …")
    parser.add_argument(
        "--teacher-words", nargs="+", default=[], metavar="key=value", help="the teacher's own settings"
    )
    chosen = parser.parse_intermixed_args(words)
    known = VARIANTS | dict(chosen.add)
    if chosen.variants is None:
        names = [name for name in known if chosen.teacher_words or TAUGHT not in known[name]]
    else:
        names = [*filter(None, chosen.variants.split(",")), *(name for name, _ in chosen.add)]
    for name in names:
        if name not in known:
            parser.error(f"--variants {name}: expected some of {', '.join(known)}")
        if TAUGHT in known[name] and not chosen.teacher_words:
            parser.error(f"{name} needs --teacher-words, such as model.alpha=1.0")
    chosen.variants = {name: known[name] for name in names}
    return chosen


def _variant(text: str) -> tuple[str, tuple[str, ...]]:
    name, separator, words = text.partition(":")
    name = name.strip()
    if not separator or not words.split() or name in (BASE, TEACHER) or not name.replace("-", "").isalnum():
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected a name of letters, digits and -, a colon and settings: 'large: model.alpha=1.0'"
        )
    return name, tuple(shlex.split(words))


def _whole_numbers(text: str) -> list[int]:
    try:
        seeds = [int(word) for word in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected whole numbers, each once, such as 0,1,2")
    return seeds


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number from 1 on")
    return int(text)


if __name__ == "__main__":
    main()
