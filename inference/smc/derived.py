"""The filter that is already in a model: its `lax.scan` is the time axis.

Sites before the scan are drawn once, the body of the scan is the step, constrained sites
inside weigh, sites after the scan weigh at the end. The user writes one generative model.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from motes.inference.smc.particles import Particles
from motes.inference.smc.proposals import check_models
from motes.ppl import Choices, Model, jaxprs, merge, vmap_lanes
from motes.ppl.choices import Entry, nest, read_entries, to_choices
from motes.ppl.errors import Path
from motes.ppl.handlers import Generate
from motes.ppl.interpreter import Interpreter
from motes.ppl.program import traced_leaves
from motes.ppl.timeaxis import TimeAxis, made, reads, time_axis


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TimeState:
    """A particle of a derived filter.

    Attributes:
        carry: The carry of the scan.
        fixed: Values from before the scan that later equations read.
        before: Choices made before the scan.
        current: Choices of the last step that are not part of the carry, with draws for
            data that are missing.
        links: For other choices of the step, their place in the carry.
    """

    carry: list[Any]
    fixed: list[Any]
    before: Choices
    current: Choices
    links: tuple[tuple[Path, int], ...] = field(metadata={"static": True})

    @property
    def choices(self) -> Choices:
        """Choices made before the scan and at the last step, by address."""
        linked = nest({path: self.carry[index] for path, index in self.links})
        return merge(merge(self.before, self.current), linked)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Derived:
    """The filter derived from one model; as `derive` makes it."""

    args: list[Any]
    consts: list[Any]
    outside: dict[Path, Any]
    inputs: Any
    model: Model = field(metadata={"static": True})
    time: TimeAxis = field(metadata={"static": True})
    init_is_step: bool = field(default=False, metadata={"static": True})

    @property
    def num_steps(self) -> int:
        return self.time.loop.length

    def init(self, key: Key[Array, ""], num_particles: int) -> Any:
        shared = self._shared()

        def lane() -> Any:
            env = dict(shared)
            outcome = _RUN.run_eqns(self.time.before, env, key, self.outside)
            loop = self.time.loop
            _, carry, _ = loop.split_inputs(self._operands(env))
            carry = [jnp.asarray(x) for x in carry]
            fixed = [env[var] for var in self._kept()]
            before = to_choices(outcome.records)
            current = jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype), self._current_shapes()
            )
            state = TimeState(carry, fixed, before, current, self._links())
            return state, outcome.tally.log_weight

        return vmap_lanes(lane, num_lanes=num_particles)()

    def step(self, key: Key[Array, ""], state: TimeState, inputs: Any) -> Any:
        shared, (index, given) = self._shared(), inputs

        def lane(state: TimeState) -> Any:
            env = self._environment(shared, state)
            loop = self.time.loop
            consts, _, rows = loop.split_inputs(self._operands(env))
            rows = [x[index] for x in rows]
            outs, outcome = _RUN.run(
                loop.body, [*consts, *state.carry, *rows], key, given
            )
            carry, _ = loop.split_outputs(outs)
            linked = {path for path, _ in state.links}
            drawn = {
                path: entry
                for path, entry in outcome.records.items()
                if path not in linked and not is_whole(given, path)
            }
            moved = TimeState(
                carry, state.fixed, state.before, to_choices(drawn), state.links
            )
            return moved, outcome.tally.log_weight

        return vmap_lanes(lane)(state)

    def finish(self, key: Key[Array, ""], state: TimeState) -> Array:
        shared = self._shared()

        def lane(state: TimeState) -> Array:
            env = self._environment(shared, state)
            outvars = self.time.scan.outvars[: len(state.carry)]
            env.update(zip(outvars, state.carry, strict=True))
            outcome = _RUN.run_eqns(self.time.after, env, key, self.outside)
            return outcome.tally.log_weight

        return vmap_lanes(lane)(state)

    def _shared(self) -> dict:
        body = self.time.body._replace(consts=self.consts)
        env = body.environment(self.args)
        _RUN.run_eqns(self.time.shared, env, None, {})
        return env

    def _environment(self, shared: dict, state: TimeState) -> dict:
        return {**shared, **dict(zip(self._kept(), state.fixed, strict=True))}

    def _operands(self, env: dict) -> list[Any]:
        # A carry of the scan starts from values that need not be kept afterwards.
        return [
            jaxprs.read(env, a) if not jaxprs.is_variable(a) else env.get(a)
            for a in self.time.scan.invars
        ]

    def _kept(self) -> list[Any]:
        """Per-particle variables that steps and the end read, in order."""
        time, loop = self.time, self.time.loop
        consts, _, rows = loop.split_inputs(time.scan.invars)
        needed = {a for a in (*consts, *rows) if jaxprs.is_variable(a)}
        needed |= reads(time.after)
        mine = made(time.before)
        ordered = [var for eqn in time.before for var in eqn.outvars]
        return [var for var in ordered if var in mine & needed]

    def _links(self) -> tuple[tuple[Path, int], ...]:
        loop = self.time.loop
        carry_vars = loop.split_outputs(loop.body.jaxpr.outvars)[0]
        links = []
        for eqn in loop.body.eqns:
            if eqn.primitive.name == "sample" and len(eqn.outvars) == 1:
                places = [i for i, v in enumerate(carry_vars) if v is eqn.outvars[0]]
                links += [(eqn.params["path"], i) for i in places[:1]]
        return tuple(links)

    def _current_shapes(self) -> Choices:
        """Shapes of one step's free choices that are not in the carry."""
        linked = {path for path, _ in self._links()}
        given = self.inputs[1]
        shapes = {}
        for path in self.time.paths:
            site = self.time.program.sites[path]
            if path in linked or is_whole(given, path) or site.is_factor:
                continue
            drop = lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype)  # noqa: E731
            value = jax.tree.map(drop, site.value)
            if site.conditional:
                lanes = site.lane_shape[1:]
                shapes[path] = _masked_shape(value, lanes)
            else:
                shapes[path] = value
        return nest(shapes)


