"""COCO data: reading, augmenting, batching, and a drawn data set."""
