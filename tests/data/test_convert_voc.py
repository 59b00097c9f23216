"""VOC's boxes count pixels from 1 and include the last one; what cannot be understood is told before a file is made."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest

from mnet_det.data.coco import read_coco
from mnet_det.data.convert import command_line
from mnet_det.data.convert_voc import convert_voc
from mnet_det.errors import DataError
from mnet_det.images import write_image

HEAD = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part>"


def box_xml(left: object, top: object, right: object, bottom: object) -> str:
    return f"<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>"


def object_xml(name: str, *edges: object, more: str = "") -> str:
    return f"<object><name>{escape(name)}</name>{more}{box_xml(*edges)}</object>"


def annotation_xml(*objects: str, file_name: str = "", size: str = "<width>64</width><height>48</height>") -> str:
    return f"<annotation><filename>{file_name}</filename><size>{size}</size>{''.join(objects)}</annotation>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three images of 64x48, a list of two and one of the third; `b` has nothing in it."""
    folder = tmp_path / "voc"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    objects = {
        "a": [object_xml("dog", 1, 1, 64, 48), object_xml("cat", 11, 21, 11, 30, more="<difficult>1</difficult>")],
        "b": [],
        "c": [object_xml("person", 10.5, 20, 30.25, 40, more=HEAD), object_xml("dog", 5, 6, 7, 8)],
    }
    for stem, marked in objects.items():
        (folder / "Annotations" / f"{stem}.xml").write_text(annotation_xml(*marked, file_name=f"{stem}.png"))
        write_image(folder / "JPEGImages" / f"{stem}.png", np.zeros((48, 64, 3), np.uint8))
    (folder / "ImageSets" / "Main" / "train.txt").write_text("c\na\n")
    (folder / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    return folder


def boxes(content: dict[str, Any]) -> list[tuple[int, int, int, list[float], int]]:
    keys = ("id", "image_id", "category_id", "bbox", "iscrowd")
    return [tuple(annotation[key] for key in keys) for annotation in content["annotations"]]  # type: ignore[misc]


def test_boxes_are_those_of_the_xml_counted_from_0(voc: Path) -> None:
    converted = convert_voc(voc)
    assert boxes(converted.content) == [
        (1, 1, 2, [0, 0, 64, 48], 0),  # the whole image: pixels 1…64 and 1…48
        (2, 1, 1, [10, 20, 1, 10], 1),  # one pixel wide, and not none; difficult
        (3, 3, 3, [9.5, 19, 20.75, 21], 0),  # 30.25 - 10.5 + 1 wide; the head is a part, no object
        (4, 3, 2, [4, 5, 3, 3], 0),
    ]
    assert [annotation["area"] for annotation in converted.content["annotations"]] == [3072, 10, 435.75, 9]
    assert converted.content["images"] == [
        {"id": number, "file_name": f"{stem}.png", "width": 64, "height": 48}
        for number, stem in enumerate("abc", start=1)
    ]
    assert converted.content["categories"] == [
        {"id": 1, "name": "cat"},
        {"id": 2, "name": "dog"},
        {"id": 3, "name": "person"},
    ]
    assert (converted.images, converted.notes) == (voc / "JPEGImages", ())


def test_edges_from_0_make_boxes_of_their_difference(voc: Path) -> None:
    (voc / "Annotations" / "b.xml").write_text(annotation_xml(object_xml("dog", 0, 0, 64, 48)))
    converted = convert_voc(voc, split="val", zero_based=True)
    assert boxes(converted.content) == [(3, 2, 2, [0, 0, 64, 48], 0)]
    assert converted.notes == ()


def test_a_coordinate_below_the_first_pixel_is_told_once_with_the_flag(voc: Path) -> None:
    marked = annotation_xml(object_xml("dog", 0, 3, 64, 48), object_xml("dog", 3, 0, 64, 48))
    (voc / "Annotations" / "b.xml").write_text(marked)
    converted = convert_voc(voc)
    assert len(converted.notes) == 1
    assert "2 boxes begin below 1" in converted.notes[0]
    assert "b.xml" in converted.notes[0]
    assert "--zero-based" in converted.notes[0]


@pytest.mark.parametrize("edges", [(20, 20, 10, 30), (5, 5, 4, 9), (60, 40, 90, 90), (-9, 5, 900, 9)], ids=str)
def test_boxes_that_are_none_are_written_as_they_are(voc: Path, edges: tuple[int, ...]) -> None:
    (voc / "Annotations" / "b.xml").write_text(annotation_xml(object_xml("dog", *edges)))
    left, top, right, bottom = edges
    (found,) = convert_voc(voc, split="val").content["annotations"]
    assert found["bbox"] == [left - 1, top - 1, right - left + 1, bottom - top + 1]


def test_ids_are_the_same_in_every_split_and_run(voc: Path) -> None:
    whole, train, val = (convert_voc(voc, split=split).content for split in (None, "train", "val"))
    assert whole == convert_voc(voc).content
    assert {split["categories"] == whole["categories"] for split in (train, val)} == {True}
    assert [image["id"] for image in train["images"]] == [1, 3]
    assert [image["id"] for image in val["images"]] == [2]
    for key in ("images", "annotations"):
        assert sorted(train[key] + val[key], key=lambda entry: entry["id"]) == whole[key]


def test_given_classes_fix_the_order_of_the_ids(voc: Path) -> None:
    content = convert_voc(voc, classes=["person", "dog", "bird", "cat"]).content
    assert [category["name"] for category in content["categories"]] == ["person", "dog", "bird", "cat"]
    assert [annotation["category_id"] for annotation in content["annotations"]] == [2, 4, 1, 2]


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("a\nc\n", "ac"),
        ("\ufeffa\r\n\r\nb\r\n", "ab"),
        ("a.png\nb.xml\n", "ab"),
        ("JPEGImages/a.png Annotations/a.xml\n", "a"),
        ("JPEGImages\\b.png\n", "b"),
        ("a  1\nb -1\nc  0\n", "ac"),
        ("c", "c"),
    ],
    ids=["names", "BOM, CRLF and blank lines", "suffixes", "pairs", "Windows", "list of one class", "no last newline"],
)
def test_a_list_takes_the_images_it_names(voc: Path, tmp_path: Path, text: str, stems: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(text.encode())
    content = convert_voc(voc, split=str(path)).content
    assert [image["file_name"] for image in content["images"]] == [f"{stem}.png" for stem in stems]


def test_a_name_with_a_space_and_a_number_is_a_name(voc: Path) -> None:
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".png")):
        (voc / folder / f"b{suffix}").rename(voc / folder / f"b -1{suffix}")
    (voc / "ImageSets" / "Main" / "val.txt").write_text("b -1\n")
    assert convert_voc(voc, split="val").content["images"][0]["file_name"] == "b -1.png"


