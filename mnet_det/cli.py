"""The `mnet-det` command: parse, call one function, print.

Commands import what they need when they run, so that `--help` is quick, the demo never meets torch, and `doctor` works
where nothing else does.
"""

from __future__ import annotations

import time

PROCESS_START = time.perf_counter()  # before any import that takes long: the demo's first frame counts from here

import os  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from contextlib import contextmanager, suppress  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO  # noqa: E402

import typer  # noqa: E402

from mnet_det.errors import ConfigError, DataError, MnetDetError  # noqa: E402
from mnet_det.interrupt import Stopped, stop_signals  # noqa: E402
from mnet_det.sweep_folder import PLAN_FILE  # noqa: E402

if TYPE_CHECKING:
    from mnet_det.config import Config, DataConfig
    from mnet_det.data.convert import Converted
    from mnet_det.data.faults import Fault
    from mnet_det.engine.bench import Frames
    from mnet_det.engine.distributed import World
    from mnet_det.engine.evaluate import Scores
    from mnet_det.live.stats import ModelStats
    from mnet_det.models.cost import Cost
    from mnet_det.runtime import Predictor
    from mnet_det.runtime.backends import Aim

app = typer.Typer(
    name="mnet-det",
    help="Object detection around MobileNet: train on COCO, see what width costs, run live on a laptop CPU.",
    epilog="Add --debug to any command for the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

TRAIN_PACKAGES = {
    *("torch", "torchvision", "albumentations", "pycocotools", "onnx", "onnxscript", "tensorboard", "matplotlib"),
    *("tflite", "flatbuffers", "h5py", "safetensors"),
}
PIPE_WIDTH = 160
"""Columns of tables that go to a file or another program; left alone, rich cuts them to 80."""

Words = Annotated[list[str] | None, typer.Argument(metavar="[CONFIG] [KEY=VALUE]…", show_default=False)]
SCORE_HELP = "Least probability; unless given, that of the best F1 of each class where it was measured, else 0.5."
MODEL_HELP = "A published name (`mnet-det weights list`), a checkpoint (.pt), .onnx, .xml or a published .tflite file."
Runtime = Annotated[str, typer.Option(help="auto, openvino, onnxruntime or torch.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads to compute with; physical cores unless given.")]
JsonOut = Annotated[Path | None, typer.Option("--json", help="Write the result as JSON.", metavar="FILE")]


def main() -> None:
    """Run the command line; a user's mistake becomes one message and exit status 1."""
    debug = "--debug" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--debug"]
    # Windows' camera interface takes a minute to open otherwise, and reads this when OpenCV is first imported.
    os.environ.setdefault("OPENCV_VIDEOIO_MSMF_ENABLE_HW_TRANSFORMS", "0")
    try:
        _run(debug=debug)
    except SystemExit as end:
        _leave_if_capture_hangs(end.code if isinstance(end.code, int) else 0)
        raise


def _run(*, debug: bool) -> None:
    try:
        app()
    except MnetDetError as error:
        _fail(str(error), debug=debug)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "mnet_det"):
            raise
        from mnet_det.doctor import install_line

        extra = "train" if package in TRAIN_PACKAGES else ""
        _fail(f"this needs the package {package}, which is not installed: {install_line(extra)}", debug=debug)


def _fail(message: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("quickstart"),
) -> None:
    """The whole story on a drawn data set: train, evaluate, export, benchmark, run on a clip, report.

    Example: mnet-det quickstart
    """
    from mnet_det.quickstart import run_quickstart

    run_quickstart(out, console=_console())


@app.command()
def info(
    words: Words = None,
    head: Annotated[str | None, typer.Option(help="classifier, ssd, ssdlite or faster_rcnn.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Width multiplier.")] = None,
    rho: Annotated[float | None, typer.Option(help="Resolution multiplier.")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="K; 80 unless given (1000 for the classifier).")] = None,
    json: JsonOut = None,
) -> None:
    """Multiply-adds and parameters, per layer and by kind of layer.

    Example: mnet-det info --head ssd --alpha 0.5
    """
    from mnet_det.config import load_config
    from mnet_det.files import write_json
    from mnet_det.models import build_classifier, build_detector
    from mnet_det.models.cost import count_cost
    from mnet_det.report.tables import print_cost

    path, overrides = _split(words)
    base = {"classifier": 224, "ssd": 300, "ssdlite": 320, "faster_rcnn": 300}
    if head is not None and head not in base:
        raise typer.BadParameter(f"--head {head}: expected one of {', '.join(base)}")
    overrides += [f"model.{key}={value}" for key, value in (("alpha", alpha), ("rho", rho)) if value is not None]
    if head not in (None, "classifier"):
        overrides.append(f"model.head={head}")
    if path is None or head == "classifier":  # no config says the size: the one that the papers give this head
        side = base[head or load_config(None, overrides).model.head]
        overrides.insert(0, f"model.base_hw=[{side},{side}]")
    model = load_config(path, overrides).model
    if head == "classifier":
        name = "ImageNet classifier"
        cost = count_cost(lambda: build_classifier(model, num_classes=classes or 1000), input_hw=model.input_hw)
    else:
        name = model.head
        cost = count_cost(lambda: build_detector(model, num_classes=classes or 80), input_hw=model.input_hw)
    title = f"{name} on {model.backbone}, alpha {model.alpha:g}, input {model.input_hw[1]}x{model.input_hw[0]}"
    if json is not None:
        write_json(json, cost.to_json())
    print_cost(_console(), title, cost)


