"""Editing of recordings: sources, regions, joins, tempo and stretching."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "extrapolation": ["extrapolate"],
        "joining": ["Join", "New", "join"],
        "levels": ["limits"],
        "patches": ["Patch", "apply", "seams"],
        "regions": ["Region", "check_regions", "parse_region", "snap_to_beats", "to_samples"],
        "source": ["Source"],
        "windows": ["Window", "plan_windows", "read_window"],
        "writing": ["Form", "output_form", "write_patched"],
    },
)