def test_a_name_listed_twice_is_taken_once_and_told(voc: Path) -> None:
    (voc / "ImageSets" / "Main" / "val.txt").write_text("b\nb\nb\n")
    converted = convert_voc(voc, split="val")
    assert len(converted.content["images"]) == 1
    assert "2 names are there again" in converted.notes[0]


def test_a_plain_folder_has_its_images_beside_or_elsewhere(voc: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    (voc / "Annotations").rename(flat)
    (flat / "._a.xml").write_bytes(b"\0\5\x16\7")  # macOS leaves these
    assert convert_voc(flat, images=voc / "JPEGImages").images == voc / "JPEGImages"
    for path in (voc / "JPEGImages").iterdir():
        path.rename(flat / path.name)
    converted = convert_voc(flat)
    assert (len(converted.content["images"]), converted.images) == (3, flat)


@pytest.mark.parametrize(
    "file_name", ["", "gone.jpg", "C:\\photos\\c.png", "/home/me/c.png", "c.PNG"], ids=lambda name: name or "none"
)
def test_the_image_is_that_of_the_same_stem_whatever_the_file_names(voc: Path, file_name: str) -> None:
    (voc / "Annotations" / "c.xml").write_text(annotation_xml(object_xml("dog", 1, 1, 2, 2), file_name=file_name))
    assert convert_voc(voc).content["images"][2]["file_name"] == "c.png"


def test_the_image_of_the_same_stem_goes_before_the_named_one(voc: Path) -> None:
    """Tools that copy an XML file to the next image leave the old `<filename>` in it: boxes went to the old image."""
    for stem in "bc":
        (voc / "Annotations" / f"{stem}.xml").write_text(annotation_xml(GOOD, file_name="a.png"))
    assert [image["file_name"] for image in convert_voc(voc).content["images"]] == ["a.png", "b.png", "c.png"]


def test_the_named_image_is_taken_where_none_has_the_same_stem(voc: Path) -> None:
    (voc / "JPEGImages" / "c.png").rename(voc / "JPEGImages" / "other.png")
    (voc / "Annotations" / "c.xml").write_text(annotation_xml(GOOD, file_name="other.png"))
    assert convert_voc(voc).content["images"][2]["file_name"] == "other.png"


def test_two_files_that_take_one_image_are_refused(voc: Path) -> None:
    (voc / "JPEGImages" / "c.png").unlink()
    (voc / "Annotations" / "c.xml").write_text(annotation_xml(GOOD, file_name="b.png"))
    with pytest.raises(DataError, match=r"1 fault, .*\n.*c\.xml: its image would be b\.png, which is that of b\.xml"):
        convert_voc(voc)
    assert len(convert_voc(voc, split="train").content["images"]) == 2


def test_images_without_an_xml_file_are_told_where_all_is_converted(voc: Path) -> None:
    (voc / "Annotations" / "b.xml").unlink()
    (voc / "JPEGImages" / "._a.png").write_bytes(b"\0\5\x16\7")
    (note,) = convert_voc(voc).notes
    assert note == f"1 image has no XML file in {voc / 'JPEGImages'} and is left out: b.png"
    assert convert_voc(voc, split="train").notes == ()


@pytest.mark.parametrize("size", ["", "<width>0</width><height>0</height>", "<width></width><height>48</height>"])
def test_a_size_that_is_not_given_is_the_images_own(voc: Path, size: str) -> None:
    write_image(voc / "JPEGImages" / "b.png", np.zeros((7, 9, 3), np.uint8))
    (voc / "Annotations" / "b.xml").write_text(annotation_xml(size=size))
    (image,) = convert_voc(voc, split="val").content["images"]
    assert (image["width"], image["height"]) == (9, 7)


def test_a_given_size_is_kept_for_check_to_judge(voc: Path) -> None:
    write_image(voc / "JPEGImages" / "b.png", np.zeros((7, 9, 3), np.uint8))
    (image,) = convert_voc(voc, split="val").content["images"]
    assert (image["width"], image["height"]) == (64, 48)


def test_other_encodings_are_read_as_they_say(voc: Path) -> None:
    text = annotation_xml(object_xml("Bär", 1, 1, 2, 2))
    for encoding in ("latin-1", "utf-16"):
        (voc / "Annotations" / "b.xml").write_bytes(
            f'<?xml version="1.0" encoding="{encoding}"?>{text}'.encode(encoding)
        )
        assert "Bär" in [category["name"] for category in convert_voc(voc).content["categories"]]


GOOD = object_xml("dog", 1, 2, 3, 4)
CHINESE = annotation_xml(object_xml("狗", 1, 2, 3, 4))
BOMB = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation><filename>&b;</filename></annotation>'


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", r"b\.xml: not XML of this kind \(no element found"),
        ("no XML", r"not XML of this kind \(syntax error"),
        (annotation_xml(GOOD)[:-20], r"not XML of this kind \(unclosed token"),
        ("<html/>", "begins with <html>, expected <annotation>"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', r"not XML of this kind \(unknown encoding"),
        (BOMB, "declares entities"),
        (annotation_xml(GOOD, "<object><name>cat</name></object>"), "object 2: cat has no bndbox, expected one"),
        (annotation_xml(f"<object><name>cat</name>{HEAD}</object>"), "object 1: cat has no bndbox, expected one"),
        (annotation_xml(object_xml("cat", 1, 1, 2, 2, more=box_xml(1, 1, 2, 2))), "cat has 2 bndbox, expected one"),
        (annotation_xml(f"<object>{box_xml(1, 1, 2, 2)}</object>"), "object 1: has no name"),
        (annotation_xml(object_xml(" ", 1, 1, 2, 2)), "object 1: has no name"),
        (annotation_xml(object_xml("cat", 1, "two", 2, 2)), "object 1: ymin is 'two', expected a number"),
        (annotation_xml(object_xml("cat", 1, 1, "nan", 2)), "object 1: xmax is 'nan', expected a number"),
        (annotation_xml(object_xml("cat", 1, 1, 2, "1e999")), "object 1: ymax is '1e999', expected a number"),
        (annotation_xml(object_xml("cat", 1, 1, "1_0", 2)), "object 1: xmax is '1_0', expected a number"),
        (annotation_xml(object_xml("cat", "", 1, 2, 2)), "object 1: xmin is missing"),
        (annotation_xml("<object><name>cat</name><bndbox/></object>"), "object 1: xmin is missing"),
        (annotation_xml(object_xml("cat", 1, 1, 2, 2, more="<difficult>2</difficult>")), "difficult is '2', expected"),
        (annotation_xml(size="<width>wide</width><height>1</height>"), "size/width is 'wide', expected a number"),
        (annotation_xml(size="<width>-5</width><height>1</height>"), "size is -5x1, expected whole pixels"),
        (annotation_xml(size="<width>5.5</width><height>1</height>"), "size is 5.5x1, expected whole pixels"),
    ],
)
def test_a_malformed_file_is_refused_with_its_place(voc: Path, xml: str, message: str) -> None:
    (voc / "Annotations" / "b.xml").write_text(xml)
    with pytest.raises(DataError, match=message) as error:
        convert_voc(voc)
    assert "1 fault, so nothing was written" in str(error.value)
    assert "b.xml" in str(error.value)


@pytest.mark.parametrize("head", ["", '<?xml version="1.0" encoding="gb2312"?>'], ids=["undeclared", "declared"])
def test_an_encoding_that_is_not_known_is_answered_with_the_one_that_is(voc: Path, head: str) -> None:
    (voc / "Annotations" / "b.xml").write_bytes((head + CHINESE).encode("gb2312"))
    with pytest.raises(DataError, match=r"b\.xml: not XML of this kind .*; save it as UTF-8"):
        convert_voc(voc)


def test_all_faults_are_counted_and_the_first_named(voc: Path) -> None:
    for stem in ("d", "e", "f", "g"):
        (voc / "Annotations" / f"{stem}.xml").write_text("no XML")
    (voc / "Annotations" / "b.xml").write_text(
        annotation_xml(object_xml("dog", "x", 1, 2, 2), object_xml("", 1, 1, 2, 2))
    )
    (voc / "JPEGImages" / "a.png").unlink()
    with pytest.raises(DataError) as error:
        convert_voc(voc, classes=["dog"])
    first, *named, last = str(error.value).splitlines()
    # b 2, d to g 4; cat and person are not listed; a to g but b and c have no image: 5.
    assert first == f"{voc}: 13 faults, so nothing was written:"
    assert "b.xml: object 1: xmin is 'x'" in named[0]
    assert "b.xml: object 2: has no name" in named[1]
    for line, name in zip(named[2:], ("d.xml", "e.xml", "f.xml"), strict=True):
        assert f"{name}: not XML" in line
    assert last == "  and 8 more"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"classes": ["dog", "cat"]}, r"c\.xml: class 'person' is not among --classes"),
        ({"classes": ["dog", "cat", "dog", "person"]}, "--classes: dog: named twice"),
        ({"split": "test"}, r"--split test: no such file, nor a list in .*Main; there: broken, empty, train, val"),
        ({"split": "broken"}, r"broken: d: no d\.xml in .*Annotations"),
        ({"split": "empty"}, r"empty\.txt: lists no image"),
        ({"images": Path("nowhere")}, "nowhere: no such folder of images"),
    ],
    ids=str,
)
def test_what_is_asked_for_must_be_there(voc: Path, words: dict[str, Any], message: str) -> None:
    (voc / "ImageSets" / "Main" / "broken.txt").write_text("a\nd\n")
    (voc / "ImageSets" / "Main" / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match=message):
        convert_voc(voc, **words)