@app.command()
def train(
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME of the config unless given.")] = None,
    resume: Annotated[
        str | None, typer.Option(help="A checkpoint to go on from, or auto: the newest one of this run, if any.")
    ] = None,
    overfit: Annotated[
        int | None, typer.Option(min=1, help="Learn and score this many images by heart; proves data and settings.")
    ] = None,
) -> None:
    """Train a detector and score it. Ctrl-C and `kill` save first; a second one ends at once.

    Example: mnet-det train configs/ssd300_mobilenet_v1.yaml data.root=coco model.alpha=0.5 model.rho=0.64

    On several GPUs: torchrun --nproc-per-node 4 -m mnet_det train configs/ssd300_mobilenet_v1.yaml data.root=coco
    """
    with _ctrl_c_ends():
        from mnet_det.config import load_config
        from mnet_det.engine.distributed import open_world
        from mnet_det.engine.train import train as run_training

    path, overrides = _split(words)
    if path is None:
        raise typer.BadParameter("train needs a config file, for example configs/ssd300_mobilenet_v1.yaml")
    config = load_config(path, overrides)
    with open_world() as world:
        # One process chooses the folder: the next would find it taken.
        folder, checkpoint = world.share(_chosen_run(world, path.stem, out, resume) if world.is_first else None)
        try:
            result = run_training(
                config, out=folder, resume=checkpoint, overfit=overfit, console=_console(lasting=True), world=world
            )
        except Stopped as stopped:
            if world.is_first:
                saved = (folder / "last.pt").exists()
                kept = f"{folder / 'last.pt'} holds what is done, --resume auto goes on from there"
                _say(f"\nstopped; {kept if saved else 'nothing was done yet'}", file=sys.stderr)
            raise typer.Exit(128 + stopped.number) from None
        if world.is_first:
            _print_scores(result.scores, lasting=True)
            _say(f"best AP {result.best_ap:.3f}; checkpoints, metrics.csv and pictures are in {result.out}")


@app.command()
def sweep(
    words: Words = None,
    alpha: Annotated[str | None, typer.Option(help="Widths, such as 1,0.75,0.5,0.25.")] = None,
    rho: Annotated[str | None, typer.Option(help="Resolutions, such as 1,0.5; the config's own unless given.")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Each point is trained once with each, such as 0,1,2; the config's own unless given."),
    ] = None,
    head: Annotated[str | None, typer.Option(help="Heads, such as ssd,ssdlite; the config's own unless given.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Backbones, such as mobilenet_v1,mobilenet_v2; the config's own unless given.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; as many as there are GPUs, or 1, unless given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and how long it may take.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/NAME-sweep of the config unless given.")] = None,
    fps: Annotated[float | None, typer.Option(min=0.1, help="Advise on the best point of this frame rate.")] = None,
) -> None:
    """Train, score and measure every combination of widths and resolutions, then report. Run it again to go on.

    Each starts from the ImageNet weights of its width, else from random ones. The same command in a second terminal
    takes runs that nobody has yet.

    Example: mnet-det sweep configs/sweep_ssd300_mobilenet_v1.yaml data.root=my_data --alpha 1,0.75,0.5,0.25 --jobs 2
    """
    with _ctrl_c_ends():
        from mnet_det.engine.device import count_gpus
        from mnet_det.engine.estimate import estimate
        from mnet_det.engine.plan import Axes, plan_sweep, runs_left_out, write_plan
        from mnet_det.engine.sweep import finished_runs, run_sweep
        from mnet_det.report.tables import print_plan

    path, overrides = _split(words)
    if path is None or alpha is None:
        raise typer.BadParameter("sweep needs a config file and --alpha, such as --alpha 1,0.75,0.5,0.25")
    axes = Axes(
        alphas=_numbers("alpha", alpha),
        rhos=None if rho is None else _numbers("rho", rho),
        seeds=None if seeds is None else _whole_numbers("seeds", seeds),
        heads=None if head is None else _names(head),
        backbones=None if backbone is None else _names(backbone),
    )
    folder = out or Path("runs") / f"{path.stem}-sweep"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; --out names the sweep's folder")
    plan = plan_sweep(path, overrides, axes)
    for note in plan.notes():
        _say(note)
    gpus = count_gpus()
    jobs = jobs or max(1, gpus)
    if dry_run:
        minutes = estimate(plan, folder, jobs=jobs, console=_console(stderr=True))
        print_plan(_console(), plan.runs, minutes, jobs=jobs)
        dropped = runs_left_out(folder, plan)
    else:
        dropped = write_plan(folder, plan, command=["mnet-det", *sys.argv[1:]])
    if dropped:
        _say(f"{folder}: holds {len(dropped)} runs of other settings or data; they stay, and are not in the report")
    if dry_run:
        return
    came: list[int] = []
    with stop_signals(came.append):  # however many: a second Ctrl-C must not leave jobs at work without a parent
        outcome = run_sweep(folder, plan.runs, jobs=jobs, gpus=gpus, say=_say, stopped=lambda: bool(came))
    if came:
        _say("stopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(128 + came[0])
    measured = finished_runs(folder)
    if measured:
        _report(folder, measured, fps=fps, data_config=plan.base.data)
    if outcome.failed:
        raise MnetDetError(
            f"{len(outcome.failed)} of {len(plan.runs)} runs failed, as said above; the same command tries them again"
        )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run, or a sweep.", show_default=False)],
    fps: Annotated[float | None, typer.Option(min=0.1, help="Advise on the best point of this frame rate.")] = None,
    ms: Annotated[float | None, typer.Option(min=0.1, help="The same for milliseconds a frame.")] = None,
    threads: Threads = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure the speed again, now that nothing else runs.")
    ] = False,
) -> None:
    """Tables and plots (Markdown, PNG, one HTML page) of a run or a sweep, and advice for a frame rate.

    A run that was not measured yet is scored on its validation images and timed first.

    Example: mnet-det report runs/sweep_ssd300_mobilenet_v1-sweep --fps 30
    """
    if fps is not None and ms is not None:
        raise typer.BadParameter("--fps and --ms are one and the same budget; give one of them")
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {what}; expected the folder of a run or a sweep")
    if (folder / PLAN_FILE).exists():
        from mnet_det.engine.sweep import finished_runs

        runs = finished_runs(folder)
    else:
        from mnet_det.engine.measure import measure_run, read_measured

        runs = [folder]
        if read_measured(folder) is None:
            if (folder / "best.pt").is_file():
                _say(f"{folder}: scoring best.pt on its validation images")
            measure_run(folder, threads=threads)
    _report(folder, runs, fps=fps, ms=ms, threads=threads, again=again)


