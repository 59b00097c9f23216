"""Live detection: capture, screen, recording. Never torch."""
