"""What is installed, what is wrong with it, and the line that mends it.

Standard library only, and each package is tried in a child process: a broken one ends that child, not the doctor.
"""

from __future__ import annotations

import operator
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 14)
"""What `requires-python` in pyproject.toml says."""

PROBE_TIMEOUT_S = 120
"""The first import of torch from a cold disk takes most of a minute."""

TORCH_PROBE = """
import torch, torchvision
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
print(torch.cuda.get_device_name(0) if cuda else "Apple GPU" if mps else "no GPU")
"""
OPENCV_PROBE = """
import cv2
lines = (line.split() for line in cv2.getBuildInformation().splitlines())
print(next((words[1] for words in lines if len(words) > 1 and words[0] == "GUI:"), "NONE"))
"""
OPENVINO_PROBE = """
import sys
sys.modules["openvino_telemetry"] = None  # its import alone would report to its makers
import openvino
print("computes in", ", ".join(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")))
"""
ONNXRUNTIME_PROBE = """
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime
print(", ".join(onnxruntime.get_available_providers()))
"""
ALBUMENTATIONS_PROBE = "import albumentations; print('imports')"
PYCOCOTOOLS_PROBE = "import pycocotools.mask; print('imports')"

INSTRUCTION_SETS = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx512vnni", "avx_vnni"},
    "AMX": {"amx_tile"},
    "NEON": {"asimd", "neon"},
    "dot product": {"asimddp"},
}
"""What makes float32 and 8-bit networks fast, and the names that Linux and macOS give it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        status: `missing` is something optional; only a `fault` needs mending.
        detail: what is there.
        mend: the command or the deed that changes it; empty where there is nothing to do.
    """

    name: str
    status: Literal["ok", "missing", "fault"]
    detail: str
    mend: str = ""


@dataclass(frozen=True)
class Requirement:
    """One of our own dependencies: a distribution, its versions such as `<3,>=2.0`, its extra ('' for the base)."""

    name: str
    versions: str
    extra: str


def examine(*, cache: Path | None = None) -> list[Finding]:
    """Look at this Python, its packages and this machine; takes as long as importing torch once.

    Args:
        cache: the folder of the user's cache, to see whether it can be written.
    """
    checks: list[Callable[[], Finding]] = [
        check_python,
        lambda: check_requirements("", "base packages"),
        lambda: check_requirements("train", "train packages"),
        check_torch,
        lambda: _check_import("albumentations", ALBUMENTATIONS_PROBE, extra="train"),
        lambda: _check_import("pycocotools", PYCOCOTOOLS_PROBE, extra="train"),
        check_opencv,
        lambda: _check_import("openvino", OPENVINO_PROBE, extra=""),
        lambda: _check_import("onnxruntime", ONNXRUNTIME_PROBE, extra="onnxruntime"),
        lambda: check_requirements("int8", "int8 packages"),
        check_cpu,
        check_memory,
        check_display,
        check_cameras,
    ]
    if cache is not None:
        checks.append(lambda: check_cache(cache))
    with ThreadPoolExecutor(max_workers=4) as pool:  # each thread only waits for its child
        return list(pool.map(lambda check: check(), checks))


def render(findings: Sequence[Finding]) -> str:
    """Findings as plain lines, each with its mend below it, unwrapped so that it can be copied."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<8}{finding.name:<18}{finding.detail}")
        if finding.mend:
            lines.append(f"{'':<8}{'mend:':<18}{finding.mend}")
    return "\n".join(lines)


def check_python() -> Finding:
    """The interpreter's version, against the range that the package is made for."""
    detail = f"{platform.python_version()} ({sys.executable})"
    if PYTHON_FROM <= sys.version_info[:2] < PYTHON_BELOW:
        return Finding("Python", "ok", detail)
    first, last = PYTHON_FROM, (PYTHON_BELOW[0], PYTHON_BELOW[1] - 1)
    wanted = f"{first[0]}.{first[1]} to {last[0]}.{last[1]}"
    return Finding("Python", "fault", f"{detail}; needs {wanted}", f"make the environment anew with Python {wanted}")


