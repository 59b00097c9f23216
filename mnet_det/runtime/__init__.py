"""Running exported detectors: numpy, OpenCV and an inference engine, never torch."""
