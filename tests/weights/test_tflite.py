"""Networks read from TensorFlow Lite files against LiteRT, TensorFlow's own engine, running the same files.

8-bit engines round each map. Given the very map that LiteRT had, a layer of ours must come within one step of LiteRT's
output (0.5 is the rounding itself; the rest is LiteRT's fixed-point arithmetic). From the pixels on, rounding adds up.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnet_det.data.coco import read_coco
from mnet_det.engine.evaluate import evaluate
from mnet_det.engine.torch_backend import load_torch_predictor
from mnet_det.errors import CheckpointError
from mnet_det.images import read_image
from mnet_det.models import build_classifier, build_detector
from mnet_det.models.anchors import AnchorGenerator
from mnet_det.models.layers import ConvBNAct
from mnet_det.models.ssd import SSD
from mnet_det.preprocess import Preprocessor
from mnet_det.weights.published import Published
from mnet_det.weights.tflite import read_tflite
from mnet_det.weights.tflite_graph import CONVOLUTIONS, Graph, read_graph

SSD_FILE = "ssd_mobilenet_v1_coco_quant.tflite"
CLASSIFIERS = (
    "mobilenet_v1_0.25_128_quant.tflite",
    "mobilenet_v1_0.25_224_float.tflite",
    "mobilenet_v1_0.5_160_quant.tflite",
    "mobilenet_v1_0.75_192_quant.tflite",
)
EMBEDDING = "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
PICTURES = ("grace_hopper.bmp", "owl.jpg", "parrot.jpg")
ELEVEN = [f"class {number}" for number in range(11)]
FOUR = ["background", "cat", "dog", "bird"]


def build(published: Published) -> nn.Module:
    """The network with all tensors of a file, no more and no less."""
    num_classes, weights = max(1, len(published.class_names)), published.weights
    if published.kind == "detector":
        detector = build_detector(published.model, num_classes=num_classes, stored_anchors=weights["stored_anchors"])
        detector.load_state_dict(weights)
        return detector.eval()
    classifier = build_classifier(published.model, num_classes=num_classes)
    if published.kind == "classifier":
        classifier.load_state_dict(weights)
    else:
        classifier.backbone.load_state_dict({name.removeprefix("backbone."): weights[name] for name in weights})
    return classifier.eval()


def pixels_for(published: Published, picture: Path) -> NDArray[np.uint8]:
    return Preprocessor(published.model.input_hw, mode="stretch")(read_image(picture))[0]


def noise(side: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (3, side, side), dtype=np.uint8)


@dataclass(frozen=True)
class Layer:
    """A layer of ours, the tensors that it reads and writes in the file, and which of the file's channels it keeps."""

    name: str
    module: nn.Module
    source: int
    output: int
    channels: list[int] | None = None


def layers_of(network: nn.Module, published: Published, graph: Graph) -> Iterator[Layer]:
    """All layers in the file's order, predictors last."""
    operators = [operator for operator in graph.operators if operator.kind in CONVOLUTIONS]
    trunk = [(name, module) for name, module in network.named_modules() if isinstance(module, ConvBNAct)]
    for (name, module), operator in zip(trunk, operators, strict=False):
        yield Layer(name, module, operator.inputs[0], operator.outputs[0])
    if published.kind == "detector":
        detection = graph.operators[-1]
        columns = {"box_predictors": [1, 0, 3, 2], "class_predictors": [0, *published.category_ids]}
        outputs = {"box_predictors": 4, "class_predictors": int(detection.custom["num_classes"]) + 1}
        for kind, raw in zip(columns, detection.inputs, strict=False):
            for number, operator in enumerate(graph.convolutions_into(raw)):
                anchors = graph.tensors[operator.outputs[0]].shape[3] // outputs[kind]
                kept = [anchor * outputs[kind] + column for anchor in range(anchors) for column in columns[kind]]
                name = f"{kind}.{number}"
                yield Layer(name, network.get_submodule(name), operator.inputs[0], operator.outputs[0], kept)


