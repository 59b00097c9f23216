"""The whole story on a drawn data set: train, score, export, benchmark, run on a clip, report."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from mnet_det.config import Config, load_config
from mnet_det.data import open_data
from mnet_det.data.toy import draw_toy
from mnet_det.engine.bench import LIVE_SCORE, bench_images
from mnet_det.engine.evaluate import Scores, evaluate
from mnet_det.engine.export import export_detector
from mnet_det.engine.pictures import picture_predictions
from mnet_det.engine.train import train
from mnet_det.errors import ConfigError
from mnet_det.files import free_folder, write_json, write_text
from mnet_det.images import write_image
from mnet_det.live.loop import run_demo
from mnet_det.live.screen import NoScreen
from mnet_det.live.source import open_source
from mnet_det.live.stats import Stats
from mnet_det.models import build_detector
from mnet_det.models.cost import Cost, count_cost
from mnet_det.runtime import Predictor, load_predictor
from mnet_det.runtime.benchmark import BenchmarkRow, benchmark, machine

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "toy.yaml"


@dataclass(frozen=True)
class Outcome:
    """What the quickstart came to."""

    config: Config
    scores: Scores
    cost: Cost
    latency: BenchmarkRow
    live: Stats
    training_s: float

    def to_markdown(self) -> str:
        """The table of the README: what it finds, what it costs, how fast it is."""
        numbers, model = self.scores.numbers, self.config.model
        height, width = model.input_hw
        return (
            "| model | input | AP | AP50 | multiply-adds | parameters | network ms | frames a second |\n"
            "|---|---|---|---|---|---|---|---|\n"
            f"| {model.head} on {model.backbone}, alpha {model.alpha:g} | {width}x{height} | {numbers['AP']:.3f} | "
            f"{numbers['AP50']:.3f} | {self.cost.mult_adds / 1e6:.1f} M | {self.cost.params / 1e6:.2f} M | "
            f"{self.latency.network_ms.p50:.1f} | {self.live.fps or 0:.0f} |\n"
        )


def run_quickstart(out: Path, *, console: Console) -> Outcome:
    """Do all of it, into a new folder, and name on the last lines what was made.

    Args:
        out: the folder; if it holds something already, `NAME-2` and so on.
        console: where the story is told.

    Raises:
        ConfigError: this is not a checkout (the recipe is `configs/toy.yaml`).
    """
    if not CONFIG.is_file():
        raise ConfigError(f"{CONFIG}: not there; the quickstart runs in a clone of the project, installed editable")
    out = free_folder(out)
    toy = out / "toy"
    console.rule("draw a data set")
    draw_toy(toy)
    console.print(f"{toy}: images of shapes in COCO form, and clip.mp4", highlight=False)

    console.rule("train")
    started = time.perf_counter()
    config = load_config(CONFIG, [f"data.root={toy}"])
    train(config, out=out / "run", console=console)
    training_s = time.perf_counter() - started

    console.rule("export")
    model = out / "model.onnx"
    console.print(str(export_detector(out / "run" / "best.pt", model)), highlight=False)

    console.rule("score the exported model with pycocotools, benchmark it, run it on the clip")
    predictor = load_predictor(model)
    val = open_data(config.data, "val")
    scores, _ = evaluate(predictor, val, config.data.annotations("val"))
    cost = count_cost(
        lambda: build_detector(config.model, num_classes=len(val.class_names)), input_hw=config.model.input_hw
    )
    latency = benchmark([("quickstart", load_predictor(model, score=LIVE_SCORE))], bench_images())[0]
    picture = out / "detections.png"
    write_image(picture, picture_predictions(predictor, val))
    live = _film(predictor, toy / "clip.mp4", out / "clip.mp4", console)
    outcome = Outcome(config, scores, cost, latency, live, training_s)
    _report(outcome, out, console)
    return outcome


def _film(predictor: Predictor, source: Path, clip: Path, console: Console) -> Stats:
    return run_demo(
        [predictor],
        open_source(str(source)),
        NoScreen(),
        score=LIVE_SCORE,
        record=clip,
        stats=clip.with_name("clip_stats.json"),
        say=lambda line: console.print(line, highlight=False),
    )


def _report(outcome: Outcome, out: Path, console: Console) -> None:
    """Write `report.md` and `results.json`, print the table, and name the files last."""
    cpu = machine()
    where = ", ".join(f"{key} {value}" for key, value in cpu.items())
    text = (
        f"{outcome.to_markdown()}\n"
        f"Scored by pycocotools on {outcome.scores.images} drawn validation images. Network: one image, "
        f"{outcome.latency.runtime}, {outcome.latency.threads} threads, median. Frames a second: reading, detecting, "
        f"drawing and recording a {outcome.live.frames}-frame clip. "
        f"Training took {outcome.training_s:.0f} s. {where}.\n"
    )
    write_text(out / "report.md", text)
    write_json(
        out / "results.json",
        {
            "scores": outcome.scores.to_json(runtime=outcome.latency.runtime),
            "params": outcome.cost.params,
            "mult_adds": outcome.cost.mult_adds,
            "latency": asdict(outcome.latency),
            "live": asdict(outcome.live),
            "training_s": outcome.training_s,
            "machine": cpu,
        },
    )
    console.rule("done")
    console.print(text, highlight=False)
    for what, name in (
        ("table", "report.md"),
        ("picture of detections", "detections.png"),
        ("recorded clip", "clip.mp4"),
        ("model", "model.onnx"),
        ("training run", "run"),
    ):
        console.print(f"{what + ':':24}{out / name}", highlight=False, soft_wrap=True)
