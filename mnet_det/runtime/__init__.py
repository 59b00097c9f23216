"""Exported detectors on the CPU: numpy, OpenCV and an inference engine, never torch."""

from mnet_det.runtime.predictor import Predictor, load_predictor

__all__ = ["Predictor", "load_predictor"]
