"""Cost tables and pictures."""
