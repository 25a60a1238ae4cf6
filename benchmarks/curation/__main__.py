"""`python -m benchmarks.curation`."""

import sys

from benchmarks.curation import main

main(sys.argv[1:])
