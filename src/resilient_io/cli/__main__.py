"""`python -m resilient_io.cli`, for where scripts are not on the path."""

import sys

from resilient_io.cli.entry import main

sys.exit(main())