@app.command(name="sweep-run", hidden=True)
def sweep_run(folder: Path, threads: Threads = None) -> None:
    """Train and measure one run of a sweep, unless another process has it: what `sweep` starts.

    Example: mnet-det sweep-run runs/toy-sweep/ssd-mobilenet_v1-alpha0.5-rho1-seed0-1f3a9c
    """
    from mnet_det.engine.claim import BUSY_STATUS, TakenError, claim
    from mnet_det.interrupt import StopWish

    if not (folder / "planned.json").is_file():
        raise DataError(f"{folder}: not the folder of a sweep's run; `mnet-det sweep` makes it")
    try:
        with StopWish().listening(), claim(folder):
            from mnet_det.engine.sweep import make_run

            make_run(folder, threads=threads, console=_console(lasting=True))
    except TakenError:
        raise typer.Exit(BUSY_STATUS) from None
    except Stopped as stopped:
        raise typer.Exit(128 + stopped.number) from None


@app.command(name="eval")
def evaluate(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help=MODEL_HELP)] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO JSON.")] = None,
    detections: Annotated[Path | None, typer.Option(help="Score this COCO results file instead of a model.")] = None,
    classes: Annotated[str | None, typer.Option(help="Score a MODEL on these classes alone, such as dog,cat.")] = None,
    runtime: Runtime = "auto",
    threads: Threads = None,
    scorer: Annotated[
        Literal["pycocotools", "faster"],
        typer.Option(help="Who computes AP; faster is faster-coco-eval: the same numbers, sooner."),
    ] = "pycocotools",
    json: JsonOut = None,
    save_detections: Annotated[Path | None, typer.Option(help="Write a COCO results file.", metavar="FILE")] = None,
) -> None:
    """The twelve COCO numbers and AP per class, of a model or of a results file.

    Example: mnet-det eval runs/toy/best.pt --images toy/val2017 --annotations toy/annotations/instances_val2017.json
    """
    from mnet_det.data.coco import read_coco, read_coco_json, read_results
    from mnet_det.engine.evaluate import evaluate as run_model
    from mnet_det.engine.evaluate import score_results
    from mnet_det.files import write_json

    if annotations is None or (model is None) == (detections is None):
        raise typer.BadParameter("give --annotations, and either a MODEL with --images or --detections")
    if detections is not None and classes is not None:
        raise typer.BadParameter("--classes is for a MODEL")
    used = None
    if detections is not None:
        results = read_results(detections)
        truth = read_coco_json(annotations)
        scores = score_results(results, truth, scorer=scorer)
        _say_left_out(truth["left_out"], scores)
    else:
        if model is None or images is None:
            raise typer.BadParameter("a MODEL needs --images")
        data = read_coco(annotations, images, classes=None if classes is None else _names(classes))
        data.require_files()
        predictor = _load(model, runtime=runtime, threads=threads, aim="throughput")
        used = predictor.runtime
        scores, results = run_model(predictor, data, annotations, scorer=scorer)
        _say_runtime(predictor)
        _say_left_out(data.left_out, scores)
    if json is not None:
        write_json(json, scores.to_json(runtime=used))
    if save_detections is not None:
        write_json(save_detections, results)
    _print_scores(scores)
    if not results:
        print(
            "no detections at all, so AP is 0: is the model trained? `mnet-det train … --overfit 8` shows whether it "
            "can learn your data"
        )


@app.command()
def predict(
    words: Annotated[
        list[str], typer.Argument(metavar="[MODEL] SOURCE…", help="A model, then image files and folders of images.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")],
    score: Annotated[float | None, typer.Option(min=0.0, max=1.0, help=SCORE_HELP)] = None,
    runtime: Runtime = "auto",
    threads: Threads = None,
    json: JsonOut = None,
) -> None:
    """Pictures with boxes, and a COCO results file. Without a MODEL: the published detector of COCO's 80 classes.

    Example: mnet-det predict photos --out found --json found.json
    """
    from mnet_det.catalogue import DEFAULT_DETECTOR, find_model, is_model
    from mnet_det.engine.predict import expand, predict_files
    from mnet_det.files import write_json

    first = _run_checkpoint(words[0])
    model, sources = (first, words[1:]) if is_model(first) else (DEFAULT_DETECTOR, words)
    if not sources:
        raise typer.BadParameter(f"{model}: give image files or folders after the model")
    if not Path(words[0]).exists() and not is_model(words[0]):
        find_model(words[0])  # refuses it, with the name that it may be a misspelling of
    images = list(expand(map(Path, sources)))  # before the model is fetched and converted
    predictor = _load(model, runtime=runtime, threads=threads)
    _say_runtime(predictor)
    print(f"model {predictor.metadata.name}", file=sys.stderr)
    own = predictor.metadata.class_scores
    if score is None and own is not None:
        line = f"shown by class, from the score of its best F1 on, {min(own):.2f} to {max(own):.2f}"
        print(f"{line}; --score sets one for all", file=sys.stderr)
    results, faults = predict_files(
        predictor,
        images,
        out=out,
        score=score,
        note=lambda path, count: print(f"{path}: {count} detections"),
    )
    if json is not None:
        write_json(json, results)
    if faults:
        raise DataError(f"left out {len(faults)} of the images: {'; '.join(faults[:5])}")


