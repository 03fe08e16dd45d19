"""The page and the HTTP interface: requests become jobs, jobs become files in a folder.

HTTP -> schemas -> Jobs (queue, one worker) -> Session -> Library (audio, pictures and recipes as files; SQLite)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "client": ["Client"],
        "options": ["Options"],
        "server": ["create_app", "serve"],
    },
)
