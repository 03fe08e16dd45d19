"""Beat-synchronous augmentation."""
