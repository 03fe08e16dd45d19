"""Samplers by short names: diffusers' scheduler classes, set up from what the model was trained with."""

from __future__ import annotations

# How the commands sample unless told otherwise; docs/speed.md and docs/mini.md have what else was measured.
SAMPLER, STEPS = "dpm++", 25
GUIDANCE, GUIDANCE_INTERVAL = 4.0, (0.2, 0.7)  # the latter as shares of the noise

# Class in diffusers, and what differs from the model's own scheduler. "trailing" and "linspace" start from the
# noisiest step, which matters with few steps; DDIM keeps the spacing that its model says.
SCHEDULERS: dict[str, tuple[str, dict]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {"timestep_spacing": "trailing"}),
    "pndm": ("PNDMScheduler", {"timestep_spacing": "trailing", "skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "heun": ("HeunDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "dpm2": ("KDPM2DiscreteScheduler", {"timestep_spacing": "linspace"}),
    "dpm2-a": ("KDPM2AncestralDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "deis": ("DEISMultistepScheduler", {"timestep_spacing": "linspace"}),
    "unipc": ("UniPCMultistepScheduler", {"timestep_spacing": "linspace"}),
    "dpm++": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
    "dpm++-karras": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace", "use_karras_sigmas": True}),
    "dpm++-sde": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace", "algorithm_type": "sde-dpmsolver++"}),
}

# The same for models of a rectified flow.
FLOW_SCHEDULERS: dict[str, tuple[str, dict]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    "dpm++": ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
}


def make_scheduler(name: str, trained_with):
    """The scheduler called ``name``, for a model whose own scheduler is ``trained_with``.

    Raises:
        ValueError: for an unknown name, or one that cannot follow a flow where the model is one, with the list.
    """
    import diffusers

    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name!r}; choose one of {', '.join(SCHEDULERS)}")
    is_flow = type(trained_with).__name__.startswith("FlowMatch")
    if is_flow and name not in FLOW_SCHEDULERS:
        raise ValueError(
            f"the model is a flow, which {name!r} cannot follow; choose one of {', '.join(FLOW_SCHEDULERS)}"
        )
    class_name, changes = (FLOW_SCHEDULERS if is_flow else SCHEDULERS)[name]
    return getattr(diffusers, class_name).from_config(trained_with.config, **changes)
