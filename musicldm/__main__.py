"""``python -m musicldm`` is the ``musicldm`` command."""

import sys

from musicldm.cli import main

if __name__ == "__main__":  # worker processes import this module too
    sys.exit(main())
