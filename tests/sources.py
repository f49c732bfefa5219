"""The source packages, module by module, for tests of what holds for every class in them.

A test that walks needs no list: what is added tomorrow is found.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from importlib.util import find_spec
from types import ModuleType

# Triton decides when it is imported whether kernels are compiled or interpreted: a process of its own
_APART = "models.compilation.compile"


def modules(package: str) -> Iterator[ModuleType]:
    """Every module of a package, imported; without entry points, and without Triton's kernels if it is not
    there."""
    root = importlib.import_module(package)
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        stem = found.name.rpartition(".")[2]
        is_kernel = stem.endswith("_triton") and find_spec("triton") is None
        if stem != "__main__" and found.name != _APART and not is_kernel:
            yield importlib.import_module(found.name)


def classes(package: str) -> Iterator[type]:
    """Every class that is defined in a package, at the top of a module or inside another class."""
    for module in modules(package):
        yield from _classes_in(module, module.__name__)


def _classes_in(holder: ModuleType | type, module_name: str) -> Iterator[type]:
    for member in vars(holder).values():
        is_own = inspect.isclass(member) and member.__module__ == module_name
        if is_own and member is not holder:
            yield member
            yield from _classes_in(member, module_name)
