"""Noise to latents: the denoising loop, the one call of the UNet, and samplers by name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "condition": ["Condition", "predict"],
        "denoising": [
            "Guidance",
            "denoise",
            "draw_noise",
            "first_noise",
            "make_generators",
            "prepare_later_timesteps",
            "prepare_timesteps",
        ],
        "known": ["Known", "NoiseLevel", "add_noise", "noise_level"],
        "schedulers": ["FLOW_SCHEDULERS", "SCHEDULERS", "make_scheduler"],
        "turning": ["LeaningGenerator", "TurnedGenerator", "turn_noise"],
    },
)
