"""For type checkers: the functions to which `submit` gives an Updater by the name `progress`.

No type says "these parameters, and `progress`". So the shapes are listed here, and the other arguments of such a function
are not checked. Where a function takes `progress` and another, required argument by name only, mypy finds no shape for it,
and wants `submit(functools.partial(function, name=value))`.
"""

from typing import Any, Protocol, TypeVar

from .._speedups import Updater

T_co = TypeVar("T_co", covariant=True)


class ProgressFirst(Protocol[T_co]):
    def __call__(self, progress: Updater, *args: Any, **kwargs: Any) -> T_co: ...


class ProgressSecond(Protocol[T_co]):
    def __call__(self, a: Any, /, progress: Updater, *args: Any, **kwargs: Any) -> T_co: ...


class ProgressByName(Protocol[T_co]):
    def __call__(self, *args: Any, progress: Updater, **kwargs: Any) -> T_co: ...


# Where `progress` is behind other parameters. mypy takes ProgressByName at its word, and wants `*args` and `**kwargs`.


class ProgressByName0(Protocol[T_co]):
    def __call__(self, *, progress: Updater) -> T_co: ...


class ProgressByName1(Protocol[T_co]):
    def __call__(self, a: Any, /, *, progress: Updater) -> T_co: ...


class ProgressByName2(Protocol[T_co]):
    def __call__(self, a: Any, b: Any, /, *, progress: Updater) -> T_co: ...


class ProgressByName3(Protocol[T_co]):
    def __call__(self, a: Any, b: Any, c: Any, /, *, progress: Updater) -> T_co: ...


class ProgressByName4(Protocol[T_co]):
    def __call__(self, a: Any, b: Any, c: Any, d: Any, /, *, progress: Updater) -> T_co: ...


class ProgressByName5(Protocol[T_co]):
    def __call__(self, a: Any, b: Any, c: Any, d: Any, e: Any, /, *, progress: Updater) -> T_co: ...