@app.command()
def demo(
    source: Annotated[
        str,
        typer.Argument(metavar="[SOURCE]", help="Camera (its number or path), video, stream (rtsp://…) or folder."),
    ] = "0",
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help=f"{MODEL_HELP} A sweep's folder or one of runs too. Several to switch between; COCO's published one "
            "unless given.",
        ),
    ] = None,
    rho: Annotated[
        str | None, typer.Option(help="Run the same weights at these resolutions, such as 1,0.75,0.5.")
    ] = None,
    screen: Annotated[str, typer.Option(help="auto, window, browser or none.")] = "auto",
    host: Annotated[str, typer.Option(help="Address the page is served at; 0.0.0.0: to the whole network.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the page; 8765, or a free one, unless given.")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Video file for the annotated frames.", metavar="FILE")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.")] = None,
    no_drop: Annotated[bool, typer.Option("--no-drop", help="Show every frame of a file, however late.")] = False,
    score: Annotated[float | None, typer.Option(min=0.0, max=1.0, help=SCORE_HELP)] = None,
    nms: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Overlap of two boxes of a class; the model's own unless given."),
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Show these alone, such as person,car.")] = None,
    mirror: Annotated[bool, typer.Option("--mirror", help="Left and right change places.")] = False,
    runtime: Annotated[str, typer.Option(help="auto, openvino or onnxruntime.")] = "auto",
    threads: Threads = None,
    stats: Annotated[Path | None, typer.Option(help="JSON file of what was measured.", metavar="FILE")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Of the camera's picture.")] = None,
    height: Annotated[int | None, typer.Option(min=1, help="Of the camera's picture.")] = None,
    fps: Annotated[float | None, typer.Option(min=0.1, help="Of the camera.")] = None,
    fourcc: Annotated[str | None, typer.Option(help="The camera's pixel format, such as MJPG.")] = None,
    api: Annotated[str | None, typer.Option(help="v4l2, dshow, msmf or avfoundation.")] = None,
) -> None:
    """Live detection from camera 0, another camera, a video, a stream or a folder.

    Example: mnet-det demo clip.mp4 --model runs/toy/best.pt --screen none --record out.mp4 --stats stats.json
    """
    from mnet_det.catalogue import DEFAULT_DETECTOR
    from mnet_det.live.lineup import load_lineup
    from mnet_det.live.loop import run_demo
    from mnet_det.live.pick import pick_screen, require_screen
    from mnet_det.live.recorded import Recorded
    from mnet_det.live.recorder import require_video
    from mnet_det.live.source import open_source
    from mnet_det.runtime import load_predictor

    def load(word: str, rho: float | None) -> Predictor:
        return load_predictor(_model_file(word), runtime=runtime, threads=threads, rho=rho)

    rhos = _numbers("rho", rho or "")
    if not all(0 < value <= 10 for value in rhos):
        raise typer.BadParameter(f"--rho {rho}: expected numbers above 0, at most 10, such as 1,0.5")
    require_screen(screen)
    if record is not None:
        require_video(record)
    _require_apart(inputs=[source, *(model or [])], outputs=[record, stats])
    opened = open_source(source, width=width, height=height, fps=fps, fourcc=fourcc, api=api, say=_say)
    try:
        models = load_lineup(model or [DEFAULT_DETECTOR], load, rhos=rhos, say=_say)
        shown = pick_screen(screen, live=not isinstance(opened, Recorded), host=host, port=port, say=_say)
    except BaseException:
        opened.close()
        raise
    for first in {loaded.runtime: loaded for loaded in reversed(models)}.values():
        _say_runtime(first)
    with _signals_stop() as stop:
        result = run_demo(
            models,
            opened,
            shown,
            score=score,
            nms=nms,
            classes=_names(classes),
            mirror=mirror,
            record=record,
            frames=frames,
            no_drop=no_drop,
            stats=stats,
            started=PROCESS_START,
            stop=stop,
            say=_say,
        )
    rate = "n/a" if result.fps is None else f"{result.fps:.1f}"
    engines = ", ".join(dict.fromkeys(loaded.runtime for loaded in models))
    _say(f"{result.frames} frames shown, {result.dropped} dropped, {rate} a second on {engines}")
    if len(result.models) > 1:
        for ran in result.models:
            _say_model(ran)


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A published name, a checkpoint (.pt) or a published .tflite file.")
    ],
    format: Annotated[str, typer.Option(help="onnx, openvino or openvino-int8 (these two: an .xml and a .bin file).")],
    out: Annotated[Path | None, typer.Option(help="The file; beside the model unless given, or here.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images the network takes at a time.")] = 1,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Images to compare on, and to calibrate int8 on; else the model's own.", metavar="DIR"),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Of int8: images to measure AP on; else the model's own.", metavar="DIR")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Of int8: the COCO JSON of these images.", metavar="FILE")
    ] = None,
    proposals: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Of Faster R-CNN: how many regions its second stage looks at.")
    ] = None,
    rho: Annotated[float | None, typer.Option(help="Resolution multiplier, if not the model's own.")] = None,
) -> None:
    """A self-contained file that passed its own comparison with torch; for int8, with AP before and after.

    Example: mnet-det export runs/toy/best.pt --format onnx
    """
    from mnet_det.engine.export import export_detector

    endings = {"onnx": ".onnx", "openvino": ".xml", "openvino-int8": "-int8.xml"}
    if format not in endings:
        raise typer.BadParameter(f"--format {format}: expected one of {', '.join(endings)}")
    if (images is None) != (annotations is None):
        raise typer.BadParameter("--images and --annotations belong together: give both or neither")
    if images is not None and format != "openvino-int8":
        raise typer.BadParameter("--images and --annotations are to measure AP, which only openvino-int8 does")
    suffix = ".onnx" if format == "onnx" else ".xml"
    if out is not None and out.suffix != suffix:
        raise ConfigError(f"{out}: expected a name that ends in {suffix}")
    file = _model_file(model)
    if out is None:
        beside = str(file.with_suffix("")) if file == Path(model) else model
        out = Path(f"{beside}{endings[format]}")
    if format == "openvino-int8":
        from mnet_det.engine.quantize import MAX_DROP, export_int8

        int8 = export_int8(
            file,
            out,
            calibration=calibration,
            images=images,
            annotations=annotations,
            batch=batch,
            proposals=proposals,
            rho=rho,
            note=lambda line: print(line, file=sys.stderr, flush=True),
        )
        print(int8.parity)
        print(int8)
        if int8.drop is not None and int8.drop > MAX_DROP:
            print(f"warning: int8 costs {int8.drop:.3f} AP, more than {MAX_DROP}", file=sys.stderr)
    else:
        print(export_detector(file, out, images=calibration, batch=batch, proposals=proposals, rho=rho))
    print(f"wrote {out}")


