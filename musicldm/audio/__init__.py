"""Audio files and pictures of them: waveforms in and out, recipes inside files."""

from musicldm.audio.files import FORMATS, read_audio, read_recipe, write_audio, write_whole

__all__ = ["FORMATS", "read_audio", "read_recipe", "write_audio", "write_whole"]
