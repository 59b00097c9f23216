"""State dicts in files, as training scripts of PyTorch write them: `.safetensors` or `.pth`."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mnet_det.errors import CheckpointError
from mnet_det.weights.published import Weights

WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys under which training scripts keep the weights; the averaged ones first."""


def read_state_dict(path: Path) -> Weights:
    """Tensors by name: floats as float32, and names without what wraps a network for training.

    Raises:
        CheckpointError: damaged, or something else than tensors.
    """
    tensors = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_pickle(path)
    tensors.pop("n_averaged", None)  # torch's AveragedModel counts
    return {
        name.removeprefix("module."): (tensor.float() if tensor.is_floating_point() else tensor).detach()
        for name, tensor in tensors.items()
    }


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # scripts save their arguments too
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise CheckpointError(
                "holds more than tensors, perhaps a whole network, and reading that may run anything; save its weights "
                "with torch.save(network.state_dict(), …)"
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"cannot be read ({reason[:120]}); is the file whole?") from None
    if isinstance(content, dict):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError("not a state dict; expected tensors by name, as timm and torchvision publish them")
    return dict(content)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read ({error}); is the file whole?") from None
