"""Use 2: detections, COCO metrics, and what side distributions say."""
