"""RMSprop against timm's, who decays and who does not, and the learning rate by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from timm.optim import RMSpropTF as TimmRMSpropTF
from torch import nn
from torch.optim import SGD, AdamW

from mnet_det.config import ModelConfig, TrainConfig
from mnet_det.engine.schedule import RMSpropTF, build_optimizer, lr_factor, parameter_groups, scaled_lr, set_lr
from mnet_det.models import build_detector


def problem() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(32, 6)


def descend(optimizer: torch.optim.Optimizer, model: nn.Module, samples: torch.Tensor, *, steps: int) -> None:
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 / (step + 1)  # a falling rate tells apart where it enters the momentum
        optimizer.zero_grad()
        model(samples).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_equals_timms_form_of_tensorflows(momentum: float, weight_decay: float) -> None:
    (ours, samples), (theirs, _) = problem(), problem()
    settings = {"lr": 0.05, "eps": 0.3, "momentum": momentum, "weight_decay": weight_decay}
    descend(RMSpropTF(ours.parameters(), decay=0.8, **settings), ours, samples, steps=8)
    # Their defaults are TensorFlow's too: decay adds to the gradient, the rate enters the momentum.
    descend(TimmRMSpropTF(theirs.parameters(), alpha=0.8, **settings), theirs, samples, steps=8)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_rmsprops_first_steps_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = RMSpropTF([parameter], lr=0.1, decay=0.9, eps=1.0, momentum=0.5)
    parameter.grad = torch.tensor([2.0])
    optimizer.step()
    # The mean of squares is 0.9 × 1 + 0.1 × 4 = 1.3, the step 0.1 × 2 / √(1.3 + 1).
    first = 0.2 / math.sqrt(2.3)
    assert parameter.item() == pytest.approx(1 - first)
    optimizer.step()
    # 0.9 × 1.3 + 0.1 × 4 = 1.57; half of the step before is taken again.
    assert parameter.item() == pytest.approx(1 - first - (0.5 * first + 0.2 / math.sqrt(2.57)))


def test_rmsprop_goes_on_from_its_saved_state() -> None:
    (model, samples), (copied, _) = problem(), problem()
    whole = RMSpropTF(model.parameters(), lr=0.05, weight_decay=0.01)
    descend(whole, model, samples, steps=3)
    copied.load_state_dict(model.state_dict())
    resumed = RMSpropTF(copied.parameters(), lr=0.05)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))  # torch would share the tensors
    descend(whole, model, samples, steps=2)
    descend(resumed, copied, samples, steps=2)
    assert all(map(torch.equal, model.parameters(), copied.parameters()))


def test_rmsprop_returns_the_closures_loss() -> None:
    model, samples = problem()

    def closure() -> float:
        loss = model(samples).square().mean()
        loss.backward()
        return loss.item()

    before = [parameter.clone() for parameter in model.parameters()]
    assert RMSpropTF(model.parameters(), lr=0.1).step(closure) == pytest.approx(model_loss(before, samples))


def model_loss(parameters: list[torch.Tensor], samples: torch.Tensor) -> float:
    weight, bias, last_weight, last_bias = parameters
    return (torch.tanh(samples @ weight.T + bias) @ last_weight.T + last_bias).square().mean().item()


@pytest.mark.parametrize("head", ["ssd", "ssdlite"])
def test_depthwise_filters_biases_and_batch_norm_do_not_decay(head: str) -> None:
    model = build_detector(ModelConfig(head=head, alpha=0.25), num_classes=2)  # type: ignore[arg-type]
    groups = parameter_groups(model, lr=0.1, weight_decay=0.01)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            full = isinstance(module, nn.Conv2d) and module.groups == 1 and kind == "weight"
            assert decay[id(parameter)] == (0.01 if full else 0.0), f"{name}.{kind}"


def test_backbone_learns_at_its_own_rate() -> None:
    model = build_detector(ModelConfig(alpha=0.1), num_classes=2)
    groups = parameter_groups(model, lr=0.2, weight_decay=0.01, backbone_lr_factor=0.25)
    assert len(groups) == 4
    rate = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert rate[id(parameter)] == pytest.approx(0.05 if name.startswith("backbone.") else 0.2), name


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    (group,) = parameter_groups(model, lr=0.1, weight_decay=0.01)
    assert group["params"] == [model.weight]


@pytest.mark.parametrize(
    ("optimizer", "batch_size", "expected"),
    [
        ("sgd", 128, 0.2),  # 0.1 × 128 / 64
        ("sgd", 8, 0.0125),
        ("adamw", 256, 0.2),  # 0.1 × √(256 / 64)
        ("rmsprop", 16, 0.05),
        ("rmsprop", 64, 0.1),
    ],
)
def test_rate_follows_the_batch(optimizer: str, batch_size: int, expected: float) -> None:
    words = {"optimizer": optimizer, "lr": 0.1, "batch_size": batch_size, "lr_batch_size": 64}
    assert scaled_lr(TrainConfig.model_validate(words)) == pytest.approx(expected)
    assert scaled_lr(TrainConfig.model_validate(words | {"lr_batch_size": None})) == 0.1


def test_optimizer_starts_from_the_scaled_rate() -> None:
    config = TrainConfig(lr=0.1, batch_size=32, lr_batch_size=64, backbone_lr_factor=0.5)
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2, bias=False), "head": nn.Linear(2, 2, bias=False)})
    assert [group["initial_lr"] for group in build_optimizer(model, config).param_groups] == [0.025, 0.05]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_steps_equal_plain_ones(name: str) -> None:
    """Through a saved state too, and with weights that lie in memory as `channels_last` puts them."""
    config = TrainConfig.model_validate({"optimizer": name, "lr": 0.05, "weight_decay": 0.02})
    torch.manual_seed(0)
    fused = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(fused)
    kind: type[SGD | AdamW] = SGD if name == "sgd" else AdamW
    settings = {"momentum": 0.9} if name == "sgd" else {"betas": (0.9, 0.999)}
    groups = parameter_groups(plain, lr=0.05, weight_decay=0.02)
    optimizers = [build_optimizer(fused, config), kind(groups, lr=0.05, fused=False, **settings)]  # type: ignore[arg-type]
    assert all(group["fused"] for group in optimizers[0].param_groups)
    images = torch.randn(2, 3, 6, 6)
    for step in range(4):
        if step == 2:
            state = copy.deepcopy(optimizers[0].state_dict())
            optimizers[0] = build_optimizer(fused, config)
            optimizers[0].load_state_dict(state)
        for model, optimizer in zip((fused, plain), optimizers, strict=True):
            optimizer.zero_grad()
            model(images).square().mean().backward()
            optimizer.step()
    assert all(map(torch.allclose, fused.parameters(), plain.parameters()))


@pytest.mark.parametrize(
    ("name", "kind", "key", "value"),
    [("sgd", SGD, "momentum", 0.8), ("rmsprop", RMSpropTF, "momentum", 0.8), ("adamw", AdamW, "betas", (0.8, 0.999))],
)
def test_optimizer_is_the_one_named_with_its_settings(name: str, kind: type, key: str, value: object) -> None:
    config = TrainConfig.model_validate({"optimizer": name, "lr": 0.3, "momentum": 0.8, "weight_decay": 0.02})
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    assert isinstance(optimizer, kind)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.02, 0.0]
    assert all(group["lr"] == 0.3 and group[key] == value for group in optimizer.param_groups)


def test_warm_up_rises_evenly_to_the_full_rate() -> None:
    config = TrainConfig(epochs=100, schedule="steps", step_epochs=(50,), warmup_epochs=0.5)
    # Half of 8 steps: 1/5, 2/5, 3/5, 4/5, then all of it.
    factors = [lr_factor(step, config, steps_per_epoch=8) for step in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    config = TrainConfig(epochs=4, warmup_epochs=0)
    assert lr_factor(0, config, steps_per_epoch=10) == 1


def test_cosine_falls_from_1_to_0() -> None:
    config = TrainConfig(epochs=4, warmup_epochs=0)
    # Epochs 0, 1, 2, 3, 4 of 4: (1 + cos(π e / 4)) / 2; beyond the end it stays at 0.
    factors = [lr_factor(10 * epoch, config, steps_per_epoch=10) for epoch in (0, 1, 2, 3, 4, 5)]
    assert factors == pytest.approx([1, 0.853553, 0.5, 0.146447, 0, 0], abs=1e-6)


def test_warm_up_multiplies_the_cosine() -> None:
    config = TrainConfig(epochs=4, warmup_epochs=2)
    # Step 1, with 2 to an epoch: warm-up 2/5 of the way, and half an epoch down the cosine.
    assert lr_factor(1, config, steps_per_epoch=2) == pytest.approx(0.4 * (1 + math.cos(math.pi / 8)) / 2)


def test_steps_multiply_the_rate_at_each_named_epoch() -> None:
    config = TrainConfig(epochs=10, schedule="steps", step_epochs=(4, 6), step_factor=0.1, warmup_epochs=0)
    factors = [lr_factor(step, config, steps_per_epoch=3) for step in (0, 11, 12, 17, 18, 29)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_rate_is_set_in_every_group() -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2, bias=False), "head": nn.Linear(2, 2, bias=False)})
    optimizer = build_optimizer(model, TrainConfig(lr=0.4, backbone_lr_factor=0.5))
    for factor in (0.5, 0.25, 0.5):  # not one after the other: of the position alone
        set_lr(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == [0.2 * factor, 0.4 * factor]