def one_layer_errors(network: nn.Module, published: Published, graph: Graph, engine: Any) -> dict[str, float]:
    """Largest error of each layer, given the engine's own input of that layer; in steps, or as it is for floats."""
    errors = {}
    for layer in layers_of(network, published, graph):
        theirs = engine.value(layer.output)
        theirs = theirs if layer.channels is None else theirs[..., layer.channels]
        with torch.inference_mode():
            ours = layer.module(nchw(engine.value(layer.source)))
        ours = ours.permute(0, 2, 3, 1).numpy().clip(*engine.limits(layer.output))
        assert ours.shape == theirs.shape, layer.name
        errors[layer.name] = float(np.abs(ours - theirs).max()) / (engine.step(layer.output) or 1.0)
    return errors


def nchw(values: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def raw_outputs(network: SSD, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    with torch.inference_mode():
        logits, deltas, _ = network.predict(torch.from_numpy(pixels)[None])
    return logits.numpy(), deltas.numpy()


def their_raw_outputs(published: Published, graph: Graph, engine: Any) -> tuple[Any, Any, float, float]:
    """Logits and deltas in our order, and the steps of both."""
    detection = graph.operators[-1]
    scores = graph.producer(detection.inputs[1])
    assert scores is not None
    assert scores.kind == "LOGISTIC"
    deltas, logits = detection.inputs[0], scores.inputs[0]
    columns = [0, *published.category_ids]
    return (
        engine.value(logits)[..., columns],
        engine.value(deltas)[..., [1, 0, 3, 2]],
        engine.step(logits),
        engine.step(deltas),
    )


def logits_tensor(graph: Graph) -> int:
    return next(operator.inputs[0] for operator in graph.operators if operator.kind == "SOFTMAX")


# Small networks with random weights


@pytest.mark.parametrize(
    ("alpha", "form", "steps"),
    [
        (0.1, "float32", 0),
        (0.25, "float32", 0),
        (0.1, "uint8", 1),
        (0.25, "uint8", 1),
        (0.1, "int8", 1),
        (0.25, "int8", 1),
    ],
)
def test_every_layer_of_a_classifier_is_that_of_litert(
    draw_classifier: Callable[..., Any], litert: Any, tmp_path: Path, alpha: float, form: str, steps: int
) -> None:
    path = draw_classifier(alpha, form).save(tmp_path / "net.tflite")
    published, graph, engine = read_tflite(path, labels=ELEVEN), read_graph(path), litert(path, noise(32))
    network = build(published)
    errors = one_layer_errors(network, published, graph, engine)
    assert len(errors) == 27
    assert max(errors.values()) < (steps or 1e-4)
    logits = engine.value(logits_tensor(graph))[:, 1:]
    with torch.inference_mode():
        ours = network(torch.from_numpy(noise(32))[None]).numpy()
    assert np.abs(ours - logits).max() < (2 * engine.step(logits_tensor(graph)) or 1e-4)
    assert (published.kind, published.model.alpha, published.model.input_hw) == ("classifier", alpha, (32, 32))
    assert published.class_names == tuple(ELEVEN[1:])
    assert published.category_ids == tuple(range(10))
    assert published.folded


@pytest.mark.parametrize(("alpha", "form", "steps"), [(0.1, "float32", 0), (0.25, "float32", 0), (0.25, "uint8", 1)])
def test_every_layer_of_a_detector_is_that_of_litert(
    draw_ssd: Callable[..., Any], litert: Any, tmp_path: Path, alpha: float, form: str, steps: int
) -> None:
    path = draw_ssd(alpha, form).save(tmp_path / "net.tflite")
    published, graph, engine = read_tflite(path, labels=FOUR), read_graph(path), litert(path, noise(64))
    network = build(published)
    errors = one_layer_errors(network, published, graph, engine)
    assert len(errors) == 27 + 8 + 12
    assert max(errors.values()) < (steps or 1e-4)
    logits, deltas, logit_step, delta_step = their_raw_outputs(published, graph, engine)
    our_logits, our_deltas = raw_outputs(network, noise(64))  # type: ignore[arg-type]
    assert np.abs(our_logits - logits).max() < (3 * logit_step or 1e-4)
    assert np.abs(our_deltas - deltas).max() < (3 * delta_step or 1e-4)
    assert (published.kind, published.model.alpha, published.model.taps) == ("detector", alpha, (11, 13))
    assert (published.class_names, published.category_ids) == (("cat", "dog", "bird"), (1, 2, 3))


def test_the_best_box_of_a_detector_is_that_of_litert(
    draw_ssd: Callable[..., Any], litert: Any, tmp_path: Path
) -> None:
    """Through anchors, box coder and sigmoid, which the file leaves to the engine."""
    path = draw_ssd(0.25).save(tmp_path / "net.tflite")
    graph, engine = read_graph(path), litert(path, noise(64))
    boxes_yxyx, labels, scores = (engine.value(number) for number in graph.outputs[:3])
    with torch.inference_mode():
        found = build(read_tflite(path, labels=FOUR))(torch.from_numpy(noise(64))[None])
    best, label = divmod(int(found.scores.argmax()), 3)
    np.testing.assert_allclose(found.boxes_xyxy[0, best, 0] / 64, boxes_yxyx[0, 0, [1, 0, 3, 2]], atol=1e-5)
    assert label == labels[0, 0]
    assert float(found.scores.max()) == pytest.approx(float(scores[0, 0]), abs=1e-5)


def test_a_network_without_a_head_is_a_backbone(draw_classifier: Callable[..., Any], tmp_path: Path) -> None:
    published = read_tflite(draw_classifier(0.25, "uint8", outputs=0).save(tmp_path / "net.tflite"))
    assert (published.kind, published.class_names, published.category_ids) == ("backbone", (), ())
    assert all(name.startswith("backbone.") for name in published.weights)
    build(published)


@pytest.mark.parametrize(
    ("form", "mean", "std"), [("float32", 127.5, 127.5), ("uint8", 128, 128), ("int8", 128, 128)], ids=str
)
def test_pixel_scaling_is_that_of_the_input(
    draw_classifier: Callable[..., Any], tmp_path: Path, form: str, mean: float, std: float
) -> None:
    """8-bit inputs have scale 1 / 128 and the zero point of pixel 128; float files do not tell."""
    model = read_tflite(draw_classifier(0.1, form).save(tmp_path / "net.tflite"), labels=ELEVEN).model
    assert (model.pixel_mean, model.pixel_std) == ((mean,) * 3, (std,) * 3)
    assert (model.padding, model.activation) == ("same", "relu6")


def test_relu_without_6_is_told_apart(draw_classifier: Callable[..., Any], litert: Any, tmp_path: Path) -> None:
    drawn = draw_classifier(0.1)
    for operator in drawn.operators[:27]:
        operator.builtinOptions.fusedActivationFunction = 1  # RELU
    for number in (1, 2):  # large enough that 6 is passed
        drawn.model.buffers[number].data = (drawn.model.buffers[number].data.view(np.float32) * 30).view(np.uint8)
    path = drawn.save(tmp_path / "net.tflite")
    published, graph, engine = read_tflite(path, labels=ELEVEN), read_graph(path), litert(path, noise(32))
    assert published.model.activation == "relu"
    errors = one_layer_errors(build(published), published, graph, engine)
    assert engine.value(graph.operators[0].outputs[0]).max() > 6
    assert max(errors.values()) < 1e-3


def test_relu6_may_be_told_by_the_range_alone(draw_classifier: Callable[..., Any], tmp_path: Path) -> None:
    drawn = draw_classifier(0.1, "uint8")
    for operator in drawn.operators[:27]:
        operator.builtinOptions.fusedActivationFunction = 0  # NONE; the output's type holds 0…6 and no more
    assert read_tflite(drawn.save(tmp_path / "net.tflite"), labels=ELEVEN).model.activation == "relu6"


def options(drawn: Any, operator: int, **values: int) -> None:
    for name, value in values.items():
        setattr(drawn.operators[operator].builtinOptions, name, value)


def replace_operator(drawn: Any, operator: int, code: int) -> None:
    code_of = drawn.model.operatorCodes[drawn.operators[operator].opcodeIndex]
    code_of.builtinCode = code_of.deprecatedBuiltinCode = code


def join(drawn: Any, operator: int, source: int) -> None:
    drawn.operators[operator].inputs[0] = drawn.operators[source].outputs[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda drawn: options(drawn, 3, padding=1), r"padding VALID and strides .*\(2, 2, 1, 1\), expected SAME"),
        (
            lambda drawn: options(drawn, 4, strideH=2),
            r"strides and dilations \(2, 1, 1, 1\), expected SAME and \(1, 1, 1, 1\)",
        ),
        (lambda drawn: options(drawn, 4, dilationWFactor=2), r"\(1, 1, 1, 2\), expected SAME and \(1, 1, 1, 1\)"),
        (lambda drawn: replace_operator(drawn, 28, 59), "not a MobileNetV1 that we know: it has operators NEG"),
        (lambda drawn: drawn.model.subgraphs[0].inputs.append(1), "it has 2 inputs"),
        (lambda drawn: join(drawn, 6, 3), "does not follow the convolution before it"),
        (lambda drawn: options(drawn, 5, fusedActivationFunction=0), "has activation NONE"),
        (lambda drawn: options(drawn, 5, fusedActivationFunction=1), "some of its layers have ReLU, others ReLU6"),
        (lambda drawn: drawn.operators.pop(1), "26 convolutions before its outputs, expected 27"),
    ],
    ids=[
        "padding",
        "stride",
        "dilation",
        "operator",
        "inputs",
        "order",
        "no activation",
        "two activations",
        "a layer less",
    ],
)
def test_another_network_is_refused_with_what_it_has(
    draw_classifier: Callable[..., Any], tmp_path: Path, damage: Callable[[Any], Any], message: str
) -> None:
    drawn = draw_classifier(0.1)
    damage(drawn)
    path = drawn.save(tmp_path / "net.tflite")
    with pytest.raises(CheckpointError, match=message):
        read_tflite(path, labels=ELEVEN)


