"""What a function depends on, as a hashable key: its code, closure and globals.

A model is traced once per signature; the key lets a changed closure or global be seen.
Anything that cannot be compared exactly makes the function unkeyed, and it is traced anew.
"""

import dataclasses
import enum
import functools
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

_LIBRARIES = tuple(
    path
    for name in ("purelib", "platlib", "stdlib")
    if (path := sysconfig.get_path(name))
)
_IMMUTABLE = (jax.Array, type, types.ModuleType, types.BuiltinFunctionType)
_ATOMS = (int, float, complex, bool, str, bytes, type(None), type(Ellipsis), np.dtype)


class Unkeyed(Exception):
    """A value was met that has no exact key."""


@dataclasses.dataclass
class Fingerprint:
    """Builds keys; `alive` holds the objects whose identity is part of a key."""

    alive: list[Any] = dataclasses.field(default_factory=list)
    seen: dict[int, int] = dataclasses.field(default_factory=dict)
    open: set[Any] = dataclasses.field(default_factory=set)

    def key(self, value: Any) -> Any:
        """Return a hashable key that changes whenever `value` does.

        Raises:
            Unkeyed: If `value` may change without its key changing.
        """
        if isinstance(value, jax.core.Tracer):
            raise Unkeyed
        if isinstance(value, _ATOMS):
            return type(value), value, str(value)  # str tells 0.0 from -0.0 and nan
        if isinstance(value, np.ndarray | np.generic):
            return "array", value.dtype.str, value.shape, value.tobytes()
        if id(value) in self.seen:
            return "seen", self.seen[id(value)]
        self.seen[id(value)] = len(self.seen)
        self.alive.append(value)
        if isinstance(value, _IMMUTABLE):
            return "same", id(value)
        if callable(value):
            return self._callable(value)
        return self._tree(value)

    def _callable(self, value: Any) -> Any:
        if isinstance(value, functools.partial):
            return "partial", *map(self.key, (value.func, value.args, value.keywords))
        if isinstance(value, types.MethodType):
            return "method", self.key(value.__self__), self.key(value.__func__)
        if (inner := getattr(value, "__fingerprint__", None)) is not None:
            return type(value), *map(self.key, inner)
        if _is_library_wrapper(value):
            return "wrapper", id(value), self.key(value.__wrapped__)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if type(value).__module__.split(".")[0] in ("jax", "jaxlib", "numpy"):
            return self._transformed(value)
        return self._tree(value)

    def _transformed(self, value: Any) -> Any:
        """Key a callable object of JAX: what it wraps, and custom derivatives."""
        if (inner := getattr(value, "__wrapped__", None)) is None:
            return "same", id(value)
        rules = [getattr(value, name, None) for name in ("jvp", "fwd", "bwd")]
        return type(value), self.key(inner), *map(self.key, rules)

    def _function(self, fun: types.FunctionType) -> Any:
        own = fun.__module__.split(".")[0] == "motes"
        library = own or fun.__code__.co_filename.startswith(_LIBRARIES)
        names = set() if library else set(_names(fun.__code__))
        cells = [self._named(_cell(c), names) for c in fun.__closure__ or ()]
        globals_ = [
            (n, fun.__globals__[n]) for n in sorted(names) if n in fun.__globals__
        ]
        parts = [(n, self._named(v, names)) for n, v in globals_]
        defaults = (fun.__defaults__, fun.__kwdefaults__)
        return id(fun.__code__), *cells, *parts, self.key(defaults)

    def _named(self, value: Any, names: set[str]) -> Any:
        """Key a value that code refers to; of a user's module or class, what it names."""
        visit = id(value), frozenset(names)
        if not _is_namespace(value) or visit in self.open:
            return self.key(value)
        self.open.add(visit)
        self.alive.append(value)
        found = [(n, getattr(value, n)) for n in sorted(names) if hasattr(value, n)]
        parts = tuple((n, self._attribute(v, names)) for n, v in found)
        self.open.remove(visit)
        return id(value), parts

    def _attribute(self, value: Any, names: set[str]) -> Any:
        if isinstance(value, property):
            return self.key(value.fget)
        if hasattr(value, "__get__") and not callable(value):  # a field's descriptor
            self.alive.append(value)
            return "same", id(value)
        return self._named(value, names)

    def _tree(self, value: Any) -> Any:
        leaves, tree = jax.tree.flatten(value)
        if len(leaves) == 1 and leaves[0] is value:
            raise Unkeyed
        try:
            hash(tree)
        except TypeError:
            raise Unkeyed from None
        return tree, tuple(self.key(leaf) for leaf in leaves)


def function_key(fun: Callable) -> tuple[Any, list[Any]]:
    """Return `fun`'s key (None where it has none) and the objects it must keep alive."""
    fingerprint = Fingerprint()
    try:
        return fingerprint.key(fun), fingerprint.alive
    except Unkeyed:
        return None, []


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _names(const)


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _is_library_wrapper(value: Any) -> bool:
    """Whether a library wrapped a function, as caches and type checkers do."""
    if not hasattr(value, "__wrapped__"):
        return False
    code = getattr(value, "__code__", None)
    in_library = code is not None and code.co_filename.startswith(_LIBRARIES)
    return in_library or type(value).__module__ == "functools"


def _is_namespace(value: Any) -> bool:
    """Whether a value is a module or class of the user's, whose attributes may change."""
    if isinstance(value, types.ModuleType):
        return getattr(value, "__file__", None) is not None and not _is_library(value)
    if not isinstance(value, type) or issubclass(value, enum.Enum):
        return False
    module = sys.modules.get(value.__module__)
    return module is None or not _is_library(module)


def _is_library(module: types.ModuleType) -> bool:
    file = getattr(module, "__file__", None) or ""
    builtin = module.__name__ in sys.builtin_module_names
    return (
        builtin or file.startswith(_LIBRARIES) or module.__name__.startswith("motes.")
    )
