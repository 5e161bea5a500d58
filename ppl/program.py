"""A model traced for one signature: its jaxpr, its sites, and compiled operations.

A program is made once per signature of arguments and kept with the model, so a repeated
call neither traces nor compiles again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from motes.ppl import jaxprs
from motes.ppl.effects import root_scope
from motes.ppl.fingerprint import function_key
from motes.ppl.interpreter import Handler, Interpreter, Outcome
from motes.ppl.site_table import SiteTable, site_table
from motes.ppl.trace import is_traced

_MAX_PROGRAMS = 64


class Program:
    """A traced model.

    Attributes:
        body: The jaxpr of the model, an ordinary one, with its constants.
        sites: The table of its sites.
        memo: What analyses of the program keep with it.
    """

    def __init__(self, fun: Callable, args: tuple):
        leaves, self._tree = jax.tree.flatten(args)
        self._static = tuple(None if is_traced(x) else x for x in leaves)
        self._out: Any = None
        traced = [x for x in leaves if is_traced(x)]
        with root_scope():
            self.body, _ = jaxprs.trace(partial(self._call, fun), *traced)
        self.sites: SiteTable = site_table(self.body)
        self.memo: dict[str, Any] = {}
        self._compiled: dict[Handler, Callable] = {}

    def run(
        self, handler: Handler, key: Any, given: Any, args: tuple
    ) -> tuple[Any, Outcome]:
        """Run the program under a handler; return the model's value and the outcome."""
        if handler not in self._compiled:
            self._compiled[handler] = jax.jit(partial(self._interpret, handler))
        outs, outcome = self._compiled[handler](
            list(self.body.consts), traced_leaves(args), key, given
        )
        return self.unflatten(outs), outcome

    def unflatten(self, outs: list) -> Any:
        """Rebuild the model's return value from the outputs of its jaxpr."""
        tree, static = self._out
        arrays = iter(outs)
        return jax.tree.unflatten(
            tree, [next(arrays) if s is _ARRAY else s for s in static]
        )

    def _interpret(
        self, handler: Handler, consts: list, args: list, key: Any, given: Any
    ) -> tuple[list, Outcome]:
        body = self.body._replace(consts=consts)
        return Interpreter(handler).run(body, args, key, given)

    def _call(self, fun: Callable, *traced: Any) -> list:
        values = iter(traced)
        # A static leaf that is None cannot occur: None is structure, not a leaf.
        leaves = [next(values) if s is None else s for s in self._static]
        out, tree = jax.tree.flatten(fun(*jax.tree.unflatten(self._tree, leaves)))
        is_array = [is_traced(x) or isinstance(x, int) for x in out]
        pairs = list(zip(out, is_array, strict=True))
        self._out = tree, [_ARRAY if flag else x for x, flag in pairs]
        return [jnp.asarray(x) for x, flag in pairs if flag]


_ARRAY = object()


class ProgramCache:
    """The programs of one model, by signature and by what the model depends on."""

    def __init__(self, fun: Callable):
        self._fun = fun
        self._programs: dict[Any, tuple[Program, list[Any]]] = {}

    def get(self, args: tuple) -> Program:
        """Return the program for these arguments, traced anew only if it must be."""
        fun_key, alive = function_key(self._fun)
        key = None if fun_key is None else (fun_key, _signature(args))
        if key is None or not _is_hashable(key):
            return Program(self._fun, args)
        if key not in self._programs:
            if len(self._programs) >= _MAX_PROGRAMS:
                self._programs.pop(next(iter(self._programs)))
            self._programs[key] = Program(self._fun, args), alive
        return self._programs[key][0]


def traced_leaves(args: tuple) -> list[Any]:
    """Return the leaves of the arguments that are traced, not static."""
    return [x for x in jax.tree.leaves(args) if is_traced(x)]


def _signature(args: tuple) -> Any:
    leaves, tree = jax.tree.flatten(args)
    described = []
    for x in leaves:
        if is_traced(x):
            aval = jax.typeof(x) if not isinstance(x, jax.ShapeDtypeStruct) else x
            described.append(
                (aval.shape, aval.dtype, getattr(aval, "weak_type", False))
            )
        else:
            described.append((type(x), x))
    config = (jnp.result_type(float), jax.config.jax_numpy_rank_promotion)
    return tree, tuple(described), config


def _is_hashable(key: Any) -> bool:
    try:
        hash(key)
    except TypeError:
        return False
    return True