def test_a_filter_without_numbers_is_refused(draw_classifier: Callable[..., Any], tmp_path: Path) -> None:
    drawn = draw_classifier(0.1)
    drawn.model.buffers[1].data = None
    with pytest.raises(CheckpointError, match="cannot be read: tensor tensor_1 holds 0 bytes of FLOAT32"):
        read_tflite(drawn.save(tmp_path / "net.tflite"), labels=ELEVEN)


def test_numbers_that_are_not_finite_are_refused(draw_classifier: Callable[..., Any], tmp_path: Path) -> None:
    drawn = draw_classifier(0.1)
    numbers = drawn.model.buffers[1].data.view(np.float32).copy()
    numbers[5] = np.nan
    drawn.model.buffers[1].data = numbers.view(np.uint8)
    with pytest.raises(CheckpointError, match=r"backbone\.stem\.bn\.bias holds numbers that are not finite"):
        read_tflite(drawn.save(tmp_path / "net.tflite"), labels=ELEVEN)


def test_anchors_that_are_not_ours_are_refused(draw_ssd: Callable[..., Any], tmp_path: Path) -> None:
    path = draw_ssd(0.1, anchors_off=0.01).save(tmp_path / "net.tflite")
    with pytest.raises(CheckpointError, match=r"its 96 anchors are not ours \(96 .*differ by 0\.01 of the input"):
        read_tflite(path, labels=FOUR)  # 96 is 4 × 4 × 3 + (2 × 2 + 4) × 6