@app.command()
def bench(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]… [CONFIG]… [KEY=VALUE]…",
            help=f"{MODEL_HELP} A config (.yaml) is measured with random weights.",
        ),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Put each config on each of these backbones, such as mobilenet_v1,vgg16.")
    ] = None,
    alpha: Annotated[str | None, typer.Option(help="Widths of SSD300 with random weights, such as 1,0.75,0.5.")] = None,
    rho: Annotated[str | None, typer.Option(help="Resolutions of the same.")] = None,
    runtime: Annotated[str, typer.Option(help="One or several of auto, openvino, onnxruntime, torch.")] = "auto",
    threads: Threads = None,
    images: Annotated[Path | None, typer.Option(help="Look at these instead of drawn scenes.", metavar="DIR")] = None,
    frame: Annotated[
        str | None, typer.Option(help="Size of the scenes (640x480 unless given); images are stretched.", metavar="WxH")
    ] = None,
    score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Least probability of a detection.")] = 0.5,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each model, of three measured frames each.")] = 20,
    json: JsonOut = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the stages as bars (.png).", metavar="FILE")] = None,
) -> None:
    """Milliseconds of each stage, models interleaved in one run, beside what a matrix product reaches on this machine.

    Example: mnet-det bench --alpha 1,0.5,0.25 --runtime openvino,torch --picture bench.png
    """
    from mnet_det.engine.bench import recipes_to_measure, run_bench, widths_to_measure
    from mnet_det.files import write_json
    from mnet_det.report.tables import bench_json, print_bench
    from mnet_det.runtime.benchmark import machine

    if picture is not None:  # before time goes into measuring
        from mnet_det.report.plots import draw_bench, write_figure

        if picture.suffix.lower() != ".png":
            raise ConfigError(f"{picture}: expected a name that ends in .png")
    settings = [word for word in words or [] if "=" in word]
    files = [word for word in words or [] if "=" not in word]
    recipes = [Path(word) for word in files if Path(word).suffix in (".yaml", ".yml")]
    if (settings or backbone) and not recipes:
        raise typer.BadParameter("settings and --backbone are for config files (.yaml); give one")
    if rho is not None and files and alpha is None:
        raise typer.BadParameter("--rho is for the widths of --alpha; for config files, set model.rho=…")
    models = [word for word in files if Path(word) not in recipes]
    configs = recipes_to_measure(recipes, backbones=_names(backbone), settings=settings)
    configs |= widths_to_measure(_numbers("alpha", alpha or ("" if files else "1")), _numbers("rho", rho or "1"))
    costs = _costs(models, configs)
    measured = run_bench(
        models,
        configs=configs,
        runtimes=_names(runtime),
        threads=threads,
        load=_load,
        frames=_frames(images, frame),
        score=score,
        rounds=rounds,
    )
    print_bench(_console(), machine(), measured, costs=costs)
    if json is not None:
        write_json(json, bench_json(machine(), measured, costs=costs))
    if picture is not None:
        write_figure(picture, draw_bench(machine(), measured))


@app.command()
def browse(
    words: Words = None,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("browse.png"),
) -> None:
    """A grid of augmented training samples with their boxes.

    Example: mnet-det browse configs/toy.yaml data.root=toy
    """
    from mnet_det.config import load_config
    from mnet_det.engine.pictures import browse_samples
    from mnet_det.images import write_image

    path, overrides = _split(words)
    write_image(out, browse_samples(load_config(path, overrides)))
    print(f"wrote {out}")


