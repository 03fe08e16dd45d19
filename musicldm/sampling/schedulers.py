"""Samplers by short names: diffusers' scheduler classes, set up from what the model was trained with."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

# Defaults of the commands; docs/speed.md and recipes/mini/NOTES.md compare them with other settings.
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


TRAINED_WITH = "_trained_with"  # entry of a sampler's configuration: that of the model's own scheduler, saved with it


def make_scheduler(name: str, trained_with: SchedulerMixin) -> SchedulerMixin:
    """The scheduler called ``name``, for a model whose own scheduler is ``trained_with``.

    ``trained_with`` may be such a sampler itself, of any name: the model's own scheduler is noted in its configuration,
    and nothing else of it is taken over.

    Raises:
        ValueError: for an unknown name, or one that cannot follow a flow where the model is one, with the list.
    """
    import diffusers

    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name!r}; choose one of {', '.join(SCHEDULERS)}")
    own = trained_with.config.get(TRAINED_WITH)
    if own is None:
        own = {**trained_with.config, "_class_name": type(trained_with).__name__}
    is_flow = own["_class_name"].startswith("FlowMatch") or own.get("use_flow_sigmas", False)
    if is_flow and name not in FLOW_SCHEDULERS:
        raise ValueError(
            f"the model is a flow, which {name!r} cannot follow; choose one of {', '.join(FLOW_SCHEDULERS)}"
        )
    class_name, changes = (FLOW_SCHEDULERS if is_flow else SCHEDULERS)[name]
    # what the authors' scheduler knows is the model's (noise, prediction, spacing); the rest is some sampler's setting
    known = signature(diffusers.FlowMatchEulerDiscreteScheduler if is_flow else diffusers.DDIMScheduler).parameters
    own = {key: value for key, value in own.items() if key in known or key in ("_class_name", "_use_default_values")}
    scheduler = getattr(diffusers, class_name).from_config(own, **changes)
    if changes or class_name != own["_class_name"]:
        scheduler.register_to_config(**{TRAINED_WITH: own})
    return scheduler
