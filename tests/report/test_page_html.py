"""The report's page in a real browser: it sorts, opens and advises, and asks for nothing."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mnet_det.report.advice import advise, budget_words, sentences
from mnet_det.report.page import embedded, fill_page
from mnet_det.report.study import read_study
from mnet_det.report.study_report import write_page

NAME = "</script><script>document.title = 'broken out'</script>"


def driver() -> ModuleType:
    """The tests of the live page know how to drive a browser."""
    path = Path(__file__).parents[1] / "live" / "test_page.py"
    spec = importlib.util.spec_from_file_location("live_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DRIVER = driver()
needs_browser = pytest.mark.skipif(DRIVER.PROGRAM is None, reason="no Chromium or Chrome on the PATH")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    running = DRIVER.Chromium(tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def window(browser: Any) -> Any:
    return DRIVER.Tab(browser)


@pytest.fixture
def show(browser: Any, window: Any) -> Callable[[Path], Any]:
    """Writes the page of a folder and opens it."""

    def open_page(folder: Path) -> Any:
        write_page(read_study(folder), folder / "report.html")
        browser.events.clear()
        window.call("Page.navigate", url=(folder / "report.html").as_uri())
        DRIVER.until(lambda: window("document.readyState === 'complete' && $('read-list').children.length > 0"))
        return window

    return open_page


def column(tab: Any, index: int) -> list[str]:
    """The cells of a column of the main table."""
    return tab(f"[...document.querySelectorAll('#point-table tbody tr')].map((row) => row.children[{index}].innerText)")


def complaints(browser: Any) -> list[Any]:
    bad = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    return [event for event in browser.events if event["method"] in bad]


def test_no_name_ends_the_data() -> None:
    text = embedded({NAME: "\u2028"})
    assert "<" not in text
    assert "\u2028" not in text
    assert json.loads(text) == {NAME: "\u2028"}


def test_what_stands_in_a_name_is_no_placeholder() -> None:
    page = fill_page({"a": "{{title}}"}, title="<{{data}}>")
    assert "<title>&lt;{{data}}&gt;</title>" in page
    assert '{"a":"{{title}}"}' in page


def test_the_page_names_nothing_elsewhere() -> None:
    page = fill_page({}, title="t").replace("http://www.w3.org/2000/svg", "")  # the name of SVG's elements
    assert "://" not in page
    assert not re.search(r"<(link|script|img|iframe)[^>]+(src|href)=\"(?!data:)", page)
    assert "default-src 'none'" in page.replace("&#x27;", "'")


@needs_browser
def test_tables_sort_by_click_and_key(show: Callable[[Path], Any], make_sweep: Callable[..., Path]) -> None:
    tab = show(make_sweep(seeds=(0, 1), failed=((0.5, 1.0, 0), (0.5, 1.0, 1))))
    widest = ["alpha 1, rho 1", "alpha 0.75, rho 1", "alpha 0.5, rho 1", "alpha 0.25, rho 1"]
    names = "[...document.querySelectorAll('#point-table tbody td button')].map((button) => button.textContent)"
    sort = "[...document.querySelectorAll('#point-table th')].map((head) => head.getAttribute('aria-sort'))"
    assert tab(names) == widest
    tab.click("#point-table th:nth-child(2) button")  # AP
    assert tab(sort)[1] == "descending"
    assert tab(names) == [widest[0], widest[1], widest[3], widest[2]]  # what has no AP is last
    tab("document.querySelector('#point-table th:nth-child(2) button').focus()")
    tab.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
    tab.call("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter", windowsVirtualKeyCode=13)
    assert tab(sort)[1] == "ascending"
    assert tab(names) == [widest[3], widest[1], widest[0], widest[2]]
    assert [one for one in tab(sort) if one] == ["ascending"]


@needs_browser
def test_points_open_from_plot_and_table(show: Callable[[Path], Any], make_sweep: Callable[..., Path]) -> None:
    tab = show(make_sweep(classes=(NAME, "b")))
    assert tab("document.title") == "finetune_ssd300_mobilenet_v1.yaml"
    assert tab("$('details').hidden")
    tab.click("#plot-figure .point[data-point='2']")
    assert tab("$('details-title').textContent") == "alpha 0.5, rho 1"
    heads = tab("[...document.querySelectorAll('#panes h3')].map((head) => head.textContent)")
    assert heads == [
        "Twelve numbers by seed",
        "Latency",
        "Classes, seed 0",
        "Precision and recall, seed 0",
        "What is taken for what, seed 0",
        "Training",
        "Configuration",
    ]
    assert NAME in tab("$('panes').textContent")
    tab("document.querySelector(\"#plot-figure .point[data-point='0']\").focus()")
    assert "alpha 1, rho 1" in tab("$('tip').textContent")
    tab.press("Enter")
    assert tab("$('details-title').textContent") == "alpha 1, rho 1"
    tab.press("Escape")
    assert tab("$('details').hidden")
    tab.click("#point-table tbody tr:nth-child(2) td:nth-child(4)")
    assert tab("$('details-title').textContent") == "alpha 0.75, rho 1"
    assert tab("document.title") == "finetune_ssd300_mobilenet_v1.yaml"


@needs_browser
def test_the_plot_rings_the_front_of_the_report(show: Callable[[Path], Any], make_sweep: Callable[..., Path]) -> None:
    folder = make_sweep(rhos=(1.0, 0.5))
    tab = show(folder)
    for key in ("mult_adds", "params", "total_ms"):
        tab(f"$('x').value = '{key}'; drawPlot()")
        ringed = tab("document.querySelectorAll('#plot-figure circle.front').length")
        assert 0 < ringed == tab(f"data.fronts.{key}.length") < 8


@needs_browser
@pytest.mark.parametrize("fps", [25, 35, 37, 200])
def test_the_page_advises_as_the_report_does(
    fps: int, show: Callable[[Path], Any], make_sweep: Callable[..., Path]
) -> None:
    folder = make_sweep(seeds=(0, 1))
    tab = show(folder)
    tab(f"$('fps').value = {fps}; $('fps').dispatchEvent(new Event('input'))")
    study = read_study(folder)
    advice = advise(study, 1000 / fps)
    said = tab("[...$('sentences').children].map((line) => line.textContent)")
    assert said == sentences(advice, budget=budget_words(1000 / fps, fps=fps))
    within = [point.latency is not None and point.latency.fps >= fps for point in study.points]
    assert ["within" in cell for cell in column(tab, 0)] == within


@needs_browser
def test_what_was_not_timed_is_neither_within_the_budget_nor_over_it(
    show: Callable[[Path], Any], make_sweep: Callable[..., Path]
) -> None:
    folder = make_sweep()
    latency = json.loads((folder / "latency.json").read_text())
    (folder / "latency.json").write_text(json.dumps(latency | {"rows": latency["rows"][1:]}))  # the widest is missing
    tab = show(folder)
    tab("$('x').value = 'mult_adds'; $('fps').value = 36; showAdvice()")
    assert tab("[...document.querySelectorAll('#point-table tbody tr')].map((row) => row.matches('.over'))") == [
        False,
        True,  # 2.1 + 8 + 1.4 ms and 25 ms for each of 0.66 G multiply-adds: 28 ms, 35.7 fps
        False,
        False,
    ]
    assert not tab("document.querySelector(\"#plot-figure .point[data-point='0']\").matches('.over')")
    assert "alpha 1, rho 1 has AP" in tab("$('sentences').textContent")


@needs_browser
def test_what_less_costs_and_what_to_measure_again_is_told(
    show: Callable[[Path], Any], make_sweep: Callable[..., Path]
) -> None:
    folder = make_sweep(alphas=(1.0, 0.5))
    plan = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(
        json.dumps(plan | {"command": "mnet-det sweep a && mnet-det sweep a --seeds 0,1"})
    )
    latency = json.loads((folder / "latency.json").read_text())
    for row, ms in zip(latency["rows"], (12.4, 4.0), strict=True):
        row["total_ms"] = {"p50": ms, "p95": 1.6 * ms}
    (folder / "latency.json").write_text(json.dumps(latency))
    tab = show(folder)
    cells = tab("[...document.querySelectorAll('#less-table tbody td')].map((cell) => cell.textContent)")
    assert cells[0] == "alpha 0.5, rho 1"
    assert re.fullmatch(r"-0\.\d{3}", cells[1])
    assert cells[2:] == ["one seed each", "28.0%", "28.7%", "3.1×"]  # 12.4 / 4.0
    assert tab("$('less-note').textContent").startswith("Relative to alpha 1, rho 1: AP")
    assert tab("$('unsteady').textContent").startswith("The times of 2 of 2 points were unsteady")
    assert tab("$('unsteady').textContent").endswith(f": mnet-det report {folder} --again.")
    assert "At 60 fps and every slower rate it is alpha 1, rho 1" in tab("$('rate-table').textContent")
    commands = tab("[...document.querySelectorAll('#facts code')].map((line) => line.textContent)")
    assert commands == ["mnet-det sweep a", "mnet-det sweep a --seeds 0,1"]


@needs_browser
def test_a_hair_of_difference_is_no_mountain_and_the_axis_can_be_read(
    show: Callable[[Path], Any], make_sweep: Callable[..., Path]
) -> None:
    folder = make_sweep()
    for place, path in enumerate(sorted(folder.glob("*/measured.json"))):
        measured = json.loads(path.read_text())
        path.write_text(json.dumps(measured | {"scores": measured["scores"] | {"AP": 0.58 + 0.0001 * place}}))
    tab = show(folder)
    assert tab("$('less').hidden") is False
    axis = "[...document.querySelectorAll('#plot-figure text.axis[text-anchor=end]')]"
    ticks = [text for text in tab(f"{axis}.map((text) => text.textContent)") if "fps" not in text]
    assert ticks == ["0.56", "0.57", "0.58", "0.59", "0.6"]
    for y in ('["number","AP"]', '["number","AP50"]'):
        for values in ("[0.5801, 0.5804]", "[0.12345, 0.98765]", "[0, 0]"):
            assert tab(f"range({values}, {{ floor: 0, least: LEAST }}).every((value) => value >= 0 && value < 1.2)")
        tab(f"$('y').value = '{y}'; drawPlot()")
        name = tab("document.querySelector('#plot-figure text[transform]').getBoundingClientRect().right")
        assert name <= min(tab(f"{axis}.map((text) => text.getBoundingClientRect().left)"))
    small = "frame({ x: [0, 1], y: [0.12341, 0.12349], xTitle: 'x', yTitle: 'y' })"
    assert tab(f"{small}.left") == 26 + 7 * len("0.1234")


@needs_browser
def test_a_table_that_goes_on_has_a_shade_at_its_edge(
    show: Callable[[Path], Any], make_sweep: Callable[..., Path]
) -> None:
    tab = show(make_sweep())
    style = "getComputedStyle($('point-table'))"
    assert tab(f"{style}.backgroundAttachment") == "local, scroll"  # the first covers the second at the end
    assert tab(f"{style}.backgroundImage").count("linear-gradient") == 2


@needs_browser
def test_axes_can_be_chosen(show: Callable[[Path], Any], make_sweep: Callable[..., Path]) -> None:
    tab = show(make_sweep(rhos=(1.0, 0.64)))
    for key in ("mult_adds", "params", "network_ms", "total_ms", "file_bytes"):
        for y in ('["number","AP_small"]', '["class","WBC"]'):
            tab(f"$('x').value = '{key}'; $('y').value = '{y}'; $('x').dispatchEvent(new Event('change'))")
            assert tab("document.querySelectorAll('#plot-figure .point').length") == 8
    tab("$('log').click()")
    assert "log" not in tab("$('plot-figure').textContent")


@needs_browser
def test_the_paper_s_detectors_are_marked_on_coco_alone(
    show: Callable[[Path], Any], make_sweep: Callable[..., Path]
) -> None:
    from mnet_det.weights.coco_labels import COCO_LABELS

    names = [name for name in COCO_LABELS if name != "???"]
    for classes, marks in ((("a", "b"), 0), (names, 9)):
        tab = show(make_sweep(alphas=(1.0, 0.5), classes=classes))
        tab("$('x').value = 'mult_adds'; $('x').dispatchEvent(new Event('change'))")
        assert tab("document.querySelectorAll('#plot-figure .paper').length") == marks


@needs_browser
def test_no_request_no_complaint_and_nothing_sticks_out(
    browser: Any,
    show: Callable[[Path], Any],
    make_sweep: Callable[..., Path],
    make_run: Callable[..., Path],
    hostile: tuple[str, ...],
) -> None:
    long = "a very long name of a class " * 6
    unfinished = {"open": ((1.0, 1.0, 0),), "failed": ((0.5, 1.0, 0),), "latency": False, "title": "x" * 300}
    for folder in (make_sweep(classes=(*hostile, long), seeds=(0, 1)), make_run(), make_sweep(**unfinished)):
        tab = show(folder)
        for width, height in ((1280, 900), (768, 1024), (390, 844)):
            tab.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=width < 500,
            )
            tab("open(0); drawPlot()")
            assert tab("document.documentElement.scrollWidth <= innerWidth")
            assert tab("innerWidth") == width
            scales = tab("[...document.querySelectorAll('#plot-figure svg')].map((svg) => svg.getScreenCTM().a)")
            assert all(scale >= 0.99 for scale in scales)  # letters are not shrunk with the plot
        asked = [event for event in browser.events if event["method"] == "Network.requestWillBeSent"]
        urls = {event["params"]["request"]["url"] for event in asked}
        assert {url for url in urls if not url.startswith("data:")} == {(folder / "report.html").as_uri()}
        assert complaints(browser) == []
    tab.call("Emulation.clearDeviceMetricsOverride")
