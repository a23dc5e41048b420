"""Read checkpoints of other codebases, and write theirs."""
