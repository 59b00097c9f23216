"""The base install: what runs without torch, in a child process where importing it fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mnet_det.images import write_image

PACKAGE = Path(__file__).parents[1] / "mnet_det"
TORCH_SIDE = {f"mnet_det.data.{name}" for name in ("augment", "image_cache", "loader", "mix", "pixels")}
"""What of the data is for training alone; the rest are tools for everybody."""

WITHOUT_TORCH = """
import sys

class Absent:
    names = {"torch", "torchvision", "albumentations", "pycocotools", "matplotlib", "tensorboard", "onnx", "onnxscript"}
    names |= {"tflite", "flatbuffers", "h5py", "safetensors"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked by the test)", name=name)

sys.meta_path.insert(0, Absent())
"""


def run(code: str, *, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", errors="replace", cwd=folder, check=False
    )


def torch_free_modules() -> list[str]:
    paths = [path for folder in ("runtime", "live") for path in sorted((PACKAGE / folder).glob("*.py"))]
    inside = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]
    data = [f"mnet_det.data.{path.stem}" for path in sorted((PACKAGE / "data").glob("[a-z]*.py"))]
    data = [name for name in data if name not in TORCH_SIDE]
    top = [f"mnet_det.{path.stem}" for path in sorted(PACKAGE.glob("[a-z]*.py")) if path.stem != "quickstart"]
    return ["mnet_det", *top, *data, *(name.removesuffix(".__init__") for name in inside)]


def test_the_runtime_side_imports_without_torch() -> None:
    code = f"""{WITHOUT_TORCH}
import importlib, traceback
for name in {torch_free_modules()!r}:
    try:
        importlib.import_module(name)
    except ImportError:
        print(name, traceback.format_exc().strip().splitlines()[-1])
print("torch" in sys.modules)
"""
    child = run(code)
    assert child.stdout.splitlines() == ["False"], child.stdout + child.stderr


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = """
import sys
before = {name.partition(".")[0] for name in sys.modules}  # a .pth file of the environment may import things
import mnet_det
print(sorted({name.partition(".")[0] for name in sys.modules} - before - sys.stdlib_module_names))
"""
    assert run(code).stdout.strip() == "['mnet_det']"


@pytest.mark.parametrize(
    "words",
    [["--help"], ["toy", "drawn", "--train", "2", "--val", "1"], ["demo", "--help"], ["weights", "list"]],
    ids=" ".join,
)
def test_a_verb_runs_without_torch(tmp_path: Path, words: list[str]) -> None:
    assert_runs_without_torch(words, folder=tmp_path)


def test_a_data_set_is_drawn_checked_and_converted_without_torch(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png", np.zeros((48, 64, 3), np.uint8))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 1 1\n")
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    (tmp_path / "a.xml").write_text(f"<annotation><object><name>dog</name>{box}</object></annotation>")
    assert_runs_without_torch(["convert", "voc", ".", "--images", "images", "--out", "v.json"], folder=tmp_path)
    assert_runs_without_torch(["convert", "yolo", ".", "--classes", "dog", "--out", "y.json"], folder=tmp_path)
    val = ["--val", "y.json", "--val-images", "images"]
    assert_runs_without_torch(["check", "v.json", "--images", "images", *val], folder=tmp_path)


def test_an_exported_model_needs_no_torch(tmp_path: Path, toy: Path, toy_model: Path) -> None:
    model, clip, picture = str(toy_model), str(toy / "clip.mp4"), str(next((toy / "val2017").iterdir()))
    for words in (
        ["demo", clip, "--model", model, "--screen", "none", "--frames", "3", "--stats", "s.json", "--record", "c.mp4"],
        ["predict", model, picture, "--out", "found"],
        ["bench", model, "--runtime", "openvino", "--rounds", "1"],
    ):
        assert_runs_without_torch(words, folder=tmp_path)
    assert {"s.json", "c.mp4", "found"} <= {path.name for path in tmp_path.iterdir()}


def assert_runs_without_torch(words: list[str], *, folder: Path) -> None:
    code = f"""{WITHOUT_TORCH}
sys.argv = ["mnet-det", *{words!r}]
from mnet_det.cli import main
sys.exit(main())
"""
    child = run(code, folder=folder)
    assert child.returncode == 0, child.stdout + child.stderr
