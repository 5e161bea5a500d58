"""The one interpreter: it walks a model's jaxpr and asks a handler at each site.

How choices pass through scans, plates, branches and calls is known here, once, for every
operation. A handler (see `motes.ppl.handlers`) decides a site's value and what it counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from motes.ppl import jaxprs
from motes.ppl.choices import Entries, Entry
from motes.ppl.errors import Path
from motes.ppl.jaxprs import Block
from motes.ppl.plates import vmap_lanes
from motes.ppl.site_table import sites_in


class Tally(NamedTuple):
    """What sites count, summed over the program.

    Attributes:
        log_density: Log density of every site and factor, in nats.
        log_weight: The part that the operation counts as its weight, in nats.
    """

    log_density: Any
    log_weight: Any


class Answer(NamedTuple):
    """A handler's answer at a site; `record` None leaves the site out of the records."""

    value: Any
    record: Any
    tally: Tally


class Outcome(NamedTuple):
    """What running a block leaves beside its outputs."""

    records: Entries
    tally: Tally


@runtime_checkable
class Handler(Protocol):
    """An operation on models: what happens at each site."""

    def site(self, path: Path, key: Any, density: Any, given: Any) -> Answer:
        """Decide a site from its density and what the operation was given for it."""
        ...

    def factor(self, path: Path, log_weight: Any) -> Tally:
        """Decide what a factor counts."""
        ...


def tally(log_density: Any = 0.0, log_weight: Any = 0.0) -> Tally:
    """Make a tally in the default float type."""
    dtype = jnp.result_type(float)
    return Tally(jnp.asarray(log_density, dtype), jnp.asarray(log_weight, dtype))


