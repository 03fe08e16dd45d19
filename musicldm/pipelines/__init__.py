"""Pipelines as in diffusers: what developers call."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "audio_to_audio": ["MusicLDMAudioToAudioPipeline"],
        "inpaint": ["MusicLDMInpaintPipeline"],
        "long_form": ["MusicLDMLongFormPipeline", "Section"],
        "outputs": ["MusicLDMInpaintPipelineOutput", "MusicLDMPipelineOutput"],
        "text_to_music": ["MusicLDMPipeline"],
    },
)
