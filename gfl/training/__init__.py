"""Use 1: everything around the training step; `train.py` holds the loop."""
