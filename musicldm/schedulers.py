"""Former name of `musicldm.sampling.schedulers`."""

from musicldm.sampling.schedulers import make_scheduler as make_scheduler
