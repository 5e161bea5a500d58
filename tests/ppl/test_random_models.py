"""Random models agree with a second reading of the same program in plain Python.

Constructs nest in every order up to depth four; what the log density of a trace must be,
and which choices it must hold, is worked out in `tests/ppl/random_programs.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from motes.ppl import Masked, model
from tests.ppl.random_programs import (
    CALLS,
    FAMILIES,
    REAL,
    Around,
    Branches,
    Carried,
    Factor,
    Hand,
    Mapped,
    Place,
    Sequence,
    Site,
    Twice,
)

START = 0.3
FAST = {"xla_backend_optimization_level": 0}  # most of the time goes to compiling


def wrapping(construct, kind):
    return lambda inner, leaf, size: construct(kind, inner(1))


def looping(construct, kind):
    return lambda inner, leaf, size: construct(kind, size, inner(1))


CONSTRUCTS = {
    **{kind: wrapping(Around, kind) for kind in CALLS},
    **{kind: looping(Carried, kind) for kind in ("scan", "reverse", "fori_loop")},
    **{kind: looping(Mapped, kind) for kind in ("map", "plate", "same")},
    "twice": lambda inner, leaf, size: Twice(inner(1)),
    "cond": lambda inner, leaf, size: Branches(False, (inner(1), leaf)),
    "both": lambda inner, leaf, size: Branches(False, (inner(2), inner(1))),
    "switch": lambda inner, leaf, size: Branches(False, (leaf, inner(1), inner(2))),
    "shared": lambda inner, leaf, size: Branches(True, tuple(map(Site, REAL))),
}
LEAVES = [*map(Site, FAMILIES), Factor(0.5)]


def nest(kinds, leaves, sizes):
    """Nest the constructs, outermost first, each in a sequence that starts with a leaf."""
    first, *rest = leaves
    if not kinds:
        return first

    def inner(step):
        return nest(kinds[step:], rest[step:] + rest[:step], sizes[step:])

    made = CONSTRUCTS[kinds[0]](inner, rest[-1], sizes[0])
    return Sequence((first, made))


KINDS = list(CONSTRUCTS)
DRAWN = {
    # Steps from the outer construct in the list, so that each one meets all others.
    "steps": st.permutations(range(len(KINDS))),
    "leaves": st.permutations(LEAVES),
    "sizes": st.permutations([2, 2, 3, 3]),
}


def flat(node, path=()):
    if not isinstance(node, dict):
        return {path: node}
    return {p: v for k, x in node.items() for p, v in flat(x, (*path, k)).items()}


def check_trace(tree, trace):
    """Compare one trace of a tree with the reading by hand."""
    hand = Hand(trace.choices)
    end = tree.read(START, "s", hand, Place())
    np.testing.assert_allclose(trace.log_density, hand.total, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(trace.return_value, end, rtol=1e-9, atol=1e-9)
    entries = flat(trace.choices)
    shapes = dict(tree.shapes("s", Place()))
    masks = 0
    for path, entry in entries.items():
        value = entry.value if isinstance(entry, Masked) else entry
        assert value.shape == shapes.pop(path)
        masks += int(np.sum(entry.mask)) if isinstance(entry, Masked) else 0
    assert not shapes, "a site has no choice"
    assert masks == len(hand.met), "a mask is true where no choice was made"


@pytest.mark.parametrize("outer", [kind for kind in KINDS if kind != "shared"])
@given(**DRAWN)
@settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=2,
    phases=[Phase.generate],  # shrinking would compile hundreds of programs
    suppress_health_check=[HealthCheck.too_slow],
)
def test_random_models_agree_with_the_sum_by_hand(outer, steps, leaves, sizes):
    inner = [KINDS.index(outer) + 1 + step for step in steps[:3]]
    tree = nest([outer, *(KINDS[i % len(KINDS)] for i in inner)], leaves, sizes)
    program = model(lambda x: tree.run(x, "s"))

    @partial(jax.jit, compiler_options=FAST)
    def operate(key):
        trace = program.simulate(key, jnp.asarray(START))
        log_density = program.log_density(trace.choices, *trace.args)
        again, log_weight = program.generate(key, trace.choices, *trace.args)
        return trace, log_density, log_weight, again

    for seed in range(3):
        trace, *others, again = jax.tree.map(np.asarray, operate(jax.random.key(seed)))
        check_trace(tree, trace)
        check_trace(tree, again)
        np.testing.assert_allclose(others, trace.log_density, rtol=1e-9, atol=1e-9)
