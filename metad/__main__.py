"""`python -m metad`: the command line without the installed script."""

import sys

from metad.cli import main

sys.exit(main())
