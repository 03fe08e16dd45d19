"""Beat-synchronous augmentation: where the beats of a recording are, and mixtures of recordings that share them."""

from augment.beats import Beats, track_beats

__all__ = ["Beats", "track_beats"]
