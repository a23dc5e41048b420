"""Training steps and inference timed in turn with other detectors."""