def test_other_box_scales_are_refused(draw_ssd: Callable[..., Any], tmp_path: Path) -> None:
    from flatbuffers import flexbuffers

    drawn = draw_ssd(0.1)
    custom = {"num_classes": 3, "y_scale": 10.0, "x_scale": 10.0, "h_scale": 4.0, "w_scale": 5.0}
    drawn.operators[-1].customOptions = np.frombuffer(flexbuffers.Dumps(custom), np.uint8)
    with pytest.raises(CheckpointError, match=r"its boxes have h_scale 4\.0, ours 5\.0"):
        read_tflite(drawn.save(tmp_path / "net.tflite"), labels=FOUR)


@pytest.mark.parametrize("given", [3, 12], ids=["too few", "too many"])
def test_another_number_of_labels_is_refused(draw_classifier: Callable[..., Any], tmp_path: Path, given: int) -> None:
    path = draw_classifier(0.1).save(tmp_path / "net.tflite")
    with pytest.raises(CheckpointError, match=f"has 11 outputs, the list has {given} labels"):
        read_tflite(path, labels=["name"] * given)


def test_outputs_without_names_ask_for_a_list(draw_classifier: Callable[..., Any], tmp_path: Path) -> None:
    path = draw_classifier(0.1).save(tmp_path / "net.tflite")
    with pytest.raises(CheckpointError, match=r"has 11 outputs and no names .*--labels FILE"):
        read_tflite(path)


