"""Collections of recordings and captions, rendering of scores, and batches for training."""
