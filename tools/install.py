"""Install mnet-det into this interpreter's environment, with an OpenCV that can open a window.

    python3 -m venv .venv && .venv/bin/python tools/install.py train

`pip install -e '.[train]'` alone leaves two OpenCVs: albumentations requires opencv-python-headless, the demo's window
needs opencv-python, and both own the folder `cv2/`. Pip's order decides which one is there, and removing the headless
one afterwards takes the other's files with it. So the headless one goes, then the other is written anew.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADLESS = "opencv-python-headless"
PRINT_GUI = """
import cv2
lines = (line.split() for line in cv2.getBuildInformation().splitlines())
print(next((words[1] for words in lines if len(words) > 1 and words[0] == "GUI:"), "NONE"))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Install, mend OpenCV, and say in the last line what is there now."""
    arguments = _parse(argv)
    if sys.prefix == sys.base_prefix and not arguments.system:
        return _fail(
            f"{sys.executable} is the system's own Python; make a virtual environment first "
            "(python3 -m venv .venv) and run this with its Python, or pass --system"
        )
    try:
        install(arguments.extra, editable=arguments.editable)
        gui = keep_one_opencv()
    except subprocess.CalledProcessError as error:
        return _fail(
            f"stopped: '{' '.join(map(str, error.cmd[1:]))}' failed with status {error.returncode} (see above)"
        )
    if gui in (None, "NONE"):
        came = "cannot be imported" if gui is None else "cannot open a window"
        return _fail(f"installed, but OpenCV {came}; 'python -m mnet_det doctor' says more")
    print(f"Done: mnet-det{_bracket(arguments.extra)} with one OpenCV, which opens windows ({gui}).")
    return 0


def install(extra: str | None, *, editable: bool) -> None:
    """Let pip install this checkout; where only the headless OpenCV is absent, nothing but the checkout itself.

    Raises:
        subprocess.CalledProcessError: pip failed; it has already said why.
    """
    source = ["--editable"] if editable else []
    new = new_packages(extra, source)
    if new is not None and new <= {HEADLESS}:
        _pip("install", "--no-deps", *source, str(ROOT))
    else:
        _pip("install", *source, f"{ROOT}{_bracket(extra)}")


def new_packages(extra: str | None, source: Sequence[str]) -> set[str] | None:
    """Names that pip would install besides this checkout; None where it is not installed yet or pip cannot say."""
    if version_of("mnet-det") is None:
        return None  # the first time the answer is known, and asking costs as much as installing
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        try:
            _pip("install", "--quiet", "--dry-run", "--report", str(report), *source, f"{ROOT}{_bracket(extra)}")
        except subprocess.CalledProcessError:
            return None
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {item["metadata"]["name"] for item in items} - {"mnet-det"}


def keep_one_opencv() -> str | None:
    """Remove the headless OpenCV and write the other anew where that is needed.

    Returns:
        The window system that the remaining one was built with ("NONE" without one), or None if it does not import.

    Raises:
        subprocess.CalledProcessError: pip failed; it has already said why.
    """
    gui = built_gui()
    if version_of(HEADLESS) is None and gui not in (None, "NONE"):
        return gui
    if version_of(HEADLESS) is not None:
        _pip("uninstall", "--yes", HEADLESS)
    _pip("install", "--force-reinstall", "--no-deps", f"opencv-python=={version_of('opencv-python')}")
    return built_gui()


def built_gui() -> str | None:
    """The window system named in OpenCV's build ("QT5", "COCOA", "WIN32UI", "NONE"); None if it does not import.

    Asked of a child process: this one may have to replace the very files.
    """
    child = subprocess.run([sys.executable, "-c", PRINT_GUI], capture_output=True, text=True, check=False)
    return child.stdout.strip() if child.returncode == 0 else None


def version_of(name: str) -> str | None:
    """The version of a distribution installed in this environment, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parser = argparse.ArgumentParser(
        description="Install mnet-det into this Python's environment, with an OpenCV that can open a window.",
        epilog="Example: .venv/bin/python tools/install.py train",
    )
    parser.add_argument(
        "extra",
        nargs="?",
        choices=sorted(project["optional-dependencies"]),
        help="what to install beside the base (which runs exported models and the demo)",
    )
    parser.add_argument(
        "-e",
        "--editable",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="changes in this folder take effect at once (the default)",
    )
    parser.add_argument("--system", action="store_true", help="allow a Python outside any virtual environment")
    return parser.parse_args(argv)


def _bracket(extra: str | None) -> str:
    return f"[{extra}]" if extra else ""


def _pip(*words: str) -> None:
    print(f"+ pip {' '.join(words)}", flush=True)
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)


def _fail(message: str) -> int:
    print(f"install.py: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
