"""A folder of recordings to training data: measured, captioned, split and packed in shards."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "run": ["ERRORS_FILE", "Job", "Measure", "PrepareConfig", "Prepared", "find_files", "prepare"],
    },
)
