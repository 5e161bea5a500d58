"""Everything that reads JAX's intermediate representation.

JAX's jaxprs change between releases; this is the one file that knows their layout. The
rest of the library sees `Block` (a jaxpr with its constants) and `Loop` (a scan).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax._src import source_info_util
from jax.extend import core

SITES = frozenset({"sample", "factor"})
INLINED = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
CHECKPOINT = frozenset({"checkpoint", "remat", "remat2"})


class Block(NamedTuple):
    """A jaxpr and the constants that it closes over."""

    jaxpr: Any
    consts: Sequence[Any]

    @property
    def eqns(self) -> Sequence[Any]:
        return self.jaxpr.eqns

    def environment(self, args: Sequence[Any]) -> dict[Any, Any]:
        """Bind the constants and inputs of the block."""
        constvars = getattr(self.jaxpr, "constvars", ())
        variables = [*constvars, *self.jaxpr.invars]
        return dict(zip(variables, [*self.consts, *args], strict=True))

    def outputs(self, env: dict[Any, Any]) -> list[Any]:
        return [read(env, atom) for atom in self.jaxpr.outvars]


class Loop(NamedTuple):
    """A `lax.scan`: its body and how its operands divide."""

    body: Block
    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: int

    def split_inputs(self, values: Sequence[Any]) -> tuple[list, list, list]:
        """Divide operands (or the body's inputs) into constants, carry and rows."""
        end = self.num_consts + self.num_carry
        return (
            list(values[: self.num_consts]),
            list(values[self.num_consts : end]),
            list(values[end:]),
        )

    def split_outputs(self, values: Sequence[Any]) -> tuple[list, list]:
        return list(values[: self.num_carry]), list(values[self.num_carry :])


def trace(fun: Callable, *args: Any) -> tuple[Block, Any]:
    """Trace `fun` to a block, and return the structure of its output."""
    traced = trace_shapes(fun, *args)
    return traced.body, jax.tree.structure(traced.shapes)


class Traced(NamedTuple):
    """A function that was traced once: its output shapes, and how to run it."""

    body: Block
    shapes: Any

    def __call__(self, *args: Any) -> Any:
        outs = evaluate(self.body, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(self.shapes), outs)


def trace_shapes(fun: Callable, *args: Any) -> Traced:
    """Trace `fun`, keeping the shapes of its outputs."""
    closed, shapes = jax.make_jaxpr(fun, return_shape=True)(*args)
    return Traced(block(closed), shapes)


def reads_inputs(fun: Callable, arg: Any) -> Any:
    """Return the structure of `arg` with True where `fun`'s value depends on the leaf."""
    body = trace_shapes(fun, arg).body
    used = {a for a in body.jaxpr.outvars if is_variable(a)}
    for eqn in reversed(body.eqns):
        if used.intersection(eqn.outvars):
            used |= {a for a in eqn.invars if is_variable(a)}
    leaves = [var in used for var in body.jaxpr.invars]
    return jax.tree.unflatten(jax.tree.structure(arg), leaves)


def random_size(sample: Callable[[Any], Any]) -> tuple[tuple[int, ...], int]:
    """Return the shape that `sample(key)` has, and how many random elements it draws."""
    traced = trace_shapes(sample, jax.random.key(0))
    return traced.shapes.shape, _random_elements(traced.body)


def _random_elements(body: Block) -> int:
    total = 0
    for eqn in body.eqns:
        inner = [_random_elements(sub) for sub in sub_blocks(eqn)]
        total += sum(inner)
        if not inner and any(map(_is_key, eqn.invars)):
            total += sum(v.aval.size for v in eqn.outvars if not _is_key(v))
    return total


def _is_key(atom: Any) -> bool:
    return jax.dtypes.issubdtype(atom.aval.dtype, jax.dtypes.prng_key)


def block(jaxpr: Any) -> Block:
    """View an open or closed jaxpr of any supported JAX release as a block."""
    return Block(getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ())))


def read(env: dict[Any, Any], atom: Any) -> Any:
    """Look up the value of an atom."""
    return atom.val if isinstance(atom, core.Literal) else env[atom]


def write(env: dict[Any, Any], eqn: Any, values: Sequence[Any]) -> None:
    """Keep the outputs of an equation."""
    env.update(zip(eqn.outvars, values, strict=True))


def bind(eqn: Any, args: Sequence[Any]) -> list[Any]:
    """Apply one equation to values."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*args, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def evaluate(body: Block, args: Sequence[Any]) -> list[Any]:
    """Evaluate a block that has no sites."""
    env = body.environment(args)
    for eqn in body.eqns:
        write(env, eqn, bind(eqn, [read(env, atom) for atom in eqn.invars]))
    return body.outputs(env)


def sub_blocks(eqn: Any) -> list[Block]:
    """Return the blocks inside an equation: bodies, branches, called functions."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Block):
                found.append(item)
            elif isinstance(item, core.Jaxpr | core.ClosedJaxpr):
                found.append(block(item))
    return found


def has_sites(eqn: Any) -> bool:
    """Whether an equation is a site or has one somewhere inside."""
    return first_site_of(eqn) is not None


def first_site(body: Block) -> Any:
    """Return the first site in a block, at any depth, or None."""
    return next(filter(None, map(first_site_of, body.eqns)), None)


def first_site_of(eqn: Any) -> Any:
    """Return the equation if it is a site, else the first site inside it, or None."""
    if eqn.primitive.name in SITES:
        return eqn
    return next(filter(None, map(first_site, sub_blocks(eqn))), None)


def is_variable(atom: Any) -> bool:
    """Whether an atom is a variable, not a literal."""
    return not isinstance(atom, core.Literal)


def is_scan(eqn: Any) -> bool:
    """Whether an equation is a `lax.scan`."""
    return eqn.primitive.name == "scan"


def loop(eqn: Any) -> Loop:
    """Read a scan equation."""
    params = eqn.params
    if "num_carry" in params:  # jax 0.10
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    else:  # jax 0.11 keeps trees of (consts, carry, rows)
        consts, carry, _ = params["ft_in"].unpack()
        num_consts, num_carry = len(list(consts)), len(list(carry))
    return Loop(
        block(params["jaxpr"]),
        num_consts,
        num_carry,
        params["length"],
        params["reverse"],
        params["unroll"],
    )


def branches(eqn: Any) -> list[Block]:
    """Read the branches of a `lax.cond` or `lax.switch`."""
    return [block(branch) for branch in eqn.params["branches"]]


def called(eqn: Any) -> Block:
    """Read the function that a call-like equation calls."""
    return block(eqn.params[INLINED[eqn.primitive.name]])


def source(eqn: Any) -> str:
    """Say where in the user's program an equation was written."""
    return source_info_util.summarize(eqn.source_info)


def hide_frames(file: str) -> None:
    """Leave a file of ours out of `source`, which then shows the user's line."""
    source_info_util.register_exclusion(file)


def avals(atoms: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    """Return shapes and dtypes of atoms."""
    return [jax.ShapeDtypeStruct(a.aval.shape, a.aval.dtype) for a in atoms]


def literal_value(atom: Any) -> Any:
    """Return the value of a literal, or None for a variable."""
    return atom.val if isinstance(atom, core.Literal) else None
