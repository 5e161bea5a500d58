"""The transition density of a derived filter, from the model's own step.

The free sites of the step take the values of the next state; what they and the observed
sites count is the log density of moving there. `backward_sampling` weighs pairs by it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from jaxtyping import Array

from motes.inference.smc.derived import Derived, TimeState, is_whole
from motes.ppl import jaxprs
from motes.ppl.choices import Entry
from motes.ppl.errors import AddressError, Path, format_paths
from motes.ppl.handlers import Generate
from motes.ppl.interpreter import Interpreter, Outcome
from motes.ppl.timeaxis import made


def log_transition_of(program: Derived) -> Callable[[TimeState, TimeState, Any], Array]:
    """Return the log density of a pair of states and the data of the step between.

    It is exact, in nats, and includes the observations of the step, which may depend on
    the earlier state; data that are missing are choices, of which a state holds draws.

    Raises:
        AddressError: If the next state is not a function of the step's choices: then two
            particles of a filter cannot be joined. Sites in branches are refused too.
    """
    _check_joins(program)

    def log_transition(state: TimeState, later: TimeState, inputs: Any) -> Array:
        return _move(program, state, later, inputs)[1].tally.log_weight

    return log_transition


def _move(
    program: Derived,
    state: TimeState,
    later: TimeState,
    inputs: Any,
) -> tuple[list[Any], Outcome]:
    """Run the step from `state` with the choices of `later`; return the carry too."""
    index, given = inputs
    loop = program.time.loop
    env = program._environment(program._shared(), state)
    consts, _, rows = loop.split_inputs(program._operands(env))
    operands = [*consts, *state.carry, *(x[index] for x in rows)]
    chosen = {
        path: Entry(_at(later.choices, path)) for path in _free(program, inputs[1])
    }
    # Nothing is drawn: the key serves only densities that are random estimates.
    outs, outcome = Interpreter(Generate()).run(
        loop.body, operands, jax.random.key(0), {**given, **chosen}
    )
    return loop.split_outputs(outs)[0], outcome


def _check_joins(program: Derived) -> None:
    sites = program.time.program.sites
    free = _free(program, program.inputs[1])
    branches = [path for path in free if sites[path].conditional]
    if not branches and not program._kept() and not _keeps_the_past(program):
        return
    raise AddressError(
        "backward_sampling: the next state must be a function of the step's choices "
        f"alone, got a program with sites {format_paths(sites)} whose steps keep values "
        "of earlier ones or have sites in branches. Write log_transition(state, later)."
    )


def _keeps_the_past(program: Derived) -> bool:
    """Whether a random entry of the carry enters the next carry but through choices."""
    state = jax.eval_shape(lambda: program.init(jax.random.key(0), 1)[0])
    first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)
    inputs = jax.tree.map(lambda x: x[0], program.inputs)
    size = len(first.carry)

    def entry(index: int) -> Callable[[Any], Any]:
        def moved(given: Any) -> Any:
            carry, later = given
            earlier = replace(later, carry=carry)
            return _move(program, earlier, later, inputs)[0][index]

        return moved

    given = (first.carry, first)
    reads = [jaxprs.reads_inputs(entry(i), given) for i in range(size)]
    starts = program.time.loop.split_inputs(program.time.scan.invars)[1]
    mine = made(program.time.before)
    random = {i for i, a in enumerate(starts) if jaxprs.is_variable(a) and a in mine}
    random |= {i for i in range(size) if any(jax.tree.leaves(reads[i][1]))}
    for _ in range(size):  # what a random entry enters is random
        random |= {i for i in range(size) if any(reads[i][0][j] for j in random)}
    return any(reads[i][0][j] for i in range(size) for j in random)


def _free(program: Derived, given: dict[Path, Any]) -> list[Path]:
    """Addresses of the choices of a step, with data of which some are missing."""
    sites = program.time.program.sites
    return [
        path
        for path in program.time.paths
        if not is_whole(given, path) and not sites[path].is_factor
    ]


def _at(choices: Any, path: Path) -> Any:
    for name in path:
        choices = choices[name]
    return choices
