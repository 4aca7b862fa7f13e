"""The extension, and nothing else: the rest is in pyproject.toml.

PROGRESS_EXECUTOR_NO_EXTENSIONS=1 builds without it. PROGRESS_EXECUTOR_REQUIRE_EXTENSIONS=1 makes it an error if it cannot be
compiled; by default the package is then built without it and says so.
"""

import os
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def switched_on(name: str) -> bool:
    return os.environ.get(f"PROGRESS_EXECUTOR_{name}_EXTENSIONS", "") not in ("", "0")


class BuildExtension(build_ext):
    def build_extension(self, ext: Extension) -> None:
        try:
            super().build_extension(ext)
        except Exception as error:
            line = "*" * 78
            print(
                f"{line}\nprogress_executor: THE SPEEDUPS WERE NOT BUILT ({error}).\n"
                f"Without them the package works in plain Python; each step costs more.\n{line}",
                file=sys.stderr,
            )
            raise  # setuptools goes on if the extension is optional


def extensions() -> list[Extension]:
    if switched_on("NO"):
        if switched_on("REQUIRE"):
            sys.exit("PROGRESS_EXECUTOR_NO_EXTENSIONS and PROGRESS_EXECUTOR_REQUIRE_EXTENSIONS contradict each other")
        return []
    from Cython.Build import cythonize

    (extension,) = cythonize(
        [
            Extension(
                "progress_executor._speedups._updater_c",
                ["progress_executor/_speedups/_updater.py"],
                include_dirs=["progress_executor/_speedups"],
                depends=["progress_executor/_speedups/_step.h"],
                # Debug symbols are four fifths of the file.
                extra_compile_args=["/O2"] if sys.platform == "win32" else ["-O3", "-g0"],
            )
        ],
        build_dir="build/cython",
        show_all_warnings=False,
        compiler_directives={
            "language_level": 3,
            "binding": False,  # methods as C types have them: the interpreter calls those a third faster
            "embedsignature": True,  # and inspect.signature finds their parameters here
            "embedsignature.format": "clinic",
            "annotation_typing": False,  # an annotation is for mypy: a str must not make a TypeError of Cython's own
            "boundscheck": False,
            "wraparound": False,
            "initializedcheck": False,
            "freethreading_compatible": True,
            "warn.unreachable": False,
        },
    )
    extension.optional = not switched_on("REQUIRE")  # cythonize loses it if it is given above
    return [extension]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExtension})
