"""Networks and their files: loading, CLAP, latents, adapters, and the checkpoints of MusicLDM's authors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["original"],
    submod_attrs={
        "adapters": ["add_adapter", "load_concept", "save_adapter", "save_concept"],
        "clap": ["embed_audio", "embed_text"],
        "clap_embedder": ["ClapEmbedder"],
        "context": ["ContextLayout", "add_context", "context_channels", "context_layout", "latent_channels"],
        "latents": ["encode_image", "latent_factor", "latent_shape", "model_waveform", "padded_image"],
        "loading": ["bundled_models", "find_folder", "load_part", "load_parts"],
    },
)
