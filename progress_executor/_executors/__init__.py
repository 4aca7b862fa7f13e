"""One module per executor. Imported from here by nobody: the package's `__init__` names the public ones."""
