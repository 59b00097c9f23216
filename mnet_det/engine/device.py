"""Where a run computes, and in which precision."""

from __future__ import annotations

import torch

from mnet_det.config import TrainConfig
from mnet_det.engine.distributed import ALONE, World
from mnet_det.errors import ConfigError


def pick_device(name: str, world: World = ALONE) -> torch.device:
    """`auto` is cuda, then mps, then cpu; of several GPUs, each process takes its own.

    Raises:
        ConfigError: no such device on this machine, fewer GPUs than processes, or one device for several of them.
    """
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("mps" if torch.backends.mps.is_available() and world.size == 1 else "cpu")
    if name == "auto" and world.size == 1:
        return torch.device("cuda")
    name = "cuda" if name == "auto" else name
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"train.device: got {name!r}, expected auto, cpu, cuda, cuda:0 … or mps")
    if world.size > 1 and name not in ("cpu", "cuda"):
        raise ConfigError(
            f"train.device: got {name!r} for {world.size} processes, expected cpu, or cuda, of which each takes its own"
        )
    if name == "cuda" and world.size > 1:
        if world.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"torchrun started more processes than this machine has GPUs ({torch.cuda.device_count()}); give "
                "--nproc-per-node that many, or set train.device=cpu"
            )
        name = f"cuda:{world.local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"train.device: got {name!r}, which this machine cannot use ({reason}); try 'auto'") from None
    if device.type == "cuda" and world.size > 1:
        torch.cuda.set_device(device)  # NCCL takes the current one
    return device


def count_gpus() -> int:
    """How many CUDA GPUs this process may use."""
    return torch.cuda.device_count()


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The context that a forward pass runs in."""
    kind = autocast_type(config, device)
    return torch.autocast(device.type, dtype=kind or torch.bfloat16, enabled=kind is not None)


def autocast_type(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """`auto` is bf16 on a GPU that has it, else fp16, and nothing on a CPU."""
    if config.amp == "off" or (config.amp == "auto" and device.type != "cuda"):
        return None
    if config.amp == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if config.amp == "bf16" else torch.float16