@dataclass(frozen=True)
class Interpreter:
    """Runs blocks under a handler; `lanes` is how it maps the lanes of a plate."""

    handler: Handler
    lanes: Callable = vmap_lanes

    def run(
        self, body: Block, args: list, key: Any, given: dict[Path, Any]
    ) -> tuple[list, Outcome]:
        """Run a block; `given` holds the operation's inputs by path."""
        env = body.environment(args)
        outcome = self.run_eqns(body.eqns, env, key, given)
        return body.outputs(env), outcome

    def run_eqns(
        self, eqns: Sequence[Any], env: dict, key: Any, given: dict[Path, Any]
    ) -> Outcome:
        """Run equations in an environment, which they extend."""
        records: Entries = {}
        total, count = tally(), 0
        for eqn in eqns:
            values = [jaxprs.read(env, atom) for atom in eqn.invars]
            if jaxprs.has_sites(eqn):
                site_key = None if key is None else jax.random.fold_in(key, count)
                count += 1
                outs, outcome = self._enter(eqn, values, site_key, given)
                records |= outcome.records
                total = Tally(*map(jnp.add, total, outcome.tally))
            else:
                outs = jaxprs.bind(eqn, values)
            jaxprs.write(env, eqn, outs)
        return Outcome(records, total)

    def _enter(self, eqn: Any, values: list, key: Any, given: dict) -> Any:
        name = eqn.primitive.name
        if name in jaxprs.INLINED:
            return self.run(jaxprs.called(eqn), values, key, given)
        if name in jaxprs.CHECKPOINT:
            return self._checkpoint(eqn, values, key, given)
        return getattr(self, f"_{name}")(eqn, values, key, given)

    def _sample(self, eqn: Any, values: list, key: Any, given: dict) -> Any:
        path = eqn.params["path"]
        density = eqn.params["packed"].unpack(values)
        answer = self.handler.site(path, key, density, given.get(path))
        shapes = eqn.params["shapes"]
        outs = [
            jnp.asarray(x, dtype)
            for x, (_, dtype) in zip(jax.tree.leaves(answer.value), shapes, strict=True)
        ]
        records = {}
        if answer.record is not None:
            records[path] = Entry(jax.tree.unflatten(eqn.params["tree"], outs))
            if answer.record is not answer.value:
                records[path] = Entry(answer.record)
        return outs, Outcome(records, answer.tally)

    def _factor(self, eqn: Any, values: list, key: Any, given: dict) -> Any:
        return [], Outcome({}, self.handler.factor(eqn.params["path"], values[0]))

    def _checkpoint(self, eqn: Any, values: list, key: Any, given: dict) -> Any:
        body = jaxprs.sub_blocks(eqn)[0]
        rerun = jax.checkpoint(
            lambda *xs: self.run(body, *xs),
            prevent_cse=eqn.params["prevent_cse"],
            policy=eqn.params["policy"],
        )
        return rerun(values, key, _inside(eqn, given))

    def _scan(self, eqn: Any, values: list, key: Any, given: dict) -> Any:
        loop = jaxprs.loop(eqn)
        consts, init, rows = loop.split_inputs(values)
        keys = None if key is None else jax.random.split(key, loop.length)

        def step(carry: Any, row: Any) -> Any:
            state, total = carry
            step_key, step_given, xs = row
            outs, outcome = self.run(
                loop.body, [*consts, *state, *xs], step_key, step_given
            )
            state, ys = loop.split_outputs(outs)
            total = Tally(*map(jnp.add, total, outcome.tally))
            return (state, total), (ys, outcome.records)

        (state, total), (ys, records) = jax.lax.scan(
            step,
            (init, tally()),
            (keys, _inside(eqn, given), rows),
            length=loop.length,
            reverse=loop.reverse,
            unroll=loop.unroll,
        )
        return [*state, *ys], Outcome(records, total)

    def _plate(self, eqn: Any, values: list, key: Any, given: dict) -> Any:
        body, size = eqn.params["body"], eqn.params["size"]
        axes = [0 if mapped else None for mapped in eqn.params["mapped"]]
        lane = self.lanes(
            lambda xs, lane_given: self.run(body, xs, key, lane_given),
            (axes, 0),
            size,
        )
        outs, outcome = lane(values, _inside(eqn, given))
        return outs, Outcome(outcome.records, Tally(*map(jnp.sum, outcome.tally)))

    def _cond(self, eqn: Any, values: list, key: Any, given: dict) -> Any:
        index, *operands = values
        inputs = (operands, key, _inside(eqn, given))
        traced = []
        for body in jaxprs.branches(eqn):
            fun = lambda args, body=body: self.run(body, *args)  # noqa: E731
            traced.append(jaxprs.trace_shapes(fun, inputs))
        shapes: Entries = {}
        for branch in traced:
            shapes = branch.shapes[1].records | shapes
        partial = {
            path
            for path in shapes
            if any(_is_partial(branch.shapes[1].records.get(path)) for branch in traced)
        }
        lanes = {path: site.lane_shape for path, site in sites_in(eqn).items()}

        def padded(branch: Any) -> Callable:
            def run(inputs: Any) -> Any:
                outs, outcome = branch(inputs)
                records = {
                    path: _pad(outcome.records.get(path), shape, lanes[path])
                    if path in partial
                    else outcome.records[path]
                    for path, shape in shapes.items()
                }
                return outs, Outcome(records, outcome.tally)

            return run

        return jax.lax.switch(index, [padded(branch) for branch in traced], inputs)


def _inside(eqn: Any, given: dict[Path, Any]) -> dict[Path, Any]:
    return {path: given[path] for path in sites_in(eqn) if path in given}


def _is_partial(entry: Entry | None) -> bool:
    return entry is None or entry.mask is not None


def _pad(entry: Entry | None, shape: Entry, lanes: tuple[int, ...]) -> Entry:
    """Give a branch's record a mask: where, if anywhere, the branch made the choice."""
    if entry is None:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shape.value)
        return Entry(zeros, jnp.zeros(lanes, bool))
    mask = jnp.ones(lanes, bool) if entry.mask is None else entry.mask
    return Entry(entry.value, mask)