def test_a_missing_image_is_refused_only_where_it_is_asked_for(voc: Path) -> None:
    (voc / "JPEGImages" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.xml: no image: no a with a suffix .*, nor 'a\.png'; if .* --images"):
        convert_voc(voc, split="train")
    assert len(convert_voc(voc, split="val").content["images"]) == 1


def test_two_images_of_one_stem_are_refused_unless_one_is_named(voc: Path) -> None:
    write_image(voc / "JPEGImages" / "c.jpg", np.zeros((48, 64, 3), np.uint8))
    assert convert_voc(voc).content["images"][2]["file_name"] == "c.png"
    (voc / "Annotations" / "c.xml").write_text(annotation_xml())
    with pytest.raises(DataError, match=r"which image\? c\.jpg and c\.png are there"):
        convert_voc(voc)


def test_an_image_that_is_none_is_refused_where_its_size_is_needed(voc: Path) -> None:
    (voc / "JPEGImages" / "b.png").write_bytes(b"no picture")
    (voc / "Annotations" / "b.xml").write_text(annotation_xml(size=""))
    with pytest.raises(DataError, match=r"b\.png: not an image"):
        convert_voc(voc)


def test_a_folder_without_annotations_or_objects_is_refused(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        convert_voc(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no XML file in it"):
        convert_voc(voc / "JPEGImages")
    for path in (voc / "Annotations").iterdir():
        path.write_text(annotation_xml())
    with pytest.raises(DataError, match=r"no object in any of its 3 XML files; give the names with --classes"):
        convert_voc(voc)
    assert convert_voc(voc, classes=["dog"]).content["annotations"] == []


def test_xml_files_further_down_are_told_with_the_command(voc: Path, tmp_path: Path) -> None:
    """As data sets on Kaggle have them."""
    folder = tmp_path / "my set"
    for old, new in (("Annotations", "labels"), ("JPEGImages", "images")):
        (folder / new).parent.mkdir(exist_ok=True)
        (voc / old).rename(folder / new)
    command = command_line("mnet-det", "convert", "voc", folder / "labels", "--images", folder / "images")
    with pytest.raises(DataError, match=f"no XML file in it; .* so try: {re.escape(command)}$"):
        convert_voc(folder)
    with pytest.raises(DataError, match=r"no image in it; .*; name the folder of the images with --images"):
        convert_voc(folder / "labels")
    for path in (folder / "images").iterdir():
        path.rename(folder / "labels" / path.name)
    command = command_line("mnet-det", "convert", "voc", folder / "labels")
    with pytest.raises(DataError, match=f"so try: {re.escape(command)}$"):
        convert_voc(folder)


def test_boxes_come_back_exactly_from_coco_to_voc_and_again(tmp_path: Path) -> None:
    """The XML is written here from COCO boxes, by VOC's definition: pixels from 1, the last one included."""
    random = np.random.default_rng(0)
    expected = []
    write_image(tmp_path / "0.png", np.zeros((400, 600, 3), np.uint8))
    for _ in range(200):
        left, top = (int(v) for v in random.integers(0, (500, 300)))
        width, height = (int(v) for v in random.integers(1, 100, 2))
        expected.append([left, top, width, height])
    objects = [object_xml("dog", x + 1, y + 1, x + w, y + h) for x, y, w, h in expected]
    (tmp_path / "0.xml").write_text(annotation_xml(*objects, size="<width>600</width><height>400</height>"))
    assert [annotation["bbox"] for annotation in convert_voc(tmp_path).content["annotations"]] == expected


def test_the_command_writes_what_our_reader_takes(voc: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    out = tmp_path / "new" / "train.json"
    before = {path: path.read_bytes() for path in voc.rglob("*") if path.is_file()}
    answer = cli("convert", "voc", voc, "--split", "train", "--classes", "person, dog,cat", "--out", out)
    assert (answer.status, answer.err) == (0, "")
    assert "2 images, 4 boxes (1 of them crowd), classes: person, dog, cat" in answer.out
    assert f"next: {command_line('mnet-det', 'check', out, '--images', voc / 'JPEGImages')}" in answer.out
    data = read_coco(out, voc / "JPEGImages")
    assert data.class_names == ("person", "dog", "cat")
    assert data.truth(0).boxes_xyxy.tolist() == [[0, 0, 64, 48], [10, 20, 11, 30]]
    assert data.truth(0).crowd.tolist() == [False, True]
    assert data.image(1).shape == (48, 64, 3)
    assert before == {path: path.read_bytes() for path in voc.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test", "--out", "a.json"], "error: --split test: no such file"),
        (["--classes", "dog", "--out", "a.json"], "error: "),
        (["--out", "a.xml"], "error: a.xml: expected a name that ends in .json"),
    ],
)
def test_a_fault_is_one_message_and_no_file(
    voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any], words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = cli("convert", "voc", voc, *words)
    assert answer.status == 1
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert not list(tmp_path.glob("a.*"))


def test_the_flag_for_edges_is_told_on_the_terminal(voc: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    (voc / "Annotations" / "b.xml").write_text(annotation_xml(object_xml("dog", 0, 0, 64, 48)))
    answer = cli("convert", "voc", voc, "--out", tmp_path / "a.json")
    assert answer.err.startswith("warning: 1 box begins below 1")
    assert cli("convert", "voc", voc, "--zero-based", "--out", tmp_path / "a.json").err == ""


def test_the_next_command_can_be_pasted_where_folders_have_blanks(
    voc: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    folder = voc.rename(tmp_path / "my set")
    (folder / "Annotations" / "b.xml").write_text(annotation_xml(GOOD))
    answer = cli("convert", "voc", folder, "--split", "val", "--out", folder / "a.json")
    assert "1 image, 1 box (0 of them crowd)" in answer.out
    quote = '"' if os.name == "nt" else "'"
    assert answer.out.endswith(
        f"next: mnet-det check {quote}{folder / 'a.json'}{quote} --images {quote}{folder / 'JPEGImages'}{quote}\n"
    )


@pytest.mark.shared
def test_the_blood_cells_are_read_whole(shared: Path, tmp_path: Path) -> None:
    source, seen = shared / "data" / "bccd", []
    for split, expected in {"train": (205, 2805), "val": (87, 1138), "test": (72, 945)}.items():
        converted = convert_voc(source, split=split, classes=["RBC", "WBC", "Platelets"])
        path = tmp_path / f"{split}.json"
        path.write_text(json.dumps(converted.content))
        data = read_coco(path, converted.images)
        data.require_files()
        assert (len(data), data.num_boxes) == expected
        assert data.class_names == ("RBC", "WBC", "Platelets")
        seen += [annotation["id"] for annotation in converted.content["annotations"]]
    assert sorted(seen) == list(range(1, 4889))  # no id twice in the three files: 2805 + 1138 + 945