def check_requirements(extra: str, name: str) -> Finding:
    """The packages of one extra ('' for the base) against the versions in our own metadata."""
    try:
        wanted = [requirement for requirement in read_requirements() if requirement.extra == extra]
    except metadata.PackageNotFoundError:
        mend = _python("-m pip install --editable .")
        return Finding(name, "fault", "mnet-det itself is not installed, only its folder is seen", mend)
    if not wanted:
        mend = _python("-m pip install --editable .")
        return Finding(name, "fault", "the installed mnet-det is older than this code, and does not know of them", mend)
    versions = {requirement: installed_version(requirement.name) for requirement in wanted}
    absent = [requirement.name for requirement, version in versions.items() if version is None]
    wrong = [
        f"{requirement.name} {version} (needs {requirement.versions})"
        for requirement, version in versions.items()
        if version is not None and not fits(version, requirement.versions)
    ]
    if wrong or (absent and not extra):
        missing = [f"{package} is missing" for package in absent]
        return Finding(name, "fault", ", ".join(wrong + missing), install_line(extra))
    if absent:
        return Finding(name, "missing", f"optional: {', '.join(absent)}", install_line(extra))
    return Finding(name, "ok", ", ".join(f"{requirement.name} {version}" for requirement, version in versions.items()))


def read_requirements() -> list[Requirement]:
    """Our own dependencies as the installed metadata gives them.

    Raises:
        importlib.metadata.PackageNotFoundError: mnet-det is not installed.
    """
    pattern = re.compile(r"""([\w.-]+)\s*([<>=!~][^;]*)?(?:;\s*extra\s*==\s*["']([\w-]+)["'])?""")
    matches = [pattern.fullmatch(line) for line in metadata.requires("mnet-det") or []]
    return [
        Requirement(match[1], (match[2] or "").strip(), match[3] or "")
        for match in matches
        if match is not None  # `mnet-det[train]; extra == "dev"` only names the others again
    ]


def fits(version: str, versions: str) -> bool:
    """Whether a version such as `2.9.0+cpu` lies in a range such as `<3,>=2.0`; only <, <=, ==, >=, > are known."""
    compare = {"<": operator.lt, "<=": operator.le, "==": operator.eq, ">=": operator.ge, ">": operator.gt}
    clauses = re.findall(r"([<>=]+)\s*([\d.]+)", versions)
    return all(compare[sign](_release(version), _release(bound)) for sign, bound in clauses)


def check_torch() -> Finding:
    """Whether torch and torchvision belong together, and which accelerator they see."""
    name = "torch pair"
    versions = {package: installed_version(package) for package in ("torch", "torchvision")}
    if None in versions.values():
        return Finding(
            name, "missing", "optional: only training, .pt files and exporting need it", install_line("train")
        )
    detail = ", ".join(f"{package} {version}" for package, version in versions.items())
    works, answer = probe(TORCH_PROBE)
    if works:
        return Finding(name, "ok", f"{detail}, {answer}")
    if "torchvision::nms does not exist" in answer:
        answer = "they come from different builds (operator torchvision::nms does not exist)"
    _, plus, build = (versions["torch"] or "").partition("+")
    index = f" --index-url https://download.pytorch.org/whl/{build}" if plus else ""
    ranges = {r.name: r.versions for r in read_requirements() if r.name in versions}
    packages = " ".join(f'"{package}{ranges.get(package, "")}"' for package in versions)
    mend = f"{_python('-m pip uninstall -y torch torchvision')} && {_python(f'-m pip install {packages}{index}')}"
    return Finding(name, "fault", f"{detail}: {answer}", mend)


