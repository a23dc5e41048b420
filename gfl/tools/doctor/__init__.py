"""Check a data set before training."""
