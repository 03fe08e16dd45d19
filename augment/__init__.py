"""Beat-synchronous augmentation: where the beats of a recording are, and mixtures of recordings that share them."""

from augment.beats import Beats, track_beats
from augment.mixup import mix_latents, mix_waveforms

__all__ = ["Beats", "mix_latents", "mix_waveforms", "track_beats"]