def check_opencv() -> Finding:
    """Whether exactly one OpenCV is installed, imports, and can open a window.

    opencv-python and opencv-python-headless own the same folder: with both, the last one written is there, and removing
    one breaks the other.
    """
    full, headless = installed_version("opencv-python"), installed_version("opencv-python-headless")
    works, answer = probe(OPENCV_PROBE)
    anew = _python(f"-m pip install --force-reinstall --no-deps opencv-python{f'=={full}' if full else ''}")
    mend = f"{_python('-m pip uninstall -y opencv-python-headless')} && {anew}" if headless else anew
    if not works:
        library = re.search(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object", answer)
        if library is not None:
            mend = "sudo apt-get install libgl1 libglib2.0-0  # or what your system calls them"
        return Finding("OpenCV", "fault", f"does not import: {answer}", mend)
    if full and headless and (answer == "NONE" or full != headless):
        both = f"opencv-python {full} and opencv-python-headless {headless} own the same files"
        return Finding("OpenCV", "fault", f"{both}; windows: {answer}", mend)
    if answer == "NONE":
        return Finding("OpenCV", "missing", f"headless {headless}: no windows, the demo shows in a browser", mend)
    beside = f" (and opencv-python-headless {headless}, overwritten)" if headless else ""
    return Finding("OpenCV", "ok", f"opencv-python {full}{beside}, windows by {answer}")


def check_cpu() -> Finding:
    """The processor's name, how many cores this process may use, and its instruction sets."""
    sets = ", ".join(instruction_sets()) or "instruction sets unknown"
    return Finding("CPU", "ok", f"{cpu_name()}, {usable_cores()} cores, {sets}")


def check_memory() -> Finding:
    """The machine's memory."""
    size = memory_bytes()
    return Finding("memory", "ok", "unknown" if size is None else f"{size / 2**30:.1f} GiB")


def check_display() -> Finding:
    """Whether there is a display that a window could open on."""
    if platform.system() in ("Windows", "Darwin"):
        return Finding("display", "ok", "the desktop")
    servers = [f"{name}={os.environ[name]}" for name in ("DISPLAY", "WAYLAND_DISPLAY") if os.environ.get(name)]
    if servers:
        return Finding("display", "ok", ", ".join(servers))
    mend = "mnet-det demo --screen none --record out.mp4"
    return Finding("display", "missing", "neither DISPLAY nor WAYLAND_DISPLAY is set", mend)


def check_cameras(devices: Path = Path("/dev")) -> Finding:
    """The cameras that Linux lists; none is opened, here or elsewhere, since that takes seconds and lights its lamp."""
    if platform.system() != "Linux":
        return Finding("cameras", "ok", "not looked for; 'mnet-det demo' opens camera 0")
    cameras = sorted(devices.glob("video[0-9]*"))
    if not cameras:
        return Finding("cameras", "missing", "no /dev/video*", "plug one in, or give a video: mnet-det demo clip.mp4")
    closed = [camera.name for camera in cameras if not os.access(camera, os.R_OK | os.W_OK)]
    if closed:
        mend = "sudo usermod -aG video $USER  # then log in again"
        return Finding("cameras", "fault", f"no permission for {', '.join(closed)}", mend)
    return Finding("cameras", "ok", ", ".join(camera.name for camera in cameras))


def check_cache(folder: Path) -> Finding:
    """Whether the user's cache can be written; the folder need not be there yet and is not made."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        mend = "let MNET_DET_CACHE name a folder that can be written"
        return Finding("cache", "fault", f"{folder} cannot be written ({error.strerror})", mend)
    return Finding("cache", "ok", f"{folder}, {free / 2**30:.1f} GiB free")


def probe(code: str) -> tuple[bool, str]:
    """Run Python code in a child process.

    Returns:
        Whether it ended well, and the last line that it printed or, if not, that it failed with.
    """
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONWARNINGS": "ignore"}
    try:
        child = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {PROBE_TIMEOUT_S} s"
    said = (child.stderr if child.returncode else child.stdout).strip().splitlines()
    return child.returncode == 0, said[-1] if said else f"ended with status {child.returncode}"


def cpu_name() -> str:
    """The processor as its maker names it, or its architecture."""
    name = ""
    if sys.platform == "linux":
        found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
        name = found[1] if found else ""
    elif sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string")
    elif sys.platform == "win32":
        import winreg

        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"HARDWARE\DESCRIPTION\System\CentralProcessor\0") as key:
            name = str(winreg.QueryValueEx(key, "ProcessorNameString")[0])
    return " ".join(name.split()) or platform.machine()


def instruction_sets() -> list[str]:
    """Which of `INSTRUCTION_SETS` this processor has, as far as the system tells."""
    flags = cpu_flags()
    return [name for name, spellings in INSTRUCTION_SETS.items() if spellings & flags]


def cpu_flags() -> set[str]:
    """The processor's features as the system spells them, in lower case."""
    flags: set[str] = {"neon"} if platform.machine().lower() in ("arm64", "aarch64") else set()  # always part of it
    if sys.platform == "win32":
        import ctypes

        known = {"avx2": 40, "avx512f": 41, "asimddp": 43}  # PF_… of winnt.h
        present = ctypes.windll.kernel32.IsProcessorFeaturePresent
        flags.update(flag for flag, number in known.items() if present(number))
    elif sys.platform == "darwin":
        flags.update(_sysctl("machdep.cpu.leaf7_features").lower().split())
    else:
        flags.update(parse_cpuinfo_flags(_cpuinfo()))
    return flags


def parse_cpuinfo_flags(text: str) -> set[str]:
    """The features of the first processor in the text of Linux's /proc/cpuinfo (`flags` on x86, `Features` on ARM)."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    return set(found[1].lower().split()) if found else set()


def usable_cores() -> int:
    """Cores that this process may run on, which can be fewer than the machine has."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    else:
        return os.cpu_count() or 1


def memory_bytes() -> int | None:
    """The machine's memory, or None where the system does not tell."""
    if sys.platform == "win32":
        import ctypes

        kibibytes = ctypes.c_ulonglong()
        told = ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kibibytes))
        return kibibytes.value * 1024 if told else None
    else:
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            return None


