"""The doctor finds what is wrong with an installation, says how to mend it, and survives it."""

from __future__ import annotations

import platform
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from mnet_det import doctor
from mnet_det.doctor import Finding

ROOT = Path(__file__).parents[1]


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What seems to be installed; a test fills it in."""
    installed: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    return installed


def answer_probes(monkeypatch: pytest.MonkeyPatch, works: bool, answer: str) -> None:
    monkeypatch.setattr(doctor, "probe", lambda code: (works, answer))


def test_this_environment_is_examined_in_order_and_has_no_fault(tmp_path: Path) -> None:
    findings = doctor.examine(cache=tmp_path)
    names = [finding.name for finding in findings]
    assert names[:2] == ["Python", "base packages"]
    assert names[-1] == "cache"
    assert len(set(names)) == len(names)
    own = [finding for finding in findings if finding.name != "cameras"]  # the machine's business
    assert [finding for finding in own if finding.status == "fault"] == []


def test_lines_carry_status_name_and_the_mend_unwrapped() -> None:
    mend = "python -m pip install " + "x" * 200
    text = doctor.render([Finding("Python", "ok", "3.12.1"), Finding("OpenCV", "fault", "no import", mend)])
    first, second, third = text.splitlines()
    assert first.split() == ["ok", "Python", "3.12.1"]
    assert second.split(maxsplit=2) == ["fault", "OpenCV", "no import"]
    assert third.split(maxsplit=1) == ["mend:", mend]


def test_the_python_range_is_that_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first, below = (".".join(map(str, version)) for version in (doctor.PYTHON_FROM, doctor.PYTHON_BELOW))
    assert project["requires-python"] == f">={first},<{below}"


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10), "fault"), ((3, 11), "ok"), ((3, 13), "ok"), ((3, 14), "fault")]
)
def test_python_outside_the_range_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], status: str
) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    assert doctor.check_python().status == status


@pytest.mark.parametrize(
    ("version", "versions", "expected"),
    [
        ("2.9.0+cpu", "<2.16,>=2.9", True),
        ("2.8.1", "<2.16,>=2.9", False),
        ("2.16.0", "<2.16,>=2.9", False),
        ("2.10.0", ">=2.9", True),  # ten is more than nine
        ("2.0.8", "==2.0.8", True),
        ("2.0.80", "==2.0.8", False),
        ("3.0.0", "<3", False),  # 3.0.0 is 3
        ("1.0", "", True),
    ],
)
def test_versions_compare_as_numbers(version: str, versions: str, expected: bool) -> None:
    assert doctor.fits(version, versions) is expected


def test_requirements_of_every_extra_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy<3,>=2.0", 'albumentations==2.0.8; extra == "train"', 'mnet-det[train]; extra == "dev"', "rich"]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)
    assert [(r.name, r.versions, r.extra) for r in doctor.read_requirements()] == [
        ("numpy", "<3,>=2.0", ""),
        ("albumentations", "==2.0.8", "train"),
        ("rich", "", ""),
    ]


def test_another_albumentations_is_a_fault_with_the_version_it_needs(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ['albumentations==2.0.8; extra == "train"'])
    versions["albumentations"] = "2.0.7"
    finding = doctor.check_requirements("train", "train packages")
    assert finding.status == "fault"
    assert finding.detail == "albumentations 2.0.7 (needs ==2.0.8)"
    assert finding.mend.endswith("install.py train")


def test_metadata_that_do_not_know_an_extra_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an update of an editable clone, "ok" stood there with nothing behind it."""
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy<3,>=2.0"])
    finding = doctor.check_requirements("int8", "int8 packages")
    assert finding.status == "fault"
    assert "older than this code" in finding.detail
    assert finding.mend.endswith("pip install --editable .")


def test_an_absent_package_is_a_fault_in_the_base_and_optional_in_an_extra(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy<3", 'torch>=2.9; extra == "train"'])
    assert doctor.check_requirements("", "base packages").status == "fault"
    assert doctor.check_requirements("train", "train packages").status == "missing"
    assert doctor.check_torch().status == "missing"


def test_a_folder_that_was_never_installed_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert doctor.check_requirements("", "base packages").status == "fault"


def test_a_mismatched_torch_pair_is_mended_from_the_index_of_the_same_build(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]
) -> None:
    versions.update({"torch": "2.9.1+cpu", "torchvision": "0.24.0"})
    answer_probes(monkeypatch, False, "RuntimeError: operator torchvision::nms does not exist")
    finding = doctor.check_torch()
    assert finding.status == "fault"
    assert "torch 2.9.1+cpu, torchvision 0.24.0: they come from different builds" in finding.detail
    assert "uninstall -y torch torchvision && " in finding.mend
    assert finding.mend.endswith("--index-url https://download.pytorch.org/whl/cpu")


