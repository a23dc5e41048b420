"""Download data sets, and convert other annotation formats to COCO json."""
