"""tools/install.py leaves one OpenCV that can open a window, and touches nothing that is right."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "install.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Environment:
    """A pretended environment: pip's commands change what is installed, as the real ones do."""

    def __init__(self, script: ModuleType, monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
        self.versions = {name.replace("_", "-"): version for name, version in versions.items()}
        self.gui: str | None = "QT5" if "opencv-python" in self.versions else None
        self.new: set[str] | None = None
        self.commands: list[list[str]] = []
        monkeypatch.setattr(script, "_pip", self.pip)
        monkeypatch.setattr(script, "version_of", self.versions.get)
        monkeypatch.setattr(script, "built_gui", lambda: self.gui)
        monkeypatch.setattr(script, "new_packages", lambda extra, source: self.new)
        monkeypatch.setattr(sys, "prefix", "/somewhere/.venv")

    def pip(self, *words: str) -> None:
        self.commands.append(list(words))
        if words[0] == "uninstall":
            del self.versions["opencv-python-headless"]
            self.gui = None  # the two share their files
        elif words[1] == "--force-reinstall":
            self.gui = "QT5"
        elif "--no-deps" not in words:
            self.versions |= {"mnet-det": "0.1.0", "opencv-python": "5.0.0", "opencv-python-headless": "5.0.0"}
            self.gui = "NONE"  # the headless one came last


def test_a_fresh_environment_ends_with_one_opencv_that_opens_windows(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = Environment(script, monkeypatch)
    assert script.main(["train"]) == 0
    assert environment.commands == [
        ["install", "--editable", f"{script.ROOT}[train]"],
        ["uninstall", "--yes", "opencv-python-headless"],
        ["install", "--force-reinstall", "--no-deps", "opencv-python==5.0.0"],
    ]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "Done: mnet-det[train] with one OpenCV, which opens windows (QT5)."


def test_a_right_environment_only_has_the_checkout_linked_again(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = Environment(script, monkeypatch, mnet_det="0.1.0", opencv_python="5.0.0")
    environment.new = {"opencv-python-headless"}
    assert script.main(["train"]) == 0
    assert environment.commands == [["install", "--no-deps", "--editable", str(script.ROOT)]]


def test_the_base_needs_no_extra_and_can_be_copied_instead_of_linked(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = Environment(script, monkeypatch)
    assert script.main(["--no-editable"]) == 0
    assert environment.commands[0] == ["install", str(script.ROOT)]


def test_a_python_outside_any_environment_is_refused(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = Environment(script, monkeypatch)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert script.main(["train"]) == 1
    assert environment.commands == []
    assert "make a virtual environment first (python3 -m venv .venv)" in capsys.readouterr().err
    assert script.main(["train", "--system"]) == 0


def test_an_unknown_extra_is_wrong_usage_that_names_the_known_ones(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        script.main(["trian"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert all(extra in error for extra in ("train", "dev", "onnxruntime", "int8"))


def test_a_failing_pip_ends_without_a_traceback(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Environment(script, monkeypatch)

    def fail(*words: str) -> None:
        raise subprocess.CalledProcessError(1, [sys.executable, "-m", "pip", *words])

    monkeypatch.setattr(script, "_pip", fail)
    assert script.main(["train"]) == 1
    assert "'-m pip install --editable" in capsys.readouterr().err


def test_an_opencv_that_stays_broken_is_told(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Environment(script, monkeypatch)
    monkeypatch.setattr(script, "built_gui", lambda: None)
    assert script.main(["train"]) == 1
    assert "OpenCV cannot be imported; 'python -m mnet_det doctor' says more" in capsys.readouterr().err


def write_opencv_wheel(folder: Path, name: str, *, gui: str) -> None:
    """A wheel as small as can be, whose `cv2` tells its window system and which owns one file under the shared name."""
    stem, information = f"{name.replace('-', '_')}-5.0.0", f"{name.replace('-', '_')}-5.0.0.dist-info"
    code = f"def getBuildInformation():\n    return 'General\\n  GUI:   {gui}\\n    GTK+:   NO\\n'\n"
    files = {
        "cv2/__init__.py": code,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 5.0.0\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{information}/RECORD"])
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, text in {**files, f"{information}/RECORD": record}.items():
            wheel.writestr(path, text)


def test_real_pip_leaves_one_whole_opencv(tmp_path: Path) -> None:
    """In a real environment whose two small OpenCVs own the same file, the headless one written last."""
    pip = pytest.importorskip("pip")
    write_opencv_wheel(tmp_path, "opencv-python", gui="QT5")
    write_opencv_wheel(tmp_path, "opencv-python-headless", gui="NONE")
    venv.create(tmp_path / ".venv", with_pip=False, symlinks=os.name != "nt")
    python = tmp_path / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    shutil.copytree(Path(pip.__file__).parent, tmp_path / "pip_only" / "pip")
    offline = {"PYTHONPATH": str(tmp_path / "pip_only"), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    environment = {name: text for name, text in os.environ.items() if not name.startswith("PIP_")} | offline

    def run(*words: str) -> str:
        child = subprocess.run(
            [str(python), *words], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )
        assert child.returncode == 0, child.stdout + child.stderr
        return child.stdout

    for name in ("opencv-python", "opencv-python-headless"):
        run("-m", "pip", "install", "--quiet", name)
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import install; "
    assert run("-c", f"{code}print(install.built_gui())").strip() == "NONE"
    mended = run("-c", f"{code}print(install.keep_one_opencv())")
    assert mended.splitlines()[-1] == "QT5"
    assert "+ pip uninstall --yes opencv-python-headless" in mended
    assert "headless" not in run("-m", "pip", "list")
    assert run("-c", f"{code}print(install.keep_one_opencv())") == "QT5\n"  # no second time
