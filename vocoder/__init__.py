"""The vocoder: log-mel spectrograms from waveforms, waveforms from log-mel spectrograms, and its training losses."""

from vocoder.hifigan import make_generator, mel_config
from vocoder.match import install_matching, match_mel
from vocoder.mel import MelConfig, log_mel_spectrogram
from vocoder.planes import pack_rows, spectrogram_planes, unpack_rows, vocode_planes

__all__ = [
    "MelConfig",
    "install_matching",
    "log_mel_spectrogram",
    "make_generator",
    "match_mel",
    "mel_config",
    "pack_rows",
    "spectrogram_planes",
    "unpack_rows",
    "vocode_planes",
]
