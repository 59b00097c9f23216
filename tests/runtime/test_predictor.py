from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mnet_det.errors import ConfigError
from mnet_det.runtime import Predictor, load_predictor
from mnet_det.runtime.backends import OpenVINOBackend
from mnet_det.runtime.metadata import ModelMetadata
from mnet_det.runtime.postprocess import Thresholds

WriteModel = Callable[..., Path]


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


@pytest.fixture
def predictor(write_model: WriteModel) -> Predictor:
    return load_predictor(write_model())


def test_boxes_are_in_the_image_s_own_pixels(predictor: Predictor) -> None:
    """The network sees 32 x 32; x is stretched by 128 / 32 = 4 and y by 64 / 32 = 2."""
    found = predictor(white(64, 128))
    np.testing.assert_allclose(found.boxes_xyxy[:2], [[16, 8, 48, 24], [64, 32, 128, 56]])
    assert found.labels.tolist() == [0, 1, 0]


def test_letterboxed_boxes_come_back_and_padding_holds_none(write_model: WriteModel, metadata: ModelMetadata) -> None:
    """64 x 128 letterboxed into 32 x 32 is 16 x 32, a quarter; the boxes centred at y = 22 lie in padding.

    Half the input is white and half grey 127, so its mean is 191 and the best score 0.9 x 191 / 255 = 0.674.
    """
    text = metadata.model_copy(update={"resize": "letterbox"}).to_json()
    found = load_predictor(write_model(text=text))(white(64, 128))
    np.testing.assert_allclose(found.boxes_xyxy, [[16, 16, 48, 48]])
    np.testing.assert_allclose(found.scores, [0.9 * 191 / 255], rtol=1e-5)


def test_the_score_of_a_call_holds_for_that_call_alone(predictor: Predictor) -> None:
    image = white(32, 32)
    assert [len(predictor(image, score=0.5)), len(predictor(image)), len(predictor(image, score=0.95))] == [2, 3, 0]


def test_each_class_can_have_a_score_of_its_own(predictor: Predictor) -> None:
    """Class 0 has 0.9 and 0.2 (its 0.8 is suppressed), class 1 0.7; 0.1 and 0.05 are below the model's own 0.15."""
    image = white(32, 32)
    assert predictor(image, score=(0.2, 0.75)).labels.tolist() == [0, 0]
    assert predictor(image, score=(0.95, 0.7)).labels.tolist() == [1]
    assert predictor(image).labels.tolist() == [0, 1, 0]


def test_a_model_is_shown_with_the_scores_of_its_classes_where_it_knows_them(
    write_model: WriteModel, metadata: ModelMetadata
) -> None:
    assert load_predictor(write_model()).viewing_score == 0.5
    text = metadata.model_copy(update={"class_scores": (0.95, 0.3)}).to_json()
    predictor = load_predictor(write_model(name="scored.onnx", text=text))
    assert predictor.viewing_score == (0.95, 0.3)
    assert predictor(white(32, 32), score=predictor.viewing_score).labels.tolist() == [1]
    assert len(predictor(white(32, 32))) == 3  # unasked, all that it was scored with
    loaded_so = load_predictor(write_model(name="scored.onnx", text=text), score=(0.95, 0.3))
    assert len(loaded_so(white(32, 32))) == len(loaded_so.batch([white(32, 32)])[0]) == 1


def test_the_nms_of_a_call_holds_for_that_call_alone(predictor: Predictor) -> None:
    image = white(100, 50)
    counts = [len(predictor(image, nms=nms)) for nms in (1.0, None, 0.0)]
    assert counts[0] >= counts[1] == len(predictor(image)) >= counts[2]
    assert counts[0] > counts[2]


def test_the_score_given_at_loading_stays(write_model: WriteModel) -> None:
    assert len(load_predictor(write_model(), score=0.5)(white(32, 32))) == 2


def test_a_batch_equals_its_singles(predictor: Predictor) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(128, 256, (height, 40, 3), np.uint8) for height in (32, 50, 33)]
    for together, alone in zip(predictor.batch(images), map(predictor, images), strict=True):
        np.testing.assert_array_equal(together.boxes_xyxy, alone.boxes_xyxy)
        np.testing.assert_array_equal(together.scores, alone.scores)
        np.testing.assert_array_equal(together.labels, alone.labels)


def test_a_batch_of_nothing_is_nothing(predictor: Predictor) -> None:
    assert predictor.batch([]) == []


def test_each_stage_is_timed_and_the_total_is_their_sum(predictor: Predictor) -> None:
    found, times = predictor.timed(white(32, 32))
    stages = (times.preprocess_ms, times.network_ms, times.postprocess_ms)
    assert len(found) == 3
    assert min(stages) > 0
    assert times.total_ms == pytest.approx(sum(stages))


def test_a_predictor_says_what_it_runs(write_model: WriteModel, metadata: ModelMetadata) -> None:
    predictor = load_predictor(str(write_model()), runtime="onnxruntime", threads=1)
    assert (predictor.runtime, predictor.threads) == ("onnxruntime", 1)
    assert predictor.metadata == metadata
    assert predictor.class_names == ("cat", "naïve dog")
    assert load_predictor(write_model(), runtime="openvino").runtime == "openvino"


def test_thresholds_are_the_model_s_own_unless_given(write_model: WriteModel) -> None:
    backend = OpenVINOBackend(write_model())
    assert Predictor(backend).thresholds == Thresholds(0.15, 0.6, 100, 10)
    given = Thresholds(0.5, 0.5, 10, 1)
    assert len(Predictor(backend, thresholds=given)(white(32, 32))) == 1


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
        [[0, 0, 0]],
        None,
    ],
    ids=["float", "grey", "alpha", "empty", "list", "none"],
)
def test_anything_but_rgb_pixels_is_refused(predictor: Predictor, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected an RGB image, uint8 \[H, W, 3\]; got"):
        predictor(image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"runtime": "tensorrt"}, "runtime: got 'tensorrt', expected one of auto, openvino, onnxruntime"),
        ({"threads": 0}, "threads: got 0, expected 1 to "),
        ({"threads": 10**6}, "threads: got 1000000, expected 1 to "),  # ONNX Runtime made them, until memory was full
    ],
)
def test_settings_that_do_not_exist_are_explained(settings: dict, message: str, write_model: WriteModel) -> None:
    with pytest.raises(ConfigError, match=message):
        load_predictor(write_model(), **settings)
