"""The paper: losses, targets and decoding in plain torch. Nothing here knows a config."""
