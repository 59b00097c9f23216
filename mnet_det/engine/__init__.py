"""Training, scoring and exporting."""
