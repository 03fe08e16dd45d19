"""``python -m musicldm`` is the ``musicldm`` command."""

import sys
from pathlib import Path

if __name__ == "__main__":  # worker processes import this module too
    # `python -m` puts the working folder first on the path: a user's own augment.py there would be taken for ours.
    if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
        del sys.path[0]

    from musicldm.cli import main

    sys.exit(main())
