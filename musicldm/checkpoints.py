"""Former name of `musicldm.models.original`."""

from musicldm.models.original import load_original as load_original
