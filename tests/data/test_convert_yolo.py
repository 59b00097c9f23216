"""YOLO's boxes are parts of the image as viewers show it; what cannot be understood is told before a file is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mnet_det.data.coco import read_coco
from mnet_det.data.convert import command_line
from mnet_det.data.convert_yolo import convert_yolo
from mnet_det.errors import DataError
from mnet_det.images import write_image

ULTRALYTICS = {
    "images/train/a.png": "0 0.5 0.5 1 1\n1 0.25 0.25 0.25 0.5\n",
    "images/train/deep/b.png": None,
    "images/val/c.png": "1 0.5 0.5 0.1 0.1",
}
ROBOFLOW = {"train/images/a.png": "0 0.5 0.5 1 1\n", "valid/images/c.png": "1 0.5 0.5 0.1 0.1\n"}
NAMES = "names: [dog, cat]\n"


def fill(folder: Path, labels: Mapping[str, str | None], *, size_wh: tuple[int, int] = (80, 40)) -> Path:
    """A folder of black images with these label files, where there are any."""
    for name, text in labels.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / name, np.zeros((size_wh[1], size_wh[0], 3), np.uint8))
        if text is not None:
            path = (folder / name.replace("images", "labels")).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Ultralytics' folders: two images of 80x40 to train on, one of them background, and one to validate on."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\n{NAMES}")
    return fill(tmp_path / "set", ULTRALYTICS)


def files(content: dict[str, Any]) -> list[tuple[int, str]]:
    return [(image["id"], image["file_name"]) for image in content["images"]]


def boxes(content: dict[str, Any]) -> list[tuple[int, int, int, list[float]]]:
    return [(a["id"], a["image_id"], a["category_id"], a["bbox"]) for a in content["annotations"]]


def one_label(folder: Path, text: str, *, size_wh: tuple[int, int] = (80, 40)) -> list[float]:
    fill(folder, {"images/a.png": text}, size_wh=size_wh)
    (annotation,) = convert_yolo(folder, classes=["dog", "cat"]).content["annotations"]
    return list(annotation["bbox"])


def test_boxes_are_parts_of_the_image(yolo: Path) -> None:
    content = convert_yolo(yolo).content
    assert boxes(content) == [
        (1, 1, 1, [0, 0, 80, 40]),
        (2, 1, 2, [10, 0, 20, 20]),  # x: (0.25 - 0.25 / 2) · 80, y: (0.25 - 0.5 / 2) · 40
        (3, 3, 2, [36, 18, 8, 4]),
    ]
    assert [annotation["area"] for annotation in content["annotations"]] == [3200, 400, 32]
    assert files(content) == [(1, "train/a.png"), (2, "train/deep/b.png"), (3, "val/c.png")]
    assert {(image["width"], image["height"]) for image in content["images"]} == {(80, 40)}
    assert content["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]


def test_the_box_of_a_polygon_is_its_extent(tmp_path: Path) -> None:
    assert one_label(tmp_path, "1 0.5 0.1 0.75 0.9 0.25 0.4") == [20, 4, 40, 32]


@pytest.mark.parametrize(
    "text",
    [
        "0 0.5 0.5 0.5 0.5",
        "\ufeff0 0.5 0.5 0.5 0.5\r\n\r\n",
        "0.0\t.5  5e-1 0.5 0.5",
        "0 .25 .25 .75 .25 .75 .75 .25 .75",
    ],
    ids=["plain", "BOM, CRLF and a blank line", "other spellings", "polygon"],
)
def test_a_line_is_read_in_any_usual_form(tmp_path: Path, text: str) -> None:
    assert one_label(tmp_path, text) == [20, 10, 40, 20]


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("0 0.9 0.5 0.4 0", [56, 20, 32, 0]),
        ("0 0.5 0.5 1.0005 1", [-0.02, 0, 80.04, 40]),  # rounded
        ("0 1.1 -0.25 1.5 0.5", [28, -20, 120, 20]),  # x: (1.1 - 1.5 / 2) · 80, y: (-0.25 - 0.5 / 2) · 40
        ("0 0.25 0.5 1.25 -0.5 0.5 1.5", [20, -20, 80, 80]),
        ("0 0.5 0.5 -0.5 1", [60, 0, -40, 40]),
    ],
    ids=["over the edge, no area", "rounded", "centre outside", "polygon", "no width"],
)
def test_boxes_over_the_edge_and_without_area_are_written_as_they_are(
    tmp_path: Path, text: str, box: list[float]
) -> None:
    assert one_label(tmp_path, text) == pytest.approx(box)


def test_boxes_come_back_from_coco_to_yolo_and_again(tmp_path: Path) -> None:
    """The lines are written here with the six decimals that are usual."""
    random = np.random.default_rng(0)
    width, height = 1913, 1077
    corners = np.sort(random.uniform(0, (width, height), (500, 2, 2)), axis=1)
    expected = np.concatenate([corners[:, 0], corners[:, 1] - corners[:, 0]], axis=1)
    lines = [
        f"0 {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f} {h / height:.6f}"
        for x, y, w, h in expected
    ]
    fill(tmp_path, {"images/a.png": "\n".join(lines)}, size_wh=(width, height))
    found = [a["bbox"] for a in convert_yolo(tmp_path, classes=["dog"]).content["annotations"]]
    assert np.abs(np.array(found) - expected).max() < 0.01


@pytest.mark.parametrize(
    ("labels", "data_file", "parts"),
    [
        (ULTRALYTICS, "", {"train": ["a.png", "deep/b.png"], "val": ["c.png"]}),
        (ROBOFLOW, "", {"train": ["a.png"], "val": ["c.png"], "valid": ["c.png"]}),
        (
            ROBOFLOW,  # what Roboflow writes: paths that begin a folder too high
            "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n",
            {"train": ["a.png"], "val": ["c.png"]},
        ),
        (
            ULTRALYTICS,
            "path: /content/nowhere\ntrain: /content/nowhere/images/train\n",
            {"train": ["a.png", "deep/b.png"]},
        ),
        (
            ULTRALYTICS,
            "train: [images/train, images/val]\nval:\n",
            {"train": ["train/a.png", "train/deep/b.png", "val/c.png"]},
        ),
        (
            ULTRALYTICS,
            "train: train.txt\nval: images\\val\n",
            {"train": ["val/c.png", "train/a.png"], "val": ["c.png"]},
        ),
        ({"images/a.png": "0 0.5 0.5 1 1", "images/b.png": None}, "", {"images": ["a.png", "b.png"]}),
        ({"a.png": "0 0.5 0.5 1 1", "b.png": None}, "", {"set": ["a.png", "b.png"]}),
    ],
    ids=[
        "Ultralytics",
        "Roboflow",
        "Roboflow's file",
        "another machine's file",
        "two folders",
        "list",
        "no parts",
        "flat",
    ],
)
def test_parts_are_found(tmp_path: Path, labels: dict[str, str], data_file: str, parts: dict[str, list[str]]) -> None:
    folder = fill(tmp_path / "set", labels)
    (folder / "data.yaml").write_text(data_file + NAMES)
    (folder / "train.txt").write_text(f"./images/val/c.png\n\n{folder / 'images' / 'train' / 'a.png'}\n")
    whole = convert_yolo(folder).content
    for split, expected in parts.items():
        converted = convert_yolo(folder, split=split)
        assert sorted(name for _, name in files(converted.content)) == sorted(expected)
        assert all((converted.images / name).is_file() for name in expected)
        annotations = {annotation["id"]: annotation for annotation in whole["annotations"]}
        assert converted.content["annotations"]
        for annotation in converted.content["annotations"]:  # the same ids in the part and in all of them
            assert annotation == annotations[annotation["id"]]


def test_a_data_file_stands_for_its_folder(yolo: Path) -> None:
    for split in (None, "train", "val"):
        assert convert_yolo(yolo / "data.yaml", split=split) == convert_yolo(yolo, split=split)


def test_ids_are_the_same_in_every_part_and_run(yolo: Path) -> None:
    whole, train, val = (convert_yolo(yolo, split=split).content for split in (None, "train", "val"))
    assert whole == convert_yolo(yolo).content
    assert train["annotations"] + val["annotations"] == whole["annotations"]
    assert [image["id"] for image in train["images"] + val["images"]] == [1, 2, 3]
    assert {content["categories"] == whole["categories"] for content in (train, val)} == {True}


def test_a_part_that_is_not_there_is_told_or_refused_if_it_is_asked_for(yolo: Path) -> None:
    (yolo / "data.yaml").write_text(f"train: images/train\nval: images/gone\n{NAMES}")
    (note,) = convert_yolo(yolo).notes
    assert note.endswith("val: images/gone is not there; left out")
    assert convert_yolo(yolo, split="train").notes == ()
    with pytest.raises(DataError, match="val: images/gone is not there"):
        convert_yolo(yolo, split="val")


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("data.yaml", "names:\n  1: cat\n  0: dog\nnc: 2\n", ["dog", "cat"]),
        ("data.yaml", "names: [no, 1]\n", ["no", "1"]),  # YAML takes the first for false
        ("classes.txt", "\ufeffdog\r\nbig cat\r\n\r\n", ["dog", "big cat"]),
        ("obj.names", "dog\ncat", ["dog", "cat"]),
        ("labels/classes.txt", "dog\ncat\n", ["dog", "cat"]),
        ("images/classes.txt", "", []),
    ],
    ids=["mapping", "words of YAML", "classes.txt", "obj.names", "beside the labels", "beside the images"],
)
def test_names_are_found(tmp_path: Path, file: str, text: str, names: list[str]) -> None:
    fill(tmp_path, {"images/a.png": "0 0.5 0.5 1 1"})
    (tmp_path / file).write_bytes(text.encode())
    if not names:
        with pytest.raises(DataError, match="give --names FILE or --classes A,B"):
            convert_yolo(tmp_path)
        return
    assert [category["name"] for category in convert_yolo(tmp_path).content["categories"]] == names


def test_names_that_are_given_go_before_those_of_the_set(yolo: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("wolf\nlynx\n")
    for words, expected in (
        ({"names": tmp_path / "mine.txt"}, ["wolf", "lynx"]),
        ({"classes": ["owl", "bat", "cow"]}, ["owl", "bat", "cow"]),
    ):
        content = convert_yolo(yolo, **words).content  # type: ignore[arg-type]
        assert [category["name"] for category in content["categories"]] == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_counts_as_viewers_turn_it(tmp_path: Path, orientation: int) -> None:
    """Labels are drawn on what a viewer shows; 180° and mirrored cannot be told from the size, which is said."""
    _, jpeg = cv2.imencode(".jpg", np.zeros((40, 80, 3), np.uint8))
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + b"\0\0\0\0"
    fill(tmp_path, {"images/a.png": "0 0.25 0.5 0.5 1", "images/b.png": None})
    (tmp_path / "images" / "a.png").unlink()
    content = jpeg.tobytes()
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif
    (tmp_path / "images" / "a.jpg").write_bytes(content[:2] + segment + content[2:])
    converted = convert_yolo(tmp_path, classes=["dog"])
    (annotation,) = converted.content["annotations"]
    is_upright = orientation < 5
    assert annotation["bbox"] == ([0, 0, 40, 40] if is_upright else [0, 0, 20, 80])
    assert len(converted.notes) == (1 < orientation < 5)
    path = tmp_path / "out.json"
    path.write_text(json.dumps(converted.content))
    assert read_coco(path, converted.images).image(0).shape == ((40, 80, 3) if is_upright else (80, 40, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 1", "line 1: 4 columns; expected 5"),
        ("0 0.5 0.5 1 1 0.9", "line 1: 6 columns; expected 5 .*; the last may be a score"),
        ("0 0.1 0.1 0.5 0.5 0.9 0.9 0.3", "line 1: 8 columns; expected 5"),
        ("0 0.5 0.5 1 1\n\n2 0.5 0.5 1 1", "line 3: class 2; the names go from 0 to 1"),
        ("-1 0.5 0.5 1 1", "line 1: class -1; the names"),
        ("0.5 0.5 0.5 1 1", "line 1: class 0.5; the names"),
        ("dog 0.5 0.5 1 1", "line 1: a value is 'dog', expected a number"),
        ("0 0.5 nan 1 1", "line 1: a value is 'nan', expected a number"),
        ("0 0.5 0.5 inf 1", "line 1: a value is 'inf', expected a number"),
        ("0,0.5,0.5,1,1", "line 1: 1 column; expected 5"),
        ("0 40 20 80 40", "line 1: 40 is far outside 0…1; .* not pixels"),
        ("0 0.5 0.5 1 1.51", "line 1: 1.51 is far outside 0…1"),
        ("0 -0.51 0.5 1 1", "line 1: -0.51 is far outside 0…1"),
        ("0 0.1 0.1 0.5 -20 0.9 0.9", "line 1: -20 is far outside 0…1"),
    ],
    ids=str,
)
def test_a_malformed_line_is_refused_with_its_place(yolo: Path, text: str, message: str) -> None:
    (yolo / "labels" / "val" / "c.txt").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        convert_yolo(yolo)
    assert "1 fault, so nothing was written" in str(error.value)
    assert "c.txt" in str(error.value)


def test_a_label_file_without_an_image_is_left_out_and_told(yolo: Path) -> None:
    for name in ("x.txt", "deep/a.txt", "classes.txt", "README.txt"):
        (yolo / "labels" / "train" / "deep").mkdir(exist_ok=True)
        (yolo / "labels" / "train" / name).write_text("0 0.5 0.5 1 1")
    before = convert_yolo(yolo, split="val")
    (note,) = convert_yolo(yolo, split="train").notes
    labels = yolo / "labels" / "train"
    assert note == f"2 label files have no image and are left out: {labels / 'deep' / 'a.txt'}, {labels / 'x.txt'}"
    assert len(before.content["images"]) == 1
    assert before.notes == ()


def test_parts_that_are_put_together_are_told(yolo: Path) -> None:
    (note,) = convert_yolo(yolo).notes
    assert note.startswith("train and val together")
    assert "--split" in note
    assert convert_yolo(yolo, split="val").notes == ()


@pytest.mark.parametrize("name", ["data.yml", "cats.yaml"])
def test_a_data_file_of_another_name_is_told(yolo: Path, name: str) -> None:
    (yolo / "data.yaml").rename(yolo / name)
    (yolo / "a.yaml").write_text("[")  # another program's, perhaps
    with pytest.raises(DataError, match=rf"no names in .*; {name} has names: give the data file itself, .*{name}$"):
        convert_yolo(yolo)
    (yolo / "images").rename(yolo.parent / "pictures")
    with pytest.raises(DataError, match=f"no image in it; .*: give the data file itself, .*{name}$"):
        convert_yolo(yolo)


def test_all_faults_are_counted_and_the_first_named(yolo: Path) -> None:
    (yolo / "labels" / "val" / "c.txt").write_text("0 0.5\n" * 6)
    (yolo / "images" / "train" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError) as error:
        convert_yolo(yolo)
    first, *named, last = str(error.value).splitlines()
    assert first == f"{yolo}: 7 faults, so nothing was written:"
    assert len(named) == 5
    assert last == "  and 2 more"


def test_pixels_are_not_text_and_text_is_no_picture(yolo: Path) -> None:
    (yolo / "labels" / "val" / "c.txt").write_bytes(b"\xff\xfe0\0")
    (yolo / "images" / "train" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"c\.txt: not text in UTF-8") as error:
        convert_yolo(yolo)
    assert "a.png: not an image" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", r"data\.yaml: not YAML"),
        ("just text", r"data\.yaml: expected train, val and names"),
        ("nc: 3\n" + NAMES, "nc is 3, but there are 2 names"),
        ("names: {0: dog, 2: cat}\n", "the keys are 0, 2; expected the numbers from 0 on"),
        ("names: dog\n", "names: expected a list of class names"),
        ("names: [dog, [cat]]\n", "names: expected a list of class names"),
        ("train: images/train\nnames: [dog, cat, dog]\n", "names: dog: named twice"),
        ("kpt_shape: [17, 3]\n" + NAMES, "only boxes are converted"),
        ("train: images/gone\n" + NAMES, r"train: images/gone is not there; the folder itself can be given"),
        (NAMES, "names neither train, val nor test; the folder itself can be given"),
        ("train: empty\n" + NAMES, "train: no image in"),
        ("train: list.txt\n" + NAMES, r"list\.txt: 1 of its images are not there, such as images/gone\.png"),
        ("train: images/train\n", "give --names FILE or --classes A,B"),
    ],
    ids=str,
)
def test_a_data_file_that_cannot_be_followed_is_refused(yolo: Path, text: str, message: str) -> None:
    (yolo / "empty").mkdir()
    (yolo / "list.txt").write_text("images/gone.png\nimages/train/a.png\n")
    (yolo / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        convert_yolo(yolo / "data.yaml")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"split": "test"}, "--split test: .* has no such part; there: empty, train, val"),
        ({"split": "empty"}, "no image in .*empty"),
        ({"classes": []}, "--classes: no class is named"),
        ({"classes": ["a", "a"]}, "--classes: a: named twice"),
        ({"names": Path("nowhere.txt")}, r"nowhere\.txt: no such file"),
    ],
    ids=str,
)
def test_what_is_asked_for_must_be_there(yolo: Path, words: dict[str, Any], message: str) -> None:
    (yolo / "images" / "empty").mkdir()
    (yolo / "data.yaml").write_text(NAMES)
    with pytest.raises(DataError, match=message):
        convert_yolo(yolo, **words)


def test_a_folder_without_images_or_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder or data file"):
        convert_yolo(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no image in it; expected images/ and labels/"):
        convert_yolo(tmp_path)
    fill(tmp_path, {"images/a.png": None, "images/b.png": None})
    with pytest.raises(DataError, match=r"none of 2 images has a label file; looked in places such as .*labels"):
        convert_yolo(tmp_path, classes=["dog"])
    (tmp_path / "blank.txt").write_text("dog\n\ncat\n")
    with pytest.raises(DataError, match=r"blank\.txt: line 2 is blank"):
        convert_yolo(tmp_path, names=tmp_path / "blank.txt")


def test_the_command_writes_what_our_reader_takes(yolo: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    out = tmp_path / "new" / "train.json"
    before = {path: path.read_bytes() for path in yolo.rglob("*") if path.is_file()}
    answer = cli("convert", "yolo", yolo / "data.yaml", "--split", "train", "--out", out)
    assert (answer.status, answer.err) == (0, "")
    assert "2 images, 2 boxes (0 of them crowd), classes: dog, cat" in answer.out
    assert f"next: {command_line('mnet-det', 'check', out, '--images', yolo / 'images' / 'train')}" in answer.out
    data = read_coco(out, yolo / "images" / "train")
    data.require_files()
    assert data.truth(0).boxes_xyxy.tolist() == [[0, 0, 80, 40], [10, 0, 30, 20]]
    assert len(data.truth(1).labels) == 0
    assert before == {path: path.read_bytes() for path in yolo.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classes", "dog", "--out", "a.json"], "class 1; the names go from 0 to 0"),
        (["--out", "data.yaml"], "error: data.yaml: expected a name that ends in .json"),
    ],
)
def test_a_fault_is_one_message_and_no_file(
    yolo: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any], words: list[str], message: str
) -> None:
    monkeypatch.chdir(yolo)
    before = sorted(yolo.rglob("*"))
    answer = cli("convert", "yolo", yolo, *words)
    assert answer.status == 1
    assert message in answer.err
    assert "Traceback" not in answer.err
    assert sorted(yolo.rglob("*")) == before
