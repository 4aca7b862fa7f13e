"""`make lint`: no function has more than 60 lines."""

import ast
import sys
from pathlib import Path

LIMIT = 60

sys.exit(
    "\n".join(
        f"{path}:{node.lineno}: {node.name} has {lines} lines, more than {LIMIT}"
        for folder in ("progress_executor", "tests", "bench", "examples", "docs")
        for path in sorted(Path(folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := node.end_lineno - node.lineno + 1) > LIMIT
    )
    or None
)
