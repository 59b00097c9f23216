"""Whole reports of drawn studies: files, Markdown, numbers, figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mnet_det.errors import ConfigError
from mnet_det.report.class_figures import draw_classes, draw_confusion, shown_confusion
from mnet_det.report.cost_figures import COSTS, draw_cost, front, leading
from mnet_det.report.figure_style import COLOURS, LEAST_SPAN, contrast, ink, installed_fonts
from mnet_det.report.markdown import escaped, how_to_read
from mnet_det.report.study import Confusion, read_study
from mnet_det.report.study_report import FIGURES, write_report
from mnet_det.report.summary import BUDGET, advice_steps, page_json


def tables_of(text: str) -> list[list[list[str]]]:
    """The tables of some Markdown, as cells: a bar that is not escaped ends one."""
    tables: list[list[list[str]]] = [[]]
    for line in text.splitlines():
        if line.startswith("|"):
            tables[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif tables[-1]:
            tables.append([])
    return [table for table in tables if table]


def test_a_sweep_is_reported_whole(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5), seeds=(0, 1), failed=((0.5, 1.0, 1),))
    report = write_report(folder, fps=40)
    names = {path.name for path in report.files}
    assert names == {
        *("report.md", "report.html", "report.json", "ap_mult_adds.png", "ap_params.png", "ap_total_ms.png"),
        *("sizes.png", "classes.png", "precision_recall.png", "confusion.png", "training.png", "kept.png"),
    }
    assert {path.stem for path in report.files if path.suffix == ".png"} == FIGURES
    assert all(path.stat().st_size > 1000 for path in report.files)
    text = (folder / "report.md").read_text()
    assert set(re.findall(r"\]\((.*?\.png)\)", text)) == {name for name in names if name.endswith(".png")}
    assert report.sentences[0].startswith("For 40 fps (25.0 ms a frame), the best measured point is alpha 0.5, rho 1")
    assert f"**{escaped(report.sentences[0])}**" in text
    assert "| alpha 0.5, rho 1 (1 of 2 runs finished) | 0.5" in text
    assert "| `mobilenet_v1_0.5_160_quant` | openvino, 2 threads |" in text
    assert re.search(r"the loss was not finite 5 times in a row \(log: ssd-[^ ]*seed1-[0-9a-f]+/train\.log\)", text)
    assert "best of 8 validations on this very list of images: it reads high" in text
    assert "theirs, on COCO: not comparable with AP on these data" in text
    content = json.loads((folder / "report.json").read_text())
    assert content["budget"]["best"] == 1
    assert content["points"][1]["runs"][1]["state"] == "failed"
    assert content["points"][0]["scores"]["AP"]["seeds"] == 2


def test_figures_of_an_earlier_report_do_not_stay(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    for name in ("kept.png", "holiday.png", "train_batch.jpg"):
        (folder / name).write_bytes(b"old")
    write_report(folder)
    assert not (folder / "kept.png").exists()  # one run keeps nothing of another
    assert (folder / "holiday.png").exists()
    assert (folder / "train_batch.jpg").exists()


def test_one_run_is_reported_without_a_front(make_run: Callable[..., Path]) -> None:
    report = write_report(make_run())
    names = {path.name for path in report.files}
    assert not {"ap_mult_adds.png", "kept.png"} & names
    assert {"confusion.png", "training.png"} <= names
    assert (report.advice, report.sentences) == (None, ())
    assert "- 1 point, 1 run, 1 finished; seeds: 0" in (report.files[0]).read_text(encoding="utf-8")


def test_a_sweep_that_has_only_begun_is_reported(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(open=tuple((alpha, 1.0, 0) for alpha in (1.0, 0.75, 0.5, 0.25)), latency=False)
    report = write_report(folder, ms=20)
    assert {path.suffix for path in report.files} == {".md", ".html", ".json"}
    assert report.sentences == ("No point was both scored and timed, so nothing can be said about a budget.",)
    assert (folder / "report.md").read_text().count("| not done | not begun |") == 4


def test_names_mean_nothing_to_markdown(make_sweep: Callable[..., Path], hostile: tuple[str, ...]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5), classes=(*hostile, "猫"), without_objects=hostile[1:2], title="a | <b> `c`")
    report = write_report(folder)
    assert {path.name for path in report.files} >= {"classes.png", "confusion.png", "precision_recall.png"}
    text = (folder / "report.md").read_text()
    for table in tables_of(text):
        assert len({len(row) for row in table}) == 1
        assert all(re.fullmatch(":?-+:?", cell) for cell in table[1])
    prose = re.sub(r"(`+).*?\1", "", text, flags=re.DOTALL)
    assert "<" not in prose
    assert r"| a\|b\*c\_d\_\[e\](f) | 0 | n/a | n/a |" in text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a|b", r"a\|b"),
        ("<i>&amp;", "&lt;i>&amp;amp;"),
        ("two\nlines", "two lines"),
        (r"\_", r"\\\_"),
        ("$x$ ~~y~~", r"\$x\$ \~\~y\~\~"),
    ],
)
def test_text_is_escaped(text: str, written: str) -> None:
    assert escaped(text) == written


def test_two_budgets_are_one_too_many_before_anything_is_written(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep()
    with pytest.raises(ConfigError, match="give one of them"):
        write_report(folder, fps=30, ms=33)
    assert not (folder / "report.md").exists()


def test_advice_on_the_page_changes_where_a_point_comes_within_reach(make_sweep: Callable[..., Path]) -> None:
    study = read_study(make_sweep(alphas=(1.0, 0.5)))
    edges = sorted(
        ms for point in study.points if point.latency for ms in (point.latency.total_ms.p50, point.latency.total_ms.p95)
    )
    steps = advice_steps(study)
    assert [step["from_ms"] for step in steps] == [0.0, *edges]
    assert steps[0]["sentences"][0].startswith(f"No measured point reaches {BUDGET}.")
    assert "95th percentile" in " ".join(steps[1]["sentences"])
    assert "95th percentile" not in " ".join(steps[2]["sentences"])


def test_the_page_of_8_points_and_80_classes_is_modest(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(rhos=(1.0, 0.75), classes=[f"class {index}" for index in range(80)])
    content = page_json(read_study(folder))
    assert len(json.dumps(content, separators=(",", ":"))) < 1_400_000
    curve = content["points"][0]["detail"]["curves"]["0.75"]["class 79"]
    assert 0 < len(curve) < 101  # without the zeros at the end
    assert all(isinstance(value, int) for value in curve)


def test_of_many_classes_the_most_confused_are_shown_and_nothing_is_lost() -> None:
    # class 2 is confused most: 5 + 1 off the diagonal; then class 0 with 5
    matrix = [[9, 0, 5, 0], [0, 8, 0, 0], [0, 1, 7, 0], [0, 0, 0, 0]]
    shown = shown_confusion(Confusion(["a", "b", "c", "background"], 0.5, {}, matrix), most=2)
    assert shown.labels == ["a", "c", "other", "background"]
    assert shown.matrix == [[9, 5, 0, 0], [0, 7, 1, 0], [0, 0, 8, 0], [0, 0, 0, 0]]
    assert shown.summed == 1


def test_a_class_named_other_is_not_the_sum_of_others(make_run: Callable[..., Path]) -> None:
    names = ["other", *(f"class {index}" for index in range(24))]
    measured = read_study(make_run(classes=names)).points[0].first
    assert measured is not None
    figure = draw_confusion(measured)
    assert figure is not None
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[-2:] == ["other (5)", "background"]  # 25 classes, 20 of them shown
    assert "other" in labels[:-2]


def test_what_is_asked_for_first_stands_first(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5))
    write_report(folder)
    points = tables_of((folder / "report.md").read_text())[0]
    assert points[0][:7] == ["point", "AP", "AP50", "network ms", "total ms", "fps", "M mult-adds"]
    assert points[0][7:10] == ["M params", "MB", "front"]
    left = [head for head, rule in zip(points[0], points[1], strict=True) if rule.startswith(":")]
    assert left == ["point", "front", "start", "timed with"]
    # 0.5: 1.13 · (0.88 · 0.25 + 0.12 · 0.5) = 0.316 G multiply-adds; 8 + 25 · 0.3164 = 15.9 ms, 3.5 more in total
    assert points[3][3:7] == ["15.9 / 16.7", "19.4 / 20.4", "51.5", "316"]


def test_the_command_of_an_extended_sweep_is_a_line_each(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5))
    plan = json.loads((folder / "sweep.json").read_text())
    command = "mnet-det sweep a.yaml --alpha 1 && mnet-det sweep a.yaml --alpha 1,0.5 data.root='```'"
    (folder / "sweep.json").write_text(json.dumps(plan | {"command": command}))
    write_report(folder)
    lines = (folder / "report.md").read_text().splitlines()
    start = lines.index("````sh")  # longer than what stands in it
    assert lines[start + 1 : start + 4] == [*command.split(" && "), "````"]


def test_unsteady_times_are_said_beside_the_advice(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5))
    latency = json.loads((folder / "latency.json").read_text())
    latency["rows"][1]["total_ms"] = {"p50": 10.0, "p95": 15.1}
    (folder / "latency.json").write_text(json.dumps(latency))
    said = "The times of 1 of 2 points were unsteady (95th percentile above 1.5 × the median)"
    for report in (write_report(folder), write_report(folder, fps=30)):
        assert report.sentences[-1].startswith(said)
        assert report.sentences[-1].endswith(f"while nothing else runs: `mnet-det report {folder} --again`.")
    text = (folder / "report.md").read_text()
    assert text.index("## Which one to take") < text.index(said) < text.index("| rate |")
    assert json.loads((folder / "report.json").read_text())["unsteady"]["points"] == [1]


def test_rates_that_all_name_one_point_are_one_sentence(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5))
    write_report(folder)
    assert "| rate |" in (folder / "report.md").read_text()
    latency = json.loads((folder / "latency.json").read_text())
    for row in latency["rows"]:
        row["total_ms"] = {"p50": 9.0, "p95": 9.5}
    (folder / "latency.json").write_text(json.dumps(latency))
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "| rate |" not in text
    assert "At 60 fps and every slower rate it is alpha 1, rho 1" in text


def test_a_hair_of_difference_is_not_drawn_as_a_large_one(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5))
    for path, ap in zip(sorted(folder.glob("*/measured.json")), (0.0004, 0.0008), strict=True):
        measured = json.loads(path.read_text())
        path.write_text(json.dumps(measured | {"scores": measured["scores"] | {"AP": ap}}))
    figure = draw_cost(read_study(folder), COSTS[0])
    assert figure is not None
    low, high = figure.axes[0].get_ylim()
    assert high - low == pytest.approx(LEAST_SPAN)
    assert -0.001 < low < 0.0004  # from about 0 on, where scores begin


def test_how_to_read_says_what_differs_between_points(make_sweep: Callable[..., Path]) -> None:
    text = " ".join(how_to_read(read_study(make_sweep(alphas=(1.0, 0.5), seeds=(0, 1), failed=((0.5, 1.0, 1),)))))
    assert "best of 8 validations" in text  # of 16 epochs every second
    assert "Points have 1 to 2 finished seeds" in text
    assert "do not begin from the same weights" in text


def test_times_that_something_disturbed_are_named(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5))
    assert "unsteady" not in " ".join(how_to_read(read_study(folder)))  # p95 is 1.05 times the median
    latency = json.loads((folder / "latency.json").read_text())
    latency["rows"][1]["total_ms"] = {"p50": 10.0, "p95": 15.1}
    (folder / "latency.json").write_text(json.dumps(latency))
    assert "The times of alpha 0.5, rho 1 are unsteady" in " ".join(how_to_read(read_study(folder)))


def test_a_single_validation_was_no_choice(make_run: Callable[..., Path]) -> None:
    folder = make_run(epochs=2)
    measured = json.loads((folder / "measured.json").read_text())
    measured["scores"]["runtime"] = "torch"
    (folder / "measured.json").write_text(json.dumps(measured))
    text = " ".join(how_to_read(read_study(folder)))
    assert "scored once while it trained" in text
    assert "AP was scored with torch, time was taken with openvino." in text


def test_how_ap_was_chosen_is_said_of_finished_runs_alone(make_sweep: Callable[..., Path]) -> None:
    """A sweep with one validation a run was said to read high as the best of all while its runs were unfinished."""
    others = ((0.75, 1.0, 0), (0.5, 1.0, 0))
    folder = make_sweep(alphas=(1.0, 0.75, 0.5), open=others, epochs=2)  # every second epoch is scored
    assert "scored once while it trained, on this very list" in " ".join(how_to_read(read_study(folder)))
    begun = make_sweep(alphas=(1.0, 0.75, 0.5), failed=((1.0, 1.0, 0),), open=others)
    next(begun.glob("*alpha1-*/measured.json")).unlink()
    text = " ".join(how_to_read(read_study(begun)))
    assert "best.pt" not in text
    assert "best F1" not in text


def test_runs_of_one_and_of_several_validations_are_told_apart(make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(alphas=(1.0, 0.5))
    (next(folder.glob("*alpha0.5*")) / "metrics.csv").write_text("epoch,loss,AP\n1,2.5,\n2,2.4,0.25\n")
    text = " ".join(how_to_read(read_study(folder)))
    assert "in 1 of 2 finished runs the best of 8 validations on this very list of images, which reads high" in text
    (next(folder.glob("*alpha0.5*")) / "metrics.csv").unlink()
    text = " ".join(how_to_read(read_study(folder)))
    assert "it reads high where it is the best of 8 validations" in text


def test_letters_are_of_the_first_font_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert installed_fonts()[0] == "DejaVu Sans"  # comes with matplotlib
    monkeypatch.setattr("mnet_det.report.figure_style.get_font_names", lambda: ["Yu Gothic", "Papyrus", "DejaVu Sans"])
    assert installed_fonts() == ["DejaVu Sans", "Yu Gothic"]


def test_letters_in_the_colours_of_points_are_legible_on_white() -> None:
    assert contrast("white", "black") == pytest.approx(21)
    assert all(contrast(ink(colour), "white") >= 4.5 for colour in COLOURS)
    assert ink("#0072b2") == "#0072b2"


def test_of_many_points_those_on_the_front_have_labels_and_the_legend_names_the_looks(
    make_sweep: Callable[..., Path],
) -> None:
    study = read_study(make_sweep(rhos=(1.0, 0.86, 0.71, 0.57)))
    classes = draw_classes(study)
    assert classes is not None
    assert {text.get_text() for text in classes.legends[0].get_texts()} == {point.label for point in leading(study)}
    assert 0 < len(leading(study)) < 16
    (cost,) = (cost for cost in COSTS if cost.key == "mult_adds")
    figure = draw_cost(study, cost)
    assert figure is not None
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {point.label for point in front(study, cost)} <= texts
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named[1:] == [
        *(f"colour: α {alpha}" for alpha in ("1", "0.75", "0.5", "0.25")),
        *(f"mark: ρ {rho}" for rho in ("1", "0.86", "0.71", "0.57")),
    ]
