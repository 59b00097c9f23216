"""Settings: defaults, YAML, overrides, and errors that say what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from mnet_det.config import Config, DataConfig, ModelConfig, load_config, parse_config
from mnet_det.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "# nothing yet\n")) == Config() == load_config()


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {alpha: 0.75, rho: 0.5}\ntrain: {epochs: 7}\n")
    config = load_config(path, ["model.alpha=0.25", "data.classes=[cat, dog]"])
    assert (config.model.alpha, config.model.rho, config.train.epochs) == (0.25, 0.5, 7)
    assert config.data.classes == ("cat", "dog")


def test_the_last_of_two_overrides_counts() -> None:
    assert load_config(overrides=["train.seed=1", "train.seed=2"]).train.seed == 2


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("train.lr=1e-3", 0.001),  # YAML 1.1 takes this for a word, since it has no dot
        ("train.amp=off", "off"),  # YAML 1.1 takes this for false
        ("data.augment=none", "none"),
        ("model.init=null", None),
        ("model.base_hw=[320, 640]", (320, 640)),
        ("data.root=/data/coco", Path("/data/coco")),
    ],
    ids=lambda word: word if isinstance(word, str) and "=" in word else "",
)
def test_a_value_means_what_it_looks_like(word: str, value: object) -> None:
    section, name = word.partition("=")[0].split(".")
    assert getattr(getattr(load_config(overrides=[word]), section), name) == value


def test_a_bare_off_in_a_file_is_the_word(tmp_path: Path) -> None:
    """YAML 1.1 reads `amp: off` as false, which was refused with "input should be 'auto', 'off'…"."""
    assert load_config(write(tmp_path, "train:\n  amp: off\n")).train.amp == "off"


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No shell expands it inside `data.root=~/coco`, so it named a folder called `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load_config(overrides=["data.root=~/coco"]).data.root == tmp_path / "coco"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.alhpa=1", r"model\.alhpa: no such setting; did you mean 'alpha'\?"),
        ("modle.alpha=1", r"modle: no such setting; did you mean 'model'\?"),
        ("alpha=1", r"alpha: no such setting; did you mean 'model\.alpha'\?"),
        ("train.alpha=1", r"train\.alpha: no such setting; did you mean 'model\.alpha'\?"),
        ("model.zzz=1", r"model\.zzz: no such setting; known here: head, backbone, alpha"),
        ("model.alpha=wide", r"model\.alpha: got 'wide': input should be a valid number"),
        ("model.alpha=true", r"model\.alpha: got True: a number is expected, not true or false"),
        ("model.base_hw=[300, yes]", r"model\.base_hw\.1: got True: a number is expected"),
        ("model.alpha=0", r"model\.alpha: got 0: input should be greater than 0"),
        ("model.alpha=.inf", r"model\.alpha: got inf: input should be a finite number"),
        ("train.epochs=1.5", r"train\.epochs: got 1\.5: input should be a valid integer"),
        ("model.head=sdd", r"model\.head: got 'sdd': input should be 'ssd'"),
        ("train.amp=on", r"train\.amp: got True: input should be 'auto', 'off'"),
        ("model.alpha", r"model\.alpha: expected a setting as section\.key=value"),
        ("=1", r"=1: expected a setting as section\.key=value"),
        ("model.alpha={", r"model\.alpha=\{: the value is not YAML"),
        ("model.alpha.x=1", r"model\.alpha: "),
        ("train.schedule=steps", r"train: schedule 'steps' needs step_epochs"),
        ("model.anchor_scales=[0.9, 0.2]", r"model: anchor_scales must rise, got \[0\.9, 0\.2\]"),
        ("model.rho=0.05", r"model: the input would be 15x15 pixels .* at least 32 a side"),
    ],
    ids=lambda word: word if "=" in word else "",
)
def test_a_wrong_word_is_explained(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[word])


def test_a_setting_below_a_value_is_explained() -> None:
    with pytest.raises(ConfigError, match=r"model\.alpha\.x: 'alpha' is a value, it has no settings below it"):
        load_config(overrides=["model.alpha=1", "model.alpha.x=1"])


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"train": {"epochs": "many", "lrr": 1}}, source="run/config.yaml")
    first, second = str(caught.value).split("; ", maxsplit=1)
    assert first.startswith("run/config.yaml: train.epochs: got 'many'")
    assert second == "train.lrr: no such setting; did you mean 'lr'?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1", r"x\.yaml: not YAML \(.*line 1"),
        ("- 1\n- 2\n", r"x\.yaml: expected sections such as 'model:' and 'train:', got a list"),
        ("model: 3\n", r"x\.yaml: model: got 3"),
    ],
    ids=["broken", "list", "section"],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_a_file_that_is_absent_or_no_text_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such config file"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot be read as text"):
        load_config(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("base_hw", "rho", "input_hw"),
    [
        ((300, 300), 1.0, (300, 300)),
        ((224, 224), 0.857, (192, 192)),  # 191.968
        ((300, 300), 0.535, (161, 161)),  # 160.5: halves go up
        ((300, 400), 0.5, (150, 200)),
    ],
)
def test_rho_scales_the_input_to_the_nearest_integer(
    base_hw: tuple[int, int], rho: float, input_hw: tuple[int, int]
) -> None:
    assert ModelConfig(base_hw=base_hw, rho=rho).input_hw == input_hw


def test_the_saved_yaml_loads_to_an_equal_config(tmp_path: Path) -> None:
    words = [
        "model.alpha=0.5",
        "data.root=/data/my coco",
        "data.classes=[cat, 'no']",
        "train.amp=off",
        "model.init=a.pt",
    ]
    config = load_config(overrides=words)
    assert load_config(write(tmp_path, config.to_yaml())) == config
    assert set(yaml.safe_load(config.to_yaml())) == {"model", "data", "train", "eval"}


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().model.alpha = 0.5  # type: ignore[misc]


def test_the_root_is_laid_out_like_coco() -> None:
    data = DataConfig(root=Path("/coco"))
    assert data.images("train") == Path("/coco/train2017")
    assert data.annotations("val") == Path("/coco/annotations/instances_val2017.json")


def test_a_path_of_its_own_wins_over_the_root() -> None:
    data = DataConfig(root=Path("/coco"), val_images=Path("/mine"))
    assert data.images("val") == Path("/mine")
    assert data.images("train") == Path("/coco/train2017")


def test_no_path_at_all_is_explained() -> None:
    with pytest.raises(
        ConfigError, match=r"no val annotations: set data\.root=FOLDER .* or data\.val_annotations=PATH"
    ):
        DataConfig().annotations("val")


def test_a_section_whose_settings_are_all_commented_out_takes_overrides(tmp_path: Path) -> None:
    """YAML reads it as null, and `data.root=x` was told that 'data' is a value."""
    path = tmp_path / "x.yaml"
    path.write_text("data:\n  # root: coco\ntrain:\n")
    config = load_config(path, ["data.root=x"])
    assert config.data.root == Path("x")
    assert config.train.epochs == Config().train.epochs


def test_a_section_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """Lines that `check --config` proposes, pasted below the file, silently took the place of the whole section."""
    path = tmp_path / "c.yaml"
    path.write_text("model:\n  alpha: 0.5\ntrain:\n  epochs: 3\nmodel:\n  anchor_scales: [0.1, 0.9]\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: not YAML \('model' stands there twice, the second time .* line 5"):
        load_config(path)


def test_yaml_may_merge_a_mapping_into_another(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("train: &base\n  epochs: 3\nmodel:\n  alpha: 0.5\n")
    assert load_config(path).train.epochs == 3
    path.write_text("x: &base {epochs: 3}\ntrain:\n  <<: *base\n  seed: 4\n")
    with pytest.raises(ConfigError, match="x: no such setting"):  # read as far as that
        load_config(path)
