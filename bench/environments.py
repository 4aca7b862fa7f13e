"""The virtual environments of the benchmarks and of the gate, in .venv as those of the tests."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ORIGINAL = "progress-executor==0.5"

sys.path.append(str(ROOT))  # behind everything else
from tests.run import VERSIONS, interpreters  # noqa: E402
from tests.run import processors as processors  # noqa: E402


def chosen(wanted: list[str]) -> tuple[dict[str, str], list[str]]:
    """The interpreters by version: this one by default, else those named ("all": from 3.11); and what is not there.

    Of each version the oldest patch release that is here.
    """
    if not wanted:
        return {"{}.{}".format(*sys.version_info[:2]): sys.executable}, []
    found: dict[str, str] = {}
    for version, path in interpreters().items():
        found.setdefault("{}.{}".format(*version), path)
    if wanted == ["all"]:
        wanted = sorted({*found, *map("{0[0]}.{0[1]}".format, VERSIONS)})
    return {version: found[version] for version in wanted if version in found}, [v for v in wanted if v not in found]


def _pip(python: Path, *arguments: str | Path) -> str:
    """Install; returns what went wrong, "" for nothing."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    answer = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in answer.stderr.splitlines() if "ERROR" in line] or ["pip failed"]
    return "" if answer.returncode == 0 else lines[-1]


def _environment(name: str, interpreter: str) -> Path:
    python = ROOT / ".venv" / name / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", python.parent.parent], check=True)
    return python


def with_package(version: str, interpreter: str, name: str = "gate") -> Path:
    """The Python of an environment that has the package as a user would install it, from this checkout."""
    python = _environment(f"{name}-{version}", interpreter)
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # an extension of an earlier build must not get into this one
    problem = _pip(python, ROOT) or _pip(python, "--force-reinstall", "--no-deps", ROOT)
    if problem:
        sys.exit(f"CPython {version}: the package cannot be installed: {problem}")
    return python


def with_peers(version: str, interpreter: str) -> Path:
    """The same with the peers of the extra `bench`, as far as they can be installed; the table says what is missing."""
    python = with_package(version, interpreter, "bench")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    requirements = extras["bench"]
    if _pip(python, *requirements):
        for requirement in requirements:
            if problem := _pip(python, requirement):
                print(f"  {requirement} cannot be installed: {problem}", flush=True)
    return python


def with_original(version: str, interpreter: str) -> tuple[Path | None, str]:
    """The Python of an environment that has the original, or None and why not."""
    python = _environment(f"bench-{version}-original", interpreter)
    problem = _pip(python, ORIGINAL, "tqdm")
    return (None, problem) if problem else (python, "")
