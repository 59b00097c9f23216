"""Annotation files spoilt at random: judging and reading them works or is our error, never anything else.

`MNET_DET_FUZZ=100000 pytest tests/data/test_check_fuzz.py` tries that many; a case is made again by its number alone.
"""

from __future__ import annotations

import io
import json
import os
import random
import traceback
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rich.console import Console

from mnet_det.data.annotations import examine_annotations
from mnet_det.data.check import check
from mnet_det.data.coco import read_coco, read_coco_json
from mnet_det.engine.evaluate import score_results
from mnet_det.errors import MnetDetError
from mnet_det.report.verdict import print_verdict

CASES = int(os.environ.get("MNET_DET_FUZZ", "2000"))
BATCHES = 4
SPOILT_BYTES = 0.15
"""Share of the cases whose text is spoilt too, after the values in it."""
CHECKED_EVERY = 32
"""Of how many cases one has its images looked at and its verdict printed, which takes ten times as long as the rest."""

VALID: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [
        {"id": 3, "file_name": "a.png", "height": 8, "width": 12},
        {"id": 5, "file_name": "b.png", "height": 8, "width": 12},
        {"id": 9, "file_name": "ü.png", "height": 8, "width": 12},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 1, 4.5, 5], "area": 22.5, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 42, "bbox": [5, 2, 3, 3], "area": 9, "iscrowd": 1},
        {"id": 4, "image_id": 5, "category_id": 7, "bbox": [0, 0, 12, 8], "segmentation": [[0, 0, 1, 1, 1, 0]]},
        {"id": 6, "image_id": 9, "category_id": 1000, "bbox": [2, 2, 5, 5], "area": 25},
    ],
    "categories": [{"id": 7, "name": "cat"}, {"id": 42, "name": "[dog] 犬"}, {"id": 1000, "name": "%s {}"}],
}

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, -0.0, 1e-320, 3.7, 7, 42, 8, 12),
    *(2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**18, 10**30, 10**400, -(10**400)),
    *(1e9, 1e18, 1e30, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *("", " ", "0", "cat", "CAT ", "a.png", "/", ".", "..", "../a.png", "/etc/passwd", "a.png/b", "\0", "a\0b", "ü"),
    *("\ud800", "\udfff.png", "\x1b[2J", "\n", "[/red]", "[bold", "{0} %s \\", "犬" * 50, "\u202e", "x" * 5000),
    *([], {}, [[]], [None], [1, 2, 3, 4], [0, 0, float("nan"), 1], [1, 2, 3, 10**400], ["1"] * 4, [[1]] * 4),
    *([1] * 1000, {"id": 1}, {"id": {"id": {}}}, {"": None}),
)
ODD_TEXTS = ("", "null", "NaN", "0", "[]", "{}", '"', "[" * 3000, '{"a":' * 3000, "1" * 5000, "\ufeff", "\\ud800", ",")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    for number, image in enumerate(VALID["images"]):
        done, data = cv2.imencode(".png", np.full((8, 12, 3), number, np.uint8))
        assert done
        (folder / image["file_name"]).write_bytes(data.tobytes())
    return folder


@pytest.mark.parametrize("batch", range(BATCHES))
def test_a_spoilt_file_is_judged_and_read_or_is_our_error(folder: Path, batch: int) -> None:
    path = folder / f"{batch}.json"
    readable = 0
    for number in range(batch, CASES, BATCHES):
        data = spoil(number)
        path.write_bytes(data)
        try:
            readable += survive(path, folder)
            if number // BATCHES % CHECKED_EVERY == 0:
                survive_check(path, folder)
        except Exception:  # noqa: BLE001 - whatever it is, the case is to be named
            pytest.fail(f"case {number}, {data[:2000]!r}:\n{traceback.format_exc()}")
    assert 0 < readable < CASES / BATCHES  # the spoiling is neither too weak nor too strong


def test_the_valid_file_is_read_and_has_only_its_crowd(folder: Path) -> None:
    path = folder / "valid.json"
    path.write_text(json.dumps(VALID))
    assert survive(path, folder)
    survive_check(path, folder)
    assert [fault.kind for fault in check(path, folder).faults] == ["crowd"]


def survive(path: Path, folder: Path) -> bool:
    """Judge a file and read it in both ways; whether that was possible."""
    examined = examine_annotations(path)
    json.dumps([fault.to_json() for fault in examined.faults], allow_nan=False).encode()
    as_coco, as_data = attempt(read_coco_json, path), attempt(lambda path: read_coco(path, folder), path)
    # One judgement: what is fatal is refused by both, and nothing else is.
    assert (as_coco is None) == (as_data is None) == bool(examined.fatal), [str(fault) for fault in examined.fatal]
    return as_data is not None


def survive_check(path: Path, folder: Path) -> None:
    verdict = check(path, folder, val=path, val_images=folder)
    json.dumps(verdict.to_json(), allow_nan=False).encode()
    truth = attempt(read_coco_json, path)
    if truth is not None:  # then pycocotools can judge by it
        found = [{**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 0.5} for a in truth["annotations"]]
        score_results(found, truth)
    print_verdict(Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=40, markup=False), verdict)


def attempt(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except MnetDetError:
        return None


def spoil(number: int) -> bytes:
    """The valid file with one to three changes in its values, and perhaps in its text."""
    rng = random.Random(number)
    content: Any = deepcopy(VALID)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, key = rng.choice(list(places(content)))
        rng.choice(CHANGES)(rng, holder, key)
    text = json.dumps(content, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return spoil_text(rng, text) if rng.random() < SPOILT_BYTES else text


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list and object with each of its indices and keys, at any depth."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def replace(rng: random.Random, holder: Any, key: Any) -> None:
    holder[key] = deepcopy(rng.choice(ODD_VALUES))


def drop(rng: random.Random, holder: Any, key: Any) -> None:
    del holder[key]


def repeat(rng: random.Random, holder: Any, key: Any) -> None:
    """The same once more: an entry twice in its list, or a value in a list of its own."""
    if isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), deepcopy(holder[key]))
    else:
        holder[key] = [deepcopy(holder[key])]


def rename(rng: random.Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[rng.choice((key.upper(), f"{key} ", "id", "name", "\ud800"))] = holder.pop(key)


def move(rng: random.Random, holder: Any, key: Any) -> None:
    """A number that is shifted, scaled or turned round."""
    value = holder[key]
    if isinstance(value, int | float) and abs(value) < 1e300:  # a larger integer is no float, and is odd enough
        holder[key] = rng.choice((-value, value * 1000, value / 1000, value + 1, value - 5, float(value), str(value)))


def exchange(rng: random.Random, holder: Any, key: Any) -> None:
    other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    holder[key], holder[other] = holder[other], holder[key]


CHANGES = (replace, replace, replace, drop, repeat, rename, move, exchange)


def spoil_text(rng: random.Random, text: bytes) -> bytes:
    start = rng.randrange(len(text))
    end = min(len(text), start + rng.randrange(1, 40))
    return rng.choice(
        (
            text[:start],
            text[start:],
            text[:start] + text[end:],
            text[:start] + text[start:end] * 2 + text[end:],
            text[:start] + bytes([text[start] ^ 1 << rng.randrange(8)]) + text[start + 1 :],
            text[:start] + rng.choice(ODD_TEXTS).encode("utf-8", "surrogatepass") + text[end:],
            text + text,
            text.decode("utf-8", "replace").encode("utf-16"),
            b'{"images": [], ' + text[1:],
        )
    )
