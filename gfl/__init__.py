"""Generalized Focal Loss: a dense detector whose class score is its expected IoU, whose box sides are distributions."""
