"""From annotation files and images to batches."""
