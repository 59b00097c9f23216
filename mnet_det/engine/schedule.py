"""What the optimiser does at each step: which parameters decay, the learning rate, and RMSprop in TensorFlow's form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from mnet_det.config import TrainConfig

RMSPROP_DECAY = 0.9  # TensorFlow's ssd_mobilenet_v1_coco.config
RMSPROP_EPS = 1.0


class RMSpropTF(Optimizer):
    """RMSprop as TensorFlow has it, and so the MobileNet papers.

    It differs from torch's in three ways that matter at their settings: epsilon stands inside the root, the mean of
    squares starts at 1 (so that the first steps are small), and momentum gathers steps already scaled by the learning
    rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        decay: float = RMSPROP_DECAY,
        eps: float = RMSPROP_EPS,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "decay": decay, "eps": eps, "momentum": momentum, "weight_decay": weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; `closure`, if given, computes the loss again."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["mean_square"] = torch.ones_like(parameter)
            state["velocity"] = torch.zeros_like(parameter)
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
        mean_square, velocity = state["mean_square"], state["velocity"]
        mean_square.lerp_(gradient.square(), 1 - group["decay"])
        velocity.mul_(group["momentum"]).addcdiv_(gradient, (mean_square + group["eps"]).sqrt(), value=group["lr"])
        parameter.sub_(velocity)


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: with weight decay, and without it.

    Depthwise filters are not decayed (Howard et al. 2017, section 3.2: "so few parameters in them"), nor are biases
    and batch norm, whose scale is the network's own.
    """
    depthwise = {id(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d) and module.groups > 1}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (free if parameter.ndim < 2 or id(parameter) in depthwise else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimiser that `train.optimizer` names."""
    groups = parameter_groups(model, weight_decay=config.weight_decay)
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum)
    if config.optimizer == "adamw":
        return AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return RMSpropTF(groups, lr=config.lr, momentum=config.momentum)


def build_schedule(optimizer: Optimizer, config: TrainConfig, *, steps_per_epoch: int) -> LambdaLR:
    """Learning rate per step, as `lr_factor` has it."""

    def factor(step: int) -> float:
        return lr_factor(step, config, steps_per_epoch=steps_per_epoch)

    return LambdaLR(optimizer, factor)


def lr_factor(step: int, config: TrainConfig, *, steps_per_epoch: int) -> float:
    """Share of `train.lr` at a step: a linear warm-up, then half a cosine to 0, or steps."""
    epoch = step / steps_per_epoch
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    if config.schedule == "steps":
        return warmup * config.step_factor ** sum(epoch >= at for at in config.step_epochs)
    return warmup * (1 + math.cos(math.pi * min(1.0, epoch / config.epochs))) / 2
