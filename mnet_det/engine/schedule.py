"""What the optimiser does at each step: which parameters decay, the learning rate, and RMSprop in TensorFlow's form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from mnet_det.config import TrainConfig

RMSPROP_DECAY = 0.9  # TensorFlow's ssd_mobilenet_v1_coco.config
RMSPROP_EPS = 1.0
FUSED_ON = ("cpu", "cuda")
"""Devices whose fused SGD and AdamW every version of torch has that we work with."""


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
            self._update([parameter for parameter in group["params"] if parameter.grad is not None], group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "mean_square": torch.ones_like(parameter),
                    "velocity": torch.zeros_like(parameter),
                }
        mean_squares = [self.state[parameter]["mean_square"] for parameter in parameters]
        velocities = [self.state[parameter]["velocity"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        torch._foreach_lerp_(mean_squares, torch._foreach_mul(gradients, gradients), 1 - group["decay"])
        roots = torch._foreach_add(mean_squares, group["eps"])
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_addcdiv_(velocities, gradients, roots, value=group["lr"])
        torch._foreach_sub_(parameters, velocities)


def scaled_lr(config: TrainConfig) -> float:
    """`train.lr` for the batch that is trained on, where the config says for which batch it was found.

    SGD's grows with the batch (Goyal et al. 2017, arXiv 1706.02677), that of AdamW and RMSprop, which divide by the
    gradient's size, with its square root (Malladi et al. 2022, arXiv 2205.10287).
    """
    if config.lr_batch_size is None:
        return config.lr
    ratio = config.batch_size / config.lr_batch_size
    return config.lr * (ratio if config.optimizer == "sgd" else math.sqrt(ratio))


def parameter_groups(
    detector: nn.Module, *, lr: float, weight_decay: float, backbone_lr_factor: float = 1.0
) -> list[dict[str, Any]]:
    """Up to four groups of what learns: the backbone's and the head's, each with weight decay and without it.

    Depthwise filters are not decayed (Howard et al. 2017, section 3.2: "so few parameters in them"), nor are biases
    and batch norm, whose scale is the network's own.

    Args:
        detector: what it calls `backbone` gets a rate of its own.
        lr: of the head; as `initial_lr` in every group, for `set_lr`.
        weight_decay: of full convolutions and linear layers.
        backbone_lr_factor: the backbone's share of `lr`.
    """
    depthwise = {
        id(module.weight) for module in detector.modules() if isinstance(module, nn.Conv2d) and module.groups > 1
    }
    members: dict[tuple[float, float], list[nn.Parameter]] = {}  # by rate and decay
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            rate = lr * backbone_lr_factor if name.startswith("backbone.") else lr
            decay = 0.0 if parameter.ndim < 2 or id(parameter) in depthwise else weight_decay
            members.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in members.items()
    ]


def build_optimizer(detector: nn.Module, config: TrainConfig) -> Optimizer:
    """The optimiser that `train.optimizer` names, in one kernel for all parameters where torch has that."""
    lr = scaled_lr(config)
    groups = parameter_groups(
        detector, lr=lr, weight_decay=config.weight_decay, backbone_lr_factor=config.backbone_lr_factor
    )
    fused = all(parameter.device.type in FUSED_ON for parameter in detector.parameters()) or None
    if config.optimizer == "sgd":
        return SGD(groups, lr=lr, momentum=config.momentum, fused=fused)
    if config.optimizer == "adamw":
        return AdamW(groups, lr=lr, betas=(config.momentum, 0.999), fused=fused)
    return RMSpropTF(groups, lr=lr, momentum=config.momentum)


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Give every group `factor` of its full rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def lr_factor(step: int, config: TrainConfig, *, steps_per_epoch: int) -> float:
    """Share of the full rate (`scaled_lr`) at a step: a linear warm-up, then half a cosine to 0, or steps."""
    epoch = step / steps_per_epoch
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    if config.schedule == "steps":
        return warmup * config.step_factor ** sum(epoch >= at for at in config.step_epochs)
    return warmup * (1 + math.cos(math.pi * min(1.0, epoch / config.epochs))) / 2
