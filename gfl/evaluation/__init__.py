"""Use 2: detections, COCO metrics, and statistics of side distributions."""
