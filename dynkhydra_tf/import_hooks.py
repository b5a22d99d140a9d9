"""Around the import of a package, without importing it: a context, and what it would import beside itself."""

import contextlib
import gc
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType


class _Hook(importlib.abc.MetaPathFinder):
    """Finds one package as the finders after it do, and puts a context around its execution."""

    def __init__(self, name: str, around: Callable[[], contextlib.AbstractContextManager]) -> None:
        self.name = name
        self.around = around

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The package's own spec, with the context in its loader; None for other packages."""
        if fullname != self.name:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            if spec := finder.find_spec(fullname, path, target):
                break
        else:
            return None
        execute = spec.loader.exec_module

        def execute_within(module: ModuleType) -> None:
            with self.around():
                execute(module)

        spec.loader.exec_module = execute_within  # type: ignore[method-assign]
        return spec


def around_import(name: str, around: Callable[[], contextlib.AbstractContextManager]) -> None:
    """Has a package imported within a context, when somebody imports it; once it is imported, does nothing.

    Args:
        name: of a package at the top, such as "keras".
        around: makes the context.
    """
    if name not in sys.modules:
        sys.meta_path.insert(0, _Hook(name, around))


def after_import(name: str, call: Callable[[], None]) -> None:
    """Calls a function when somebody has imported a package; at once where it is imported already.

    Args:
        name: of a package at the top. call: the function.
    """

    @contextlib.contextmanager
    def calling() -> Iterator[None]:
        yield
        call()

    if name in sys.modules:
        call()
    else:
        around_import(name, calling)


@contextlib.contextmanager
def as_if_missing(*names: str) -> Iterator[None]:
    """Within the block, packages that are not imported yet look as if they were not installed.

    Args:
        names: of packages at the top that what is imported within can do without.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # None: an import of it fails
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, name) is None:
                del sys.modules[name]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Within the block Python does not look for cycles of objects that nobody holds, and what is there at its
    end is left out of each later search.

    An import makes objects that stay (TensorFlow's some 700,000), and each search looks at many of them anew.
    """
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.freeze()
            gc.enable()
