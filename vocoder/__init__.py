"""The vocoder: log-mel spectrograms from waveforms, waveforms from log-mel spectrograms, and how to train that."""

from vocoder.hifigan import make_generator, mel_config
from vocoder.match import match_mel, vocode
from vocoder.mel import MelConfig, log_mel_spectrogram

__all__ = ["MelConfig", "log_mel_spectrogram", "make_generator", "match_mel", "mel_config", "vocode"]