@app.command()
def toy(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    train_images: Annotated[int, typer.Option("--train", min=1, help="Training images.")] = 1000,
    val_images: Annotated[int, typer.Option("--val", min=1, help="Validation images.")] = 200,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw the toy data set in COCO form, and a clip of moving shapes.

    Example: mnet-det toy toy
    """
    from mnet_det.data.toy import draw_toy

    draw_toy(folder, train_images=train_images, val_images=val_images, seed=seed)
    print(f"drew {train_images} training and {val_images} validation images and clip.mp4 into {folder}")


download_app = typer.Typer(
    help="Public data sets, verified and unpacked.\n\nExample: mnet-det download coco --out coco",
    no_args_is_help=True,
)
app.add_typer(download_app, name="download")


@download_app.command(name="coco")
def download_coco(
    out: Annotated[Path, typer.Option(help="Folder for data.root; 41 GB are needed while it is made, 21 GB stay.")],
    only: Annotated[str | None, typer.Option(help="Parts alone, such as val,annotations; train is the third.")] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="Another server with the same files below it.")
    ] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Leave the .zip files, which are deleted once unpacked.")
    ] = False,
) -> None:
    """COCO 2017: images and boxes, without captions and keypoints. Run it again to go on where it stopped.

    Example: mnet-det download coco --out coco --only val,annotations
    """
    from mnet_det.data.download_coco import ADDRESS
    from mnet_det.data.download_coco import download_coco as fetch

    parts = None if only is None else _names(only)
    try:
        fetch(out, only=parts, address=source or ADDRESS, keep_archives=keep_archives, console=_console(stderr=True))
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"COCO 2017 is in {out}; use it with data.root={out}")


@app.command()
def check(
    annotations: Annotated[Path, typer.Argument(metavar="ANNOTATIONS", help="COCO JSON.")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="Folder of its images.")],
    val: Annotated[
        Path | None, typer.Option(metavar="ANNOTATIONS", help="What will be scored on: judged too, and compared.")
    ] = None,
    val_images: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of its images.")] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="Do this detector's anchors reach the boxes?")
    ] = None,
    no_pixels: Annotated[
        bool, typer.Option("--no-pixels", help="Judge images by their first bytes, without decoding them.")
    ] = False,
    json: JsonOut = None,
) -> None:
    """Every fault of a data set before training meets it; exit status 1 if any is fatal. It changes no file.

    Example: mnet-det check toy/annotations/instances_train2017.json --images toy/train2017
    """
    from mnet_det.config import load_config
    from mnet_det.data.check import check as examine
    from mnet_det.files import write_json
    from mnet_det.report.verdict import print_verdict

    if (val is None) != (val_images is None):
        raise typer.BadParameter("--val and --val-images go together")
    _require_apart(inputs=[str(path) for path in (annotations, val, config) if path is not None], outputs=[json])
    settings = None
    if config is not None:
        from mnet_det.engine.anchor_reach import measure_reach  # here: what is missing should not cost the wait

        settings = load_config(config, [])
    classes = None if settings is None else settings.data.classes
    with _progress("looking at images") as progress:
        verdict = examine(
            annotations,
            images,
            val=val,
            val_images=val_images,
            classes=classes,
            pixels=not no_pixels,
            progress=progress,
        )
    unmeasured: MnetDetError | None = None
    if settings is not None and not verdict.fatal:
        from mnet_det.data.coco import read_coco

        try:
            reach = measure_reach(settings, read_coco(annotations, images, classes=classes))
            verdict = verdict.adding(filter(None, [reach.fault(str(annotations))]), anchors=reach.to_json())
        except MnetDetError as error:
            unmeasured = error  # the rest of the verdict stands
    if json is not None:
        write_json(json, verdict.to_json())
    print_verdict(_console(), verdict)
    if unmeasured is not None:
        raise unmeasured
    if settings is not None and verdict.fatal:
        print("the anchors were not looked at: what is fatal comes first")
    if verdict.fatal:
        raise typer.Exit(1)


convert_app = typer.Typer(
    help="Other formats to COCO JSON; neither images nor labels are changed.\n\n"
    "Example: mnet-det convert voc BCCD --split train --out bccd/annotations/instances_train2017.json",
    no_args_is_help=True,
)
app.add_typer(convert_app, name="convert")
CocoOut = Annotated[Path, typer.Option(help="The COCO file to write (.json).", metavar="FILE")]
Source = Annotated[Path, typer.Argument(metavar="SRC", show_default=False)]


@convert_app.command(name="voc")
def convert_voc(
    source: Source,
    out: CocoOut,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images; JPEGImages or SRC unless given.", metavar="DIR")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="A list in ImageSets/Main, or a file of names; all unless given.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="All names in the order of their ids; sorted unless given.", metavar="A,B")
    ] = None,
    zero_based: Annotated[
        bool, typer.Option("--zero-based", help="Coordinates are edges from 0; VOC's are pixels from 1.")
    ] = False,
) -> None:
    """Pascal VOC's XML files: a folder with Annotations and JPEGImages, or one of XML files. `difficult` becomes crowd.

    Example: mnet-det convert voc VOC2007 --split trainval --out voc/trainval.json
    """
    from mnet_det.data.convert_voc import convert_voc as convert

    _write_coco(
        out,
        lambda: convert(
            source,
            images=images,
            split=split,
            classes=None if classes is None else _names(classes),
            zero_based=zero_based,
        ),
    )


@convert_app.command(name="yolo")
def convert_yolo(
    source: Source,
    out: CocoOut,
    split: Annotated[str | None, typer.Option(help="train, val or test; all unless given.")] = None,
    names: Annotated[
        Path | None, typer.Option(help="Class names, one a line, if not in data.yaml or classes.txt.", metavar="FILE")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="The names themselves, from class 0 on.", metavar="A,B")] = None,
) -> None:
    """YOLO's text files: a data.yaml, or a folder with images and labels. Polygons become boxes.

    Example: mnet-det convert yolo set/data.yaml --split val --out set/val.json
    """
    from mnet_det.data.convert_yolo import convert_yolo as convert

    _write_coco(
        out,
        lambda: convert(source, split=split, names=names, classes=None if classes is None else _names(classes)),
    )


def _write_coco(out: Path, convert: Callable[[], Converted]) -> None:
    """Write what a conversion gives, and say what to do with it."""
    from mnet_det.data.convert import command_line
    from mnet_det.files import write_json

    if out.suffix.lower() != ".json":
        raise ConfigError(f"{out}: expected a name that ends in .json")
    converted = convert()
    write_json(out, converted.content)
    for note in converted.notes:
        print(f"warning: {note}", file=sys.stderr)
    print(f"wrote {out}: {converted}")
    print(f"next: {command_line('mnet-det', 'check', out, '--images', converted.images)}")


weights_app = typer.Typer(
    help="Published weights: COCO's SSD on MobileNetV1, and ImageNet backbones at every width.\n\n"
    "Example: mnet-det weights list",
    no_args_is_help=True,
)
app.add_typer(weights_app, name="weights")


@weights_app.command(name="list")
def list_weights(json: JsonOut = None) -> None:
    """Names, what they are, published accuracy, licence, size, sha256 and address.

    Example: mnet-det weights list
    """
    from mnet_det.catalogue import CATALOGUE, local_path
    from mnet_det.files import write_json
    from mnet_det.report.tables import catalogue_json, print_catalogue

    if json is not None:
        write_json(json, catalogue_json(CATALOGUE))
    print_catalogue(_console(), CATALOGUE, have={entry.name for entry in CATALOGUE if local_path(entry).is_file()})


@weights_app.command(name="pull")
def pull_weights(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of `mnet-det weights list`.")],
    source: Annotated[
        str | None, typer.Option("--from", metavar="FILE|URL", help="A file fetched by hand, or another address.")
    ] = None,
) -> None:
    """Fetch published weights into your cache; verified, and only once.

    Example: mnet-det weights pull mobilenet_v1_0.5_160_quant
    """
    from mnet_det.catalogue import find_entry, pull

    print(pull(find_entry(name), source=source, console=_console(stderr=True)))


@weights_app.command(name="import")
def import_weights(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A published name, or a .tflite, .h5, .safetensors or .pth file.")
    ],
    out: Annotated[Path, typer.Option(help="The checkpoint (.pt) to write.")],
    labels: Annotated[
        Path | None, typer.Option(help="Names of the outputs, one a line, the background first.", metavar="FILE")
    ] = None,
) -> None:
    """Convert published weights into a checkpoint of ours.

    Example: mnet-det weights import mobilenet_5_0_160_tf.h5 --out mobilenet_0.5.pt
    """
    from dataclasses import replace

    from mnet_det.catalogue import find_model
    from mnet_det.engine.checkpoint import open_checkpoint, save_checkpoint
    from mnet_det.weights import read_labels

    if out.suffix.lower() != ".pt":
        raise ConfigError(f"{out}: expected a name that ends in .pt")
    path = find_model(file, console=_console(stderr=True))
    checkpoint = open_checkpoint(path, labels=None if labels is None else read_labels(labels))
    save_checkpoint(out, replace(checkpoint, training=None))  # a run's own is half optimiser
    print(f"wrote {out}: {checkpoint}")


@app.command()
def doctor() -> None:
    """What is installed, what is wrong with it, and the line that mends it.

    Example: mnet-det doctor
    """
    from mnet_det.cache import cache_folder
    from mnet_det.doctor import examine, render

    findings = examine(cache=cache_folder())
    print(render(findings))
    if any(finding.status == "fault" for finding in findings):
        raise typer.Exit(1)


def _split(words: list[str] | None) -> tuple[Path | None, list[str]]:
    """A word with `=` is a setting, the other one the config file."""
    settings = [word for word in words or [] if "=" in word]
    others = [word for word in words or [] if "=" not in word]
    if len(others) > 1:
        raise typer.BadParameter(f"{', '.join(others)}: expected one config file; settings are key=value")
    return (Path(others[0]) if others else None), settings


def _run_folder(name: str, out: Path | None, resume: str | None) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint to go on from."""
    from mnet_det.files import free_folder, used_folders

    folder = out or Path("runs") / name
    if resume == "auto":
        runs = [run for run in (used_folders(folder) if out is None else [folder]) if _saved_at(run)]
        if runs:
            newest = max(runs, key=_saved_at)
            return newest, newest / "last.pt"
    elif resume is not None:
        return out or Path(resume).parent, Path(resume)
    return out or free_folder(folder), None


def _saved_at(run: Path) -> float:
    """When it last wrote what can be gone on from; 0 if there is no such thing."""
    saved = [run / "last.pt", run / "previous.pt"]  # which stands in for the first
    return next((path.stat().st_mtime for path in saved if path.exists()), 0)


def _chosen_run(world: World, name: str, out: Path | None, resume: str | None) -> tuple[Path, Path | None]:
    """As `_run_folder`; where torchrun starts processes again, what they chose before, and how far they came."""
    from mnet_det.engine.train import require_own_folder

    def choose() -> list[str]:
        folder, checkpoint = _run_folder(name, out, resume)
        require_own_folder(folder, checkpoint)  # before it is kept: the next would take a refused folder for its own
        return [str(path) for path in (folder, checkpoint) if path is not None]

    chosen, again = world.once(choose)
    folder, *checkpoints = map(Path, chosen)
    if again and _saved_at(folder):
        checkpoints = [folder / "last.pt"]
    return folder, next(iter(checkpoints), None)


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        raise typer.BadParameter(f"--{name} {text}: expected numbers with commas between, such as 1,0.5") from None


def _costs(models: list[str], configs: dict[str, Config]) -> dict[str, Cost]:
    """What each config costs, and each model whose network is known: an exported file does not say it."""
    networks = _networks_of(models)
    if not networks and not configs:
        return {}
    from mnet_det.engine.bench import CLASSES
    from mnet_det.models import build_detector
    from mnet_det.models.cost import count_cost

    def cost(config: Config, classes: int) -> Cost:
        return count_cost(lambda: build_detector(config.model, num_classes=classes), input_hw=config.model.input_hw)

    networks |= {name: (config, CLASSES) for name, config in configs.items()}
    return {name: cost(config, classes) for name, (config, classes) in networks.items()}


def _networks_of(models: list[str]) -> dict[str, tuple[Config, int]]:
    """Config and number of classes of those models that are no exported files, where torch can open them."""
    files = {model: _model_file(model) for model in models}
    files = {model: file for model, file in files.items() if file.suffix.lower() not in (".onnx", ".xml")}
    try:
        from mnet_det.engine.checkpoint import open_detector

        opened = {model: open_detector(file) for model, file in files.items()}
    except ModuleNotFoundError:  # their exports in the cache are measured all the same
        return {}
    return {model: (checkpoint.config, len(checkpoint.class_names)) for model, checkpoint in opened.items()}


def _frames(images: Path | None, frame: str | None) -> Frames:
    """What `bench` looks at."""
    from mnet_det.engine.bench import SCENE_HW, drawn_frames, read_frames

    frame_hw = None if frame is None else _frame_hw(frame)
    return drawn_frames(frame_hw or SCENE_HW) if images is None else read_frames(images, frame_hw=frame_hw)


def _frame_hw(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and min(int(width), int(height)) >= 64):
        raise typer.BadParameter(f"--frame {text}: expected width and height, at least 64 each, such as 640x360")
    return int(height), int(width)


def _whole_numbers(name: str, text: str) -> list[int]:
    words = _names(text)
    if not words or not all(word.isdecimal() for word in words):
        raise typer.BadParameter(
            f"--{name} {text}: expected whole numbers from 0 on with commas between, such as 0,1,2"
        )
    return list(map(int, words))


def _names(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _run_checkpoint(word: str) -> str:
    """The best checkpoint of a run's folder; any other word as it is."""
    if os.path.isfile(os.path.join(word, PLAN_FILE)):
        raise ConfigError(f"{word}: is a sweep of several models; give the folder of one of its runs")
    best = os.path.join(word, "best.pt")
    return best if os.path.isfile(best) else word


def _model_file(word: str) -> Path:
    """The file that a MODEL word means; a published one is fetched, with its progress on stderr."""
    from mnet_det.catalogue import find_detector

    return find_detector(word, console=_console(stderr=True))


def _load(
    word: str | Path,
    *,
    runtime: str = "auto",
    threads: int | None = None,
    score: float | None = None,
    aim: Aim = "latency",
) -> Predictor:
    """A model on any runtime; torch, which the runtime package never imports, included."""
    path = _model_file(str(word))
    if runtime == "torch" and path.suffix.lower() in (".onnx", ".xml"):
        raise ConfigError(f"{path}: torch runs checkpoints and published files; for this one, leave --runtime out")
    if runtime == "torch":
        from mnet_det.engine.torch_backend import load_torch_predictor

        return load_torch_predictor(path, threads=threads, score=score)
    from mnet_det.runtime import load_predictor

    return load_predictor(path, runtime=runtime, threads=threads, score=score, aim=aim)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's stderr while something is done to many things, then how fast it went.

    Yields:
        To be told how many of how many are done.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = _console(stderr=True)
    done, start = 0, time.perf_counter()
    # Quiet and not only disabled: rich 14.0 would still end the bar that it did not draw with an empty line.
    with Progress(console=console if console.is_terminal else Console(quiet=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def tell(now: int, total: int) -> None:
            nonlocal done
            done = now
            bar.update(task, completed=now, total=total)

        yield tell
    seconds = time.perf_counter() - start
    if done:
        print(f"{what}: {done} in {seconds:.1f} s, {done / seconds:.0f} a second", file=sys.stderr)


def _say(line: str, *, file: TextIO | None = None) -> None:
    """Print at once, also into a file or another program; one that has gone is no reason to stop."""
    print(line, file=_Lasting(file or sys.stdout), flush=True)


class _Lasting:
    """A stream that others read; once they have gone, such as a terminal that was closed, it swallows all."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._last(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._last(self._stream.flush)

    def _last(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except OSError:
            # Else what is left would be tried once more, by the interpreter at its end, and complained of.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            return 0


@contextmanager
def _ctrl_c_ends() -> Iterator[None]:
    """Let Ctrl-C end the program at once, without a word: raised while torch is imported, it ends in C++'s words."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say_model(ran: ModelStats) -> None:
    rate = "n/a" if ran.fps is None else f"{ran.fps:.1f}"
    height, width = ran.input_hw
    _say(
        f"  {ran.model} alpha {ran.alpha:g} {width}x{height}: {ran.frames} frames, {rate} a second, "
        f"network {ran.network_ms.p50:.1f} ms on {ran.runtime}"
    )


@contextmanager
def _signals_stop() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C, `kill` and a closed terminal end the demo between two frames, however many of them come.

    Yields:
        Whether one came.
    """
    came: list[int] = []  # appending is safe wherever a handler interrupts
    with stop_signals(came.append):
        yield lambda: bool(came)


def _require_apart(*, inputs: list[str], outputs: list[Path | None]) -> None:
    """Refuse to write over what is read, or two things into one file."""
    seen = [word for word in inputs if os.path.isfile(word)]
    for file in filter(None, outputs):
        if any(file.resolve() == Path(other).resolve() or _is_same(file, other) for other in seen):
            raise ConfigError(f"{file}: is read too, or gets another output; choose another name")
        seen.append(str(file))


def _is_same(file: Path, other: str) -> bool:
    with suppress(OSError):  # one of them is not there yet
        return os.path.samefile(file, other)
    return False


def _leave_if_capture_hangs(status: int) -> None:
    """End the process here if a camera or a stream still blocks its thread, which would crash the interpreter's end."""
    capture = sys.modules.get("mnet_det.live.capture")
    if capture and any(thread.name.startswith(capture.THREAD_NAME) for thread in threading.enumerate()):
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _say_runtime(predictor: Predictor) -> None:
    """Which engine runs, where nobody chose it, and why."""
    if predictor.choice is not None:
        print(f"runtime {predictor.choice.runtime}: {predictor.choice.reason}", file=sys.stderr)


def _say_left_out(boxes: Sequence[Fault], scores: Scores) -> None:
    """What in the data no model was scored on."""
    if boxes:
        print(f"not scored: {len(boxes)} boxes that nobody could find, such as {boxes[0]}", file=sys.stderr)
    if scores.left_out:
        print(
            f"not scored: {len(scores.left_out)} images that cannot be used, such as {scores.left_out[0]} "
            "(`eval --detections` would count their boxes as missed)",
            file=sys.stderr,
        )


def _report(
    folder: Path,
    runs: Sequence[Path],
    *,
    fps: float | None = None,
    ms: float | None = None,
    threads: int | None = None,
    data_config: DataConfig | None = None,
    again: bool = False,
) -> None:
    """Measure the speed of runs in turns where that was not done yet, write the report, and print its best part."""
    from mnet_det.engine.measure import measure_latency
    from mnet_det.engine.sweep import is_being_trained
    from mnet_det.report.study_report import write_report
    from mnet_det.report.tables import print_study

    try:
        if (folder / PLAN_FILE).exists() and is_being_trained(folder):
            _say("speed not measured while runs of this sweep are trained, which would slow it; report again later")
        elif runs:
            measure_latency(folder, runs, threads=threads, data_config=data_config, again=again, say=_say)
    except MnetDetError as error:  # the data stayed on another machine, say: what is known is reported all the same
        if again:
            raise
        _say(f"speed not measured: {error}", file=sys.stderr)
    report = write_report(folder, fps=fps, ms=ms)
    print_study(_console(), report.study)
    for sentence in report.sentences:
        _say(sentence)
    _say(f"wrote {', '.join(str(file) for file in report.files[:3])} and {len(report.files) - 3} pictures")


def _print_scores(scores: Any, *, lasting: bool = False) -> None:
    from mnet_det.report.tables import print_scores

    print_scores(_console(lasting=lasting), scores)


def _console(*, stderr: bool = False, lasting: bool = False) -> Any:
    """Where to print; `lasting` if the work goes on when nobody reads it any more."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Class names and paths may hold brackets, which are no markup.
    return Console(
        width=None if stream.isatty() else PIPE_WIDTH,
        markup=False,
        stderr=stderr,
        file=_Lasting(stream) if lasting else None,  # type: ignore[arg-type]
    )