def test_labels_in_the_file_are_taken_unless_others_are_given(
    draw_classifier: Callable[..., Any], tmp_path: Path
) -> None:
    path = draw_classifier(0.1).save(tmp_path / "net.tflite")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "\n".join(["background", *(f"own {number}" for number in range(10))]))
    assert read_tflite(path).class_names[0] == "own 0"
    assert read_tflite(path, labels=ELEVEN).class_names[0] == "class 1"


def test_outputs_without_a_class_are_left_out(draw_ssd: Callable[..., Any], litert: Any, tmp_path: Path) -> None:
    """Column 2 of 4 has no name: K is 2, and the ids stay those of the columns."""
    path = draw_ssd(0.1).save(tmp_path / "net.tflite")
    published = read_tflite(path, labels=["background", "cat", "???", "bird"])
    assert (published.class_names, published.category_ids) == (("cat", "bird"), (1, 3))
    logits = their_raw_outputs(published, read_graph(path), litert(path, noise(64)))[0]
    assert logits.shape[2] == 3
    np.testing.assert_allclose(raw_outputs(build(published), noise(64))[0], logits, atol=1e-4)  # type: ignore[arg-type]


# The published files


@cache
def opened(path: Path) -> tuple[Published, Graph, nn.Module]:
    published = read_tflite(path)
    return published, read_graph(path), build(published)


@pytest.mark.shared
@pytest.mark.parametrize("name", [*CLASSIFIERS, EMBEDDING])
def test_published_backbones_load_whole(shared: Path, name: str) -> None:
    published, graph, _ = opened(shared / "weights" / name)  # `build` loads strictly
    assert published.model.alpha == float(name.split("_")[2])
    assert published.model.input_hw == (int(name.split("_")[3]),) * 2
    assert (len(published.class_names), published.kind) == (
        (0, "backbone") if name == EMBEDDING else (1000, "classifier")
    )
    assert sum(operator.kind in CONVOLUTIONS for operator in graph.operators) == (27 if name == EMBEDDING else 28)


@pytest.mark.shared
@pytest.mark.parametrize("name", [*CLASSIFIERS, EMBEDDING])
def test_every_layer_of_the_published_backbones_is_that_of_litert(shared: Path, litert: Any, name: str) -> None:
    """Measured over all files and pictures: at most 0.75 of a step."""
    path = shared / "weights" / name
    published, graph, network = opened(path)
    engine = litert(path, pixels_for(published, shared / "weights" / "parrot.jpg"))
    errors = one_layer_errors(network, published, graph, engine)
    assert len(errors) == 27
    assert max(errors.values()) < (1e-4 if "float" in name else 1.0)


@pytest.mark.shared
@pytest.mark.parametrize("name", [SSD_FILE, CLASSIFIERS[0], CLASSIFIERS[2]])
def test_maps_of_the_8_bit_networks_stay_near_those_of_litert(shared: Path, litert: Any, name: str) -> None:
    """From the pixels on, each layer adds its rounding. 6 / 255 is a step, so 2.5 of them are a hundredth of the range.

    Measured over all pictures, the worst map of each network: medians 0.72 to 0.93 steps, means 1.2 to 2.2.
    """
    path = shared / "weights" / name
    published, graph, network = opened(path)
    pixels = pixels_for(published, shared / "weights" / "grace_hopper.bmp")
    engine, layers = litert(path, pixels), list(layers_of(network, published, graph))
    maps: dict[str, Tensor] = {}
    hooks = [
        layer.module.register_forward_hook(lambda module, inputs, output, name=layer.name: maps.update({name: output}))
        for layer in layers
    ]
    with torch.inference_mode():
        network(torch.from_numpy(pixels)[None])
    for hook in hooks:
        hook.remove()
    for layer in layers:
        theirs = engine.value(layer.output)
        theirs = theirs if layer.channels is None else theirs[..., layer.channels]
        errors = np.abs(maps[layer.name].permute(0, 2, 3, 1).numpy() - theirs) / engine.step(layer.output)
        assert np.median(errors) < 1, layer.name
        assert errors.mean() < 2.5, layer.name


