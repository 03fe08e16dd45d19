"""Collections of recordings with captions, their preparation, and mixtures for training."""
