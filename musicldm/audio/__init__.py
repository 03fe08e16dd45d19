"""Audio files: reading and writing of waveforms and recipes, and pictures of waveforms."""

from musicldm.audio.files import FORMATS, read_audio, write_audio, write_whole
from musicldm.audio.tags import read_recipe

__all__ = ["FORMATS", "read_audio", "read_recipe", "write_audio", "write_whole"]
