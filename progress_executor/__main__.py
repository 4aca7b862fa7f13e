"""`python -m progress_executor` runs the demonstration, from `_demo.py`: worker processes import no package's `__main__`."""

import sys

from ._demo import main

if __name__ == "__main__":
    sys.exit(main())
