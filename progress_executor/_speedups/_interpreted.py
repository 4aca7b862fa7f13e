"""Stands in for the `cython` module where Cython is not installed: it is needed to compile `_updater.py`, not to run it."""

compiled = False