def install_line(extra: str) -> str:
    """The command that installs an extra ('' for the base) into this environment."""
    script = Path(__file__).resolve().parents[1] / "tools" / "install.py"
    if script.is_file():  # a checkout: the script also keeps one OpenCV
        return _python(f"{_short(script)} {extra}".rstrip())
    return _python(f'-m pip install "mnet-det{f"[{extra}]" if extra else ""}"')


def _check_import(package: str, code: str, *, extra: str) -> Finding:
    version = installed_version(package)
    if version is None:
        status: Literal["missing", "fault"] = "missing" if extra else "fault"
        return Finding(package, status, "optional: not installed" if extra else "not installed", install_line(extra))
    works, answer = probe(code)
    if works:
        return Finding(package, "ok", f"{version}, {answer}")
    mend = _python(f"-m pip install --force-reinstall --no-deps {package}=={version}")
    return Finding(package, "fault", f"{version}: {answer}", mend)


def installed_version(package: str) -> str | None:
    """The version of an installed distribution; None where there is none of this name."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _release(version: str) -> tuple[int, ...]:
    """The numbers of a version without trailing zeros, so that 3 equals 3.0: `2.10.0+cpu` is (2, 10)."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in found[0].split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _python(words: str) -> str:
    """A command line for this environment's own Python, whether or not the environment is activated."""
    return f"{_short(Path(sys.executable))} {words}"


def _short(path: Path) -> str:
    inside = path.is_relative_to(Path.cwd())
    text = str(path.relative_to(Path.cwd()) if inside else path)
    return f'"{text}"' if " " in text else text


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    try:
        child = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return child.stdout.strip() if child.returncode == 0 else ""
