"""`python -m resilient_io.demo`."""

import sys

try:
    from resilient_io.demo.command import main

    code = main()
except KeyboardInterrupt:  # while the imports went on: later ones are handled there
    code = 130
sys.exit(code)