@pytest.mark.shared
@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_published_classifiers_see_what_litert_sees(shared: Path, litert: Any, name: str, picture: str) -> None:
    """Where 8-bit logits tie within their step (as in two of twelve cases), either class may come first."""
    path = shared / "weights" / name
    published, graph, network = opened(path)
    pixels = pixels_for(published, shared / "weights" / picture)
    engine = litert(path, pixels)
    theirs, step = engine.value(logits_tensor(graph))[0, 1:], engine.step(logits_tensor(graph))
    with torch.inference_mode():
        ours = network(torch.from_numpy(pixels)[None])[0].numpy()
    errors = np.abs(ours - theirs)
    if step:  # measured: medians of 0.34 to 0.68 steps, 99 % below 2.5, all below 3.9
        assert np.median(errors) < step
        assert np.quantile(errors, 0.99) < 3 * step
    else:
        assert errors.max() < 1e-4
    assert theirs[ours.argmax()] >= theirs.max() - 1.01 * step
    first = published.class_names[theirs.argmax()]
    if picture == "parrot.jpg":
        assert first == "macaw"
    if (picture, name) == ("grace_hopper.bmp", "mobilenet_v1_0.75_192_quant.tflite"):
        assert first == "military uniform"


@pytest.mark.shared
@pytest.mark.parametrize("picture", ["cats_and_dogs.jpg", "grace_hopper.bmp"])
def test_every_layer_of_the_published_detector_is_that_of_litert(shared: Path, litert: Any, picture: str) -> None:
    """27 of the backbone, 8 of the extra maps and 12 predictors; measured: at most 0.54 of a step."""
    published, graph, network = opened(shared / "weights" / SSD_FILE)
    engine = litert(shared / "weights" / SSD_FILE, pixels_for(published, shared / "weights" / picture))
    errors = one_layer_errors(network, published, graph, engine)
    assert len(errors) == 27 + 8 + 12
    assert max(errors.values()) < 1


@pytest.mark.shared
@pytest.mark.parametrize("picture", ["cats_and_dogs.jpg", "grace_hopper.bmp"])
def test_outputs_of_the_published_detector_are_those_of_litert_within_its_rounding(
    shared: Path, litert: Any, picture: str
) -> None:
    """35 rounded layers before them: measured medians 0.36 to 0.64 of a step, 99 % below 4.4, all below 12.1."""
    published, graph, network = opened(shared / "weights" / SSD_FILE)
    pixels = pixels_for(published, shared / "weights" / picture)
    engine = litert(shared / "weights" / SSD_FILE, pixels)
    logits, deltas, logit_step, delta_step = their_raw_outputs(published, graph, engine)
    our_logits, our_deltas = raw_outputs(network, pixels)  # type: ignore[arg-type]
    assert logits.shape == our_logits.shape == (1, 1917, 81)
    for ours, theirs, step in ((our_logits, logits, logit_step), (our_deltas, deltas, delta_step)):
        errors = np.abs(ours - theirs) / step
        assert np.median(errors) < 1
        assert np.quantile(errors, 0.99) < 5
        assert errors.max() < 15


