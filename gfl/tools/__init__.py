"""Commands around training: check a data set, convert checkpoints, prepare data."""
