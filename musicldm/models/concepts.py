"""Former name of `musicldm.models.adapters`."""

from musicldm.models.adapters import *  # noqa: F403
