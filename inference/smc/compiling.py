"""Compile the drivers by what a program asks of the compiler."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import jax
from jax.core import Tracer

from motes.inference.smc.feynman_kac import Compiles


def compiled(*static: str) -> Callable[[Callable], Callable]:
    """Decorate `f(key, program, ...)`: compile it by the options of the program.

    Inside a caller's `jit` the caller's options hold, as XLA compiles the whole.

    Args:
        static: Names of static arguments.
    """

    def decorate(function: Callable) -> Callable:
        @lru_cache
        def by(options: tuple[tuple[str, Any], ...]) -> Callable:
            chosen: Any = dict(options)
            return jax.jit(function, static_argnames=static, compiler_options=chosen)

        @wraps(function)
        def call(key: Any, program: Any, *args: Any) -> Any:
            options = ()
            if isinstance(program, Compiles) and not _is_traced((key, program)):
                options = tuple(program.compiler_options.items())
            return by(options)(key, program, *args)

        return call

    return decorate


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
