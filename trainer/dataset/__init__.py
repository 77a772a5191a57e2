"""From image files to batches: folders, captions, masks, buckets, crops. Knows nothing of training."""