_RUN = Interpreter(Generate())


def derive(model: Model, constraints: Choices, *args: Any) -> Derived:
    """Build the filter of a state-space model from the model itself.

    The model must have one top-level `lax.scan` of sites: its time axis. Constraints on
    sites in the scan are used step by step, so `run` conditions on them one at a time. The
    steps, and what is collected of them, come in the order in which the scan runs.

    Args:
        model: An ordinary generative model.
        constraints: Observations by address, of the sites' full shapes.
        *args: Arguments of the model.

    Raises:
        AddressError: If the model has no single time axis, or a constraint is on an
            unknown address.
        ShapeError: If a constraint has another shape than its site.
    """
    check_models("derive", model=model)
    time = time_axis(model, *args)
    entries = read_entries("derive", constraints, time.program.sites)
    inside = {path: entries[path] for path in time.paths if path in entries}
    outside = {path: entry for path, entry in entries.items() if path not in inside}
    index = jnp.arange(time.loop.length)
    if time.loop.reverse:
        index = index[::-1]
        inside = jax.tree.map(lambda x: x[::-1], inside)
    return Derived(
        traced_leaves(args),
        list(time.body.consts),
        outside,
        (index, inside),
        model,
        time,
    )


def is_whole(given: dict[Path, Entry], path: Path) -> bool:
    """Whether data are given at a path, and none of them is missing."""
    return path in given and given[path].mask is None


def _masked_shape(value: Any, lanes: tuple[int, ...]) -> Any:
    from motes.ppl.choices import Masked

    return Masked(value, jax.ShapeDtypeStruct(lanes, bool))


__all__ = ["Derived", "Particles", "TimeState", "derive"]
