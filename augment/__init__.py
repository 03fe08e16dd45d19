"""Beat-synchronous augmentation: beat tracking, and mixtures of recordings aligned at their beats."""

from augment.beats import Beats, track_beats
from augment.mixup import mix_latents, mix_waveforms

__all__ = ["Beats", "mix_latents", "mix_waveforms", "track_beats"]
