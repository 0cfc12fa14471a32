"""`python -m ptinspect`."""

import sys

from ptinspect.app import main

sys.exit(main())
