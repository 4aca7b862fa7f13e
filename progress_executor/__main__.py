"""`python -m progress_executor` runs the demonstration, from `demo.py`: worker processes import no package's `__main__`."""

import sys

from .demo import main

if __name__ == "__main__":
    sys.exit(main())
