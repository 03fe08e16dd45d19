"""One dataclass per training stage, how a YAML file and ``key=value`` overrides change it, and checks of values."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "files": ["configs_folder", "differences", "find_config", "load_config", "save_config"],
        "common": ["CHANGEABLE", "LOCAL", "TrainConfig", "marked"],
        "diffusion": ["ConceptConfig", "DiffusionConfig", "LoraConfig"],
        "stages": ["STAGES", "CLAPConfig", "VAEConfig", "VocoderConfig"],
    },
)
