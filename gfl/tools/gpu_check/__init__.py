"""Show on a machine with a GPU that results are right there, and how fast they come."""
