"""`python -m resilient_io.cli`, for environments in which scripts are not on the path."""

import sys

from .entry import main

sys.exit(main())
