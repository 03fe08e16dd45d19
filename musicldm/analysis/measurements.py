"""Former names of `musicldm.analysis.key`, `onsets` and `waveforms`."""

from musicldm.analysis.key import estimate_key, pitch_bands
from musicldm.analysis.onsets import onset_rate, percussive_share
from musicldm.analysis.waveforms import SILENCE

__all__ = ["SILENCE", "estimate_key", "onset_rate", "percussive_share", "pitch_bands"]
