"""The extension, and nothing else: the rest is in pyproject.toml.

PROGRESS_EXECUTOR_NO_EXTENSIONS=1 builds without it. PROGRESS_EXECUTOR_REQUIRE_EXTENSIONS=1 makes it an error if it cannot be
built; by default the package is then built without it and says so.
"""

import os
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError

NAME = "progress_executor._speedups._updater_c"
MSVC = sys.platform == "win32"


def switched_on(name: str) -> bool:
    return os.environ.get(f"PROGRESS_EXECUTOR_{name}_EXTENSIONS", "") not in ("", "0")


class BuildExtension(build_ext):
    """Builds the extension if that is possible, and says so if it is not."""

    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except (BaseError, OSError) as error:
            if switched_on("REQUIRE"):
                raise
            self.report(f"it could not be compiled: {error}")

    def report(self, reason: str) -> None:
        line = "*" * 78
        print(
            f"{line}\nprogress_executor: THE SPEEDUPS WERE NOT BUILT, {reason}\n"
            f"The package works without them, in plain Python; a step costs more.\n{line}",
            file=sys.stderr,
        )

    def get_outputs(self) -> list[str]:
        return [output for output in super().get_outputs() if os.path.exists(output)]

    def copy_extensions_to_source(self) -> None:
        built = [ext for ext in self.extensions if os.path.exists(self.get_ext_fullpath_in_build(ext))]
        self.extensions, extensions = built, self.extensions
        super().copy_extensions_to_source()
        self.extensions = extensions

    def get_ext_fullpath_in_build(self, ext: Extension) -> str:
        filename = self.get_ext_filename(self.get_ext_fullname(ext.name))
        return os.path.join(self.build_lib, filename)


def extensions() -> list[Extension]:
    if switched_on("NO"):
        if switched_on("REQUIRE"):
            sys.exit("PROGRESS_EXECUTOR_NO_EXTENSIONS and PROGRESS_EXECUTOR_REQUIRE_EXTENSIONS contradict each other")
        return []
    from Cython.Build import cythonize

    extension = Extension(
        NAME,
        ["progress_executor/_speedups/_updater.py"],
        # Debug symbols are four fifths of the file.
        extra_compile_args=["/O2"] if MSVC else ["-O3", "-g0"],
    )
    return cythonize(
        [extension],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "initializedcheck": False,
            "freethreading_compatible": True,
            "warn.unreachable": False,
        },
    )


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtension})
