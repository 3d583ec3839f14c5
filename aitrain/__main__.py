"""`python -m aitrain`: the same as the command `aitrain`."""

import sys

from aitrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
