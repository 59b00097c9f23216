"""Learning a few images by heart, which proves that data and settings can be learned."""

from __future__ import annotations

from mnet_det.config import Config, ModelConfig
from mnet_det.engine.schedule import scaled_lr
from mnet_det.errors import ConfigError

OVERFIT_EPOCHS, OVERFIT_STEPS = 16, 25
"""How many epochs `--overfit` trains, and of how many steps each, however few the images."""
OVERFIT_REGIONS = 24
"""How many regions of each image the paper's Faster R-CNN learns from then, each a run of two blocks on 14×14 cells."""


def overfit_config(config: Config, *, images: int) -> Config:
    """The settings for learning a few images by heart: nothing that blurs, and a short warm-up.

    Raises:
        ConfigError: no images.
    """
    if images < 1:
        raise ConfigError(f"--overfit {images}: expected at least one image")
    batch_size = max(2, min(images, config.train.batch_size))
    settings = {
        "batch_size": batch_size,
        "accumulate": 1,
        "lr": scaled_lr(config.train) * batch_size / config.train.batch_size,
        "lr_batch_size": None,
        "epochs": OVERFIT_EPOCHS,
        "ema": 0.0,
        "schedule": "cosine",
        "warmup_epochs": 1,
        "eval_every": OVERFIT_EPOCHS // 4,
        "patience": None,
        "teacher": None,
    }
    return config.model_copy(
        update={
            "model": config.model.model_copy(
                update={
                    # Batch norm's running statistics have few steps to settle in, and nothing to be smooth for.
                    "bn_momentum": max(0.1, config.model.bn_momentum),
                    "roi_samples": _overfit_regions(config.model),
                }
            ),
            "data": config.data.model_copy(update={"augment": "none", "cache": False, "mosaic": 0.0, "mixup": 0.0}),
            "train": config.train.model_copy(update=settings),
        }
    )


def _overfit_regions(model: ModelConfig) -> int:
    return model.roi_samples if model.fpn else min(OVERFIT_REGIONS, model.roi_samples)
