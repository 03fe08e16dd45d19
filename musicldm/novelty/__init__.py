"""Did it copy? An index of what a model was trained on, a check against it, and a guard while music is made."""


class CopyError(ValueError):
    """Every draw came too near to the training set; the message names the nearest clip."""
