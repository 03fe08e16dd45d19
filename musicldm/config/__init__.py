"""One dataclass per training stage, and how a YAML file and ``key=value`` overrides change it."""

from musicldm.config.files import configs_folder, differences, find_config, load_config, save_config
from musicldm.config.stages import (
    CHANGEABLE,
    LOCAL,
    STAGES,
    CLAPConfig,
    ConceptConfig,
    DiffusionConfig,
    LoraConfig,
    TrainConfig,
    VAEConfig,
    VocoderConfig,
    marked,
)

__all__ = [
    "CHANGEABLE",
    "LOCAL",
    "STAGES",
    "CLAPConfig",
    "ConceptConfig",
    "DiffusionConfig",
    "LoraConfig",
    "TrainConfig",
    "VAEConfig",
    "VocoderConfig",
    "configs_folder",
    "differences",
    "find_config",
    "load_config",
    "marked",
    "save_config",
]
