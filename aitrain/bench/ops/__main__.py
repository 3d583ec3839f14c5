"""`python -m aitrain.bench.ops`: the same without the command line, for machines with little more than torch."""

import sys

from aitrain.bench.ops.command import main
from aitrain.errors import AitrainError

try:
    sys.exit(main(sys.argv[1:]))
except AitrainError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