@pytest.mark.shared
@pytest.mark.parametrize("picture", ["cats_and_dogs.jpg", "grace_hopper.bmp"])
def test_the_published_detector_finds_what_litert_finds(shared: Path, litert: Any, picture: str) -> None:
    path = shared / "weights" / SSD_FILE
    published, graph, _ = opened(path)
    image = read_image(shared / "weights" / picture)
    engine = litert(path, pixels_for(published, shared / "weights" / picture))
    boxes_yxyx, columns, scores = (engine.value(number)[0] for number in graph.outputs[:3])
    height, width = image.shape[:2]
    found = load_torch_predictor(path, threads=1)(image, score=0.3)
    sure = scores >= 0.5
    assert sure.any()
    for box_yxyx, column, score in zip(boxes_yxyx[sure], columns[sure], scores[sure], strict=True):
        box_xyxy = box_yxyx[[1, 0, 3, 2]].clip(0, 1) * [width, height, width, height]
        # LiteRT's classes are counted from 0 behind the background, with the ids that COCO 2017 does not use.
        same = found[found.labels == published.category_ids.index(int(column) + 1)]
        offsets = np.abs(same.boxes_xyxy - box_xyxy) / [width, height, width, height]
        nearest = offsets.max(axis=1).argmin()
        assert offsets[nearest].max() < 0.03
        assert same.scores[nearest] == pytest.approx(score, abs=0.05)


@pytest.mark.shared
def test_the_published_detector_passes_its_own_test(shared: Path) -> None:
    """x, y, w, h and score that the file was published with; boxes move by up to 8 px with the kind of resize."""
    expected = [
        ("cat", (54, 396, 393, 196), 0.64),
        ("cat", (602, 157, 394, 447), 0.61),
        ("cat", (260, 394, 180, 209), 0.56),
        ("dog", (389, 197, 278, 409), 0.50),
    ]
    predictor = load_torch_predictor(shared / "weights" / SSD_FILE, threads=1)
    found = predictor(read_image(shared / "weights" / "cats_and_dogs.jpg"), score=0.45)
    for name, (x, y, w, h), score in expected:
        box_xyxy = np.array([x, y, min(x + w, 1200), min(y + h, 600)])  # ours are clipped to the image's 1200×600
        same = found[found.labels == predictor.class_names.index(name)]
        offsets = np.abs(same.boxes_xyxy - box_xyxy).max(axis=1)
        assert offsets.min() < 10
        assert same.scores[offsets.argmin()] == pytest.approx(score, abs=0.05)


@pytest.mark.shared
def test_classes_of_the_published_detector_are_those_of_coco(shared: Path) -> None:
    published, _, _ = opened(shared / "weights" / SSD_FILE)
    root = shared / "data" / "coco_tiny"
    data = read_coco(root / "annotations" / "instances_val2017.json", root / "val2017")
    assert len(published.class_names) == 80
    assert published.class_names == tuple(data.class_names)
    assert published.category_ids == tuple(data.category_ids)
    assert (published.model.alpha, published.model.class_loss) == (0.75, "focal")


@pytest.mark.shared
def test_stored_anchors_are_ours_within_half_their_step(shared: Path) -> None:
    published, graph, _ = opened(shared / "weights" / SSD_FILE)
    stored = published.weights["stored_anchors"].numpy()
    ours = AnchorGenerator()([(19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)], (300, 300)) / 300
    half_step = float(graph.tensors[graph.operators[-1].inputs[2]].scales[0]) / 2
    assert half_step == pytest.approx(0.0065 / 2, abs=1e-4)
    centres, sizes = (ours[:, :2] + ours[:, 2:]) / 2, ours[:, 2:] - ours[:, :2]
    assert np.abs((stored[:, :2] + stored[:, 2:]) / 2 - centres).max() < half_step + 1e-5
    assert np.abs(stored[:, 2:] - stored[:, :2] - sizes).max() < half_step + 1e-5


@pytest.mark.shared
def test_the_ap_of_the_published_detector_is_reproduced(shared: Path) -> None:
    """AP .234 and AP50 .387 were found with another program: float32, score 0.01, NMS 0.6, 100 boxes an image."""
    root = shared / "data" / "coco_tiny"
    annotations = root / "annotations" / "instances_val2017.json"
    predictor = load_torch_predictor(shared / "weights" / SSD_FILE)
    scores, _ = evaluate(predictor, read_coco(annotations, root / "val2017"), annotations)
    assert scores.ap == pytest.approx(0.234, abs=0.005)
    assert scores.numbers["AP50"] == pytest.approx(0.387, abs=0.005)
