"""Imports point down, and the runtime side never imports torch: read from the source, imports inside functions too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LEVELS = {
    "mnet_det": -1,  # `import mnet_det` is free
    **dict.fromkeys(("structures", "errors"), 0),
    **dict.fromkeys(
        ("files", "cache", "image_header", "interrupt", "sweep_folder"), 0.5
    ),  # level 1, below the rest of it
    "download": 0.75,  # writes files, and the catalogue pulls with it
    **dict.fromkeys(("config", "images", "preprocess", "draw", "catalogue", "doctor"), 1),
    **dict.fromkeys(("models", "data", "weights", "runtime"), 2),
    **dict.fromkeys(("engine", "report", "live"), 3),
    **dict.fromkeys(("cli", "quickstart", "__main__", "tools", "demo"), 4),
}
SIDEWAYS = {("weights", "models"), ("cli", "quickstart"), ("__main__", "cli")}
"""The only imports between parts of one level."""

BELOW_EVERYTHING = sys.stdlib_module_names | {"numpy"}
TORCH_SIDE = {"torch", "torchvision", "timm", "albumentations", "pycocotools", "matplotlib", "tensorboard"}
TORCH_FREE = (
    "mnet_det.runtime",
    "mnet_det.live",
    "mnet_det.data.toy",
    "mnet_det.data.coco",
    "mnet_det.data.check",
    "mnet_det.data.convert",
    "demo",
)
FILES = sorted(path for folder in ("mnet_det", "tools", "demo") for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    """`mnet_det/models/ssd.py` is mnet_det.models.ssd, `mnet_det/models/__init__.py` is mnet_det.models."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """What the table of levels calls a module: mnet_det.models.ssd belongs to models, tools.install to tools."""
    first, *rest = module.split(".")
    return rest[0] if first == "mnet_det" and rest else first


def imports(source: str, *, module: str, package: str) -> Iterator[tuple[str, bool]]:
    """Each imported name with its module in front, and whether it is for the type checker only."""
    tree = ast.parse(source)
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            names = [str(node.args[0].value)] if isinstance(node.args[0], ast.Constant) else [f"? in {module}"]
        for name in names:
            yield name, id(node) in typing_only


def faults(source: str, *, module: str, is_package: bool = False) -> list[str]:
    """What the imports of one file break, as sentences."""
    package = module if is_package else module.rpartition(".")[0]
    part = part_of(module)
    found = [] if part in LEVELS else [f"{module} has no level"]
    for name, typing_only in imports(source, module=module, package=package):
        top = name.split(".")[0]
        if top in ("mnet_det", "tools", "demo"):
            found += _own_faults(part, name)
        elif LEVELS.get(part, 0) <= 0 and top not in BELOW_EVERYTHING and not typing_only:
            found.append(f"{module} imports {top}; level 0 takes numpy and the standard library only")
        elif module.startswith(TORCH_FREE) and top in TORCH_SIDE and not typing_only:
            found.append(f"{module} imports {top}; it must run without torch")
    return found


def _own_faults(part: str, name: str) -> list[str]:
    target = part_of(name)
    if target.startswith("__") and target != "__main__":
        return []  # __version__
    if target not in LEVELS:
        return [f"{part} imports {name}, which has no level"]
    if target == part or (part, target) in SIDEWAYS or LEVELS[target] < LEVELS.get(part, 0):
        return []
    return [f"{part} imports {target}, which does not lie below it"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert faults(source, module=module_of(path), is_package=path.name == "__init__.py") == []


def test_torch_free_files_import_no_file_that_needs_torch() -> None:
    """Nor one that imports such a file, however far away."""
    sources = {module_of(path): path for path in FILES}
    needed: dict[str, set[str]] = {}
    for module, path in sources.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found = imports(path.read_text(encoding="utf-8"), module=module, package=package)
        needed[module] = {name for name, typing_only in found if not typing_only}
    tainted = {module for module, names in needed.items() if {name.split(".")[0] for name in names} & TORCH_SIDE}
    tainted -= {"mnet_det.cli"}  # it imports the torch side inside its commands; test_torch_free runs it
    while True:
        reached = {
            module
            for module, names in needed.items()
            if any(name in tainted or name.rpartition(".")[0] in tainted for name in names)
        } - {"mnet_det.cli", *tainted}
        if not reached:
            break
        tainted |= reached
    assert [module for module in sorted(tainted) if module.startswith(TORCH_FREE)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mnet_det.structures", "import mnet_det.config"),
        ("mnet_det.structures", "import cv2"),
        ("mnet_det.config", "def f():\n    from mnet_det.models import SSD"),
        ("mnet_det.config", "from mnet_det import draw"),
        ("mnet_det.models.ssd", "from ..engine import train"),
        ("mnet_det.models.ssd", "from .. import data"),
        ("mnet_det.models.ssd", "if TYPE_CHECKING:\n    from mnet_det.engine.train import Run"),
        ("mnet_det.models.ssd", "import importlib\nimportlib.import_module('mnet_det.engine')"),
        ("mnet_det.models.ssd", "import tools.bench"),
        ("mnet_det.live.loop", "from mnet_det.engine.torch_backend import TorchBackend"),
        ("mnet_det.runtime.predictor", "def f():\n    import torch.nn as nn"),
        ("mnet_det.data.toy", "try:\n    from torchvision.ops import nms\nexcept ImportError:\n    pass"),
        ("mnet_det.report.plots", "from mnet_det.live.overlay import Overlay"),
        ("mnet_det.report.plots", "from mnet_det.misc import f"),
        ("mnet_det.misc", "import os"),
        ("mnet_det", "from mnet_det.errors import MnetDetError"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(faults(source, module=module)) == 1


def test_a_relative_import_in_a_package_starts_at_the_package() -> None:
    source = "from .ssd import SSD\nfrom ..engine import train"
    assert faults(source, module="mnet_det.models", is_package=True) == [
        "models imports engine, which does not lie below it"
    ]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mnet_det.structures", "import os\nimport numpy as np\nif TYPE_CHECKING:\n    from torch import Tensor"),
        ("mnet_det.models.ssd", "from mnet_det.models.anchors import AnchorGenerator\nfrom .anchors import grid"),
        ("mnet_det.weights.tflite", "from mnet_det.models import SSD"),
        ("mnet_det.engine.torch_backend", "from mnet_det.runtime.backends import Backend\nimport torch"),
        ("mnet_det.runtime.cache", "from mnet_det import __version__"),
        ("mnet_det.cli", "def train():\n    from mnet_det.engine.train import train"),
        ("tools.bench", "from mnet_det.engine import train"),
    ],
)
def test_a_right_import_is_none(module: str, source: str) -> None:
    assert faults(source, module=module) == []
