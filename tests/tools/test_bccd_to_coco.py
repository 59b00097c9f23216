"""The blood cells in COCO form: VOC's boxes count pixels from 1 and include the last one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from mnet_det.data.coco import read_coco

XML = """<annotation><size><width>640</width><height>480</height></size>
<object><name>WBC</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>640</xmax><ymax>480</ymax></bndbox></object>
<object><name>RBC</name><bndbox><xmin>11</xmin><ymin>21</ymin><xmax>11</xmax><ymax>30</ymax></bndbox></object>
</annotation>"""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "bccd_to_coco.py"
    spec = importlib.util.spec_from_file_location("bccd_to_coco", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "BCCD"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for split in ("train", "val", "test"):
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{split}_1\n")
        (folder / "Annotations" / f"{split}_1.xml").write_text(XML)
        (folder / "JPEGImages" / f"{split}_1.jpg").write_bytes(b"a picture")
    return folder


def test_boxes_are_those_of_the_xml_counted_from_0(tool: ModuleType, source: Path, tmp_path: Path) -> None:
    assert tool.main([str(source), str(tmp_path / "bccd")]) == 0
    content = json.loads((tmp_path / "bccd" / "annotations" / "instances_val2017.json").read_text())
    assert [(a["category_id"], a["bbox"]) for a in content["annotations"]] == [
        (2, [0.0, 0.0, 640.0, 480.0]),
        (1, [10.0, 20.0, 1.0, 10.0]),  # one pixel wide, and not none
    ]
    assert (tmp_path / "bccd" / "val2017" / "val_1.jpg").read_bytes() == b"a picture"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("JPEGImages/train_1.jpg", "train_1.jpg: cannot be copied"),
        ("Annotations/train_1.xml", "train_1.xml: cannot be read"),
        ("ImageSets/Main/train.txt", "train.txt: cannot be read"),
    ],
)
def test_a_missing_file_is_named(
    spoil: str, message: str, tool: ModuleType, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / spoil).unlink()
    assert tool.main([str(source), str(tmp_path / "bccd")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["no XML", XML.replace("WBC", "virus"), XML.replace("640", "wide")])
def test_another_annotation_is_refused(tool: ModuleType, source: Path, text: str) -> None:
    (source / "Annotations" / "train_1.xml").write_text(text)
    with pytest.raises(tool.DataError, match=r"train_1\.xml: not an annotation of this set"):
        tool.convert(source, "train")


@pytest.mark.shared
def test_the_set_itself_is_read_whole(tool: ModuleType, shared: Path, tmp_path: Path) -> None:
    assert tool.main([str(shared / "data" / "bccd"), str(tmp_path)]) == 0
    read = [read_coco(tmp_path / "annotations" / f"instances_{s}2017.json", tmp_path / f"{s}2017") for s in tool.SPLITS]
    assert [len(data) for data in read] == [205, 87, 72]
    assert [data.num_boxes for data in read] == [2805, 1138, 945]
    assert {data.class_names for data in read} == {("RBC", "WBC", "Platelets")}
    assert [data.skipped_boxes for data in read] == [0, 0, 0]