OPENCV = {"opencv-python": "5.0.0"}
BOTH = {"opencv-python": "5.0.0", "opencv-python-headless": "5.0.0"}
HEADLESS = {"opencv-python-headless": "5.0.0"}
ANEW = "install --force-reinstall --no-deps opencv-python==5.0.0"


@pytest.mark.parametrize(
    ("installed", "works", "answer", "status", "mend"),
    [
        (OPENCV, True, "QT5", "ok", ""),
        (BOTH, True, "QT5", "ok", ""),
        (BOTH, True, "NONE", "fault", ANEW),
        ({**BOTH, "opencv-python-headless": "4.12.0"}, True, "QT5", "fault", ANEW),
        (HEADLESS, True, "NONE", "missing", "install --force-reinstall --no-deps opencv-python"),
        (OPENCV, False, "AttributeError: module 'cv2' has no attribute", "fault", ANEW),
        (
            OPENCV,
            False,
            "ImportError: libGL.so.1: cannot open shared object file",
            "fault",
            "apt-get install libgl1 libglib2.0-0  # or what your system calls them",
        ),
    ],
    ids=["one", "both, right one last", "both, headless last", "mixed", "headless only", "broken", "no libGL"],
)
def test_opencv_is_told_apart(
    monkeypatch: pytest.MonkeyPatch,
    versions: dict[str, str],
    installed: dict[str, str],
    works: bool,
    answer: str,
    status: str,
    mend: str,
) -> None:
    versions.update(installed)
    answer_probes(monkeypatch, works, answer)
    finding = doctor.check_opencv()
    assert finding.status == status
    assert finding.mend.endswith(mend)
    assert bool(finding.mend) == bool(mend)


def test_a_package_that_does_not_import_is_a_fault_and_an_absent_extra_is_not(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]
) -> None:
    monkeypatch.setattr(
        doctor, "read_requirements", lambda: [doctor.Requirement("onnxruntime", ">=1.23", "onnxruntime")]
    )
    answer_probes(monkeypatch, False, "ImportError: DLL load failed")
    versions["openvino"] = "2026.4.1"
    findings = {finding.name: finding for finding in doctor.examine()}
    assert findings["openvino"].status == "fault"
    assert findings["openvino"].detail == "2026.4.1: ImportError: DLL load failed"
    assert findings["onnxruntime"].status == "missing"
    assert findings["onnxruntime"].mend.endswith("install.py onnxruntime")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('first'); print('last')", (True, "last")),
        ("raise ImportError('no such library')", (False, "ImportError: no such library")),
        ("import os; os._exit(3)", (False, "ended with status 3")),
    ],
    ids=["prints", "raises", "dies"],
)
def test_a_probe_that_dies_leaves_the_doctor_alive(code: str, expected: tuple[bool, str]) -> None:
    assert doctor.probe(code) == expected


def test_a_probe_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT_S", 0.2)
    assert doctor.probe("import time; time.sleep(60)") == (False, "no answer within 0.2 s")


X86 = "processor\t: 0\nmodel name\t: Xeon\nflags\t\t: sse2 avx2 avx512f avx512_vnni amx_tile\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("text", "sets"),
    [(X86, ["AVX2", "AVX-512", "VNNI", "AMX"]), (ARM, ["NEON", "dot product"]), ("", [])],
    ids=["x86", "arm", "empty"],
)
def test_instruction_sets_are_read_from_cpuinfo(monkeypatch: pytest.MonkeyPatch, text: str, sets: list[str]) -> None:
    monkeypatch.setattr(doctor, "cpu_flags", lambda: doctor.parse_cpuinfo_flags(text))
    assert doctor.instruction_sets() == sets


def test_this_machine_has_a_name_cores_and_memory() -> None:
    assert doctor.cpu_name()
    assert doctor.usable_cores() >= 1
    memory = doctor.memory_bytes()
    assert memory is None or memory > 2**28


def test_a_linux_without_display_offers_the_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    finding = doctor.check_display()
    assert finding.status == "missing"
    assert finding.mend == "mnet-det demo --screen none --record out.mp4"
    monkeypatch.setenv("DISPLAY", ":0")
    assert doctor.check_display() == Finding("display", "ok", "DISPLAY=:0")


def test_cameras_are_listed_without_opening_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert doctor.check_cameras(tmp_path).status == "missing"
    (tmp_path / "video0").touch()
    assert doctor.check_cameras(tmp_path) == Finding("cameras", "ok", "video0")
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor.check_cameras(tmp_path).detail == "no permission for video0"


def test_a_cache_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    assert doctor.check_cache(tmp_path / "a" / "b").status == "ok"
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    finding = doctor.check_cache(tmp_path / "file" / "cache")
    assert finding.status == "fault"
    assert "MNET_DET_CACHE" in finding.mend
