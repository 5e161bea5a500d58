"""Data flow between the sites of a traced model.

Every value of the jaxpr is replaced by the set of sites that it comes from, followed
through calls, plates, branches and, to a fixed point, the carries of scans. A site
inside a scan that reaches another by a carry is its parent in an earlier step.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from motes.ppl import jaxprs
from motes.ppl.errors import Path
from motes.ppl.jaxprs import Block
from motes.ppl.site_table import sites_in


class Frame(NamedTuple):
    """A plate or scan of the model; `number` tells apart those of equal size."""

    kind: str
    size: int
    number: int

    def __str__(self) -> str:
        return f"{self.kind} {self.size}"


# Where a value comes from: sites, each with the scans whose steps it was carried over.
Sources = frozenset[tuple[Path, frozenset[int]]]
_NONE: Sources = frozenset()


def site_flow(body: Block) -> "Flow":
    """Follow the sites of a model's jaxpr."""
    flow = Flow()
    flow.block(body, [_NONE] * len(body.jaxpr.invars), _NONE, ())
    return flow


@dataclass
class Flow:
    """What is known after a walk over a jaxpr.

    Attributes:
        parents: For each site, those that flow into its density or decide its branch.
        frames: For each site, the plates and scans around it, outermost first.
    """

    parents: dict[Path, Sources] = field(default_factory=dict)
    frames: dict[Path, tuple[Frame, ...]] = field(default_factory=dict)
    _known_frames: dict[int, Frame] = field(default_factory=dict)

    def block(self, body: Block, args: list, control: Sources, frames: tuple) -> list:
        """Flow through a block; `control` decides whether the block runs at all."""
        empty = body._replace(consts=[_NONE] * len(body.consts))
        env = empty.environment(args)
        for eqn in body.eqns:
            values = [_sources(jaxprs.read(env, atom)) for atom in eqn.invars]
            jaxprs.write(env, eqn, self._eqn(eqn, values, control, frames))
        return [_sources(value) for value in empty.outputs(env)]

    def _eqn(self, eqn: Any, values: list, control: Sources, frames: tuple) -> list:
        name = eqn.primitive.name
        if name in jaxprs.SITES:
            path = eqn.params["path"]
            sources = self.parents.get(path, _NONE).union(control, *values)
            self.parents[path] = sources
            self.frames[path] = frames
            return [frozenset({(path, frozenset())})] * len(eqn.outvars)
        if name in ("scan", "plate", "cond"):
            return getattr(self, f"_{name}")(eqn, values, control, frames)
        if name in jaxprs.INLINED:
            return self.block(jaxprs.called(eqn), values, control, frames)
        if name in jaxprs.CHECKPOINT:
            return self.block(jaxprs.sub_blocks(eqn)[0], values, control, frames)
        return [_NONE.union(*values)] * len(eqn.outvars)

    def _plate(self, eqn: Any, values: list, control: Sources, frames: tuple) -> list:
        inner = (*frames, self._frame(eqn, eqn.params["size"]))
        return self.block(eqn.params["body"], values, control, inner)

    def _cond(self, eqn: Any, values: list, control: Sources, frames: tuple) -> list:
        index, *operands = values
        bodies = jaxprs.branches(eqn)
        outs = [self.block(b, operands, control | index, frames) for b in bodies]
        return [index.union(*branches) for branches in zip(*outs, strict=True)]

    def _scan(self, eqn: Any, values: list, control: Sources, frames: tuple) -> list:
        loop = jaxprs.loop(eqn)
        if not jaxprs.has_sites(eqn):
            inner, inside, scan = frames, frozenset(), -1
        else:
            frame = self._frame(eqn, loop.length)
            inner, inside, scan = (
                (*frames, frame),
                frozenset(sites_in(eqn)),
                frame.number,
            )
        consts, carry, rows = loop.split_inputs(values)
        while True:
            outs = self.block(loop.body, [*consts, *carry, *rows], control, inner)
            state, _ = loop.split_outputs(outs)
            delayed = [_delay(sources, inside, scan) for sources in state]
            grown = [old | new for old, new in zip(carry, delayed, strict=True)]
            if grown == carry or loop.length <= 1:
                return [_arrive(sources, scan) for sources in outs]
            carry = grown

    def _frame(self, eqn: Any, size: int) -> Frame:
        frame = Frame(eqn.primitive.name, size, len(self._known_frames))
        return self._known_frames.setdefault(id(eqn), frame)


def _sources(value: Any) -> Sources:
    return value if isinstance(value, frozenset) else _NONE  # a literal has none


def _delay(sources: Sources, inside: frozenset, scan: int) -> Sources:
    return frozenset((p, d | {scan}) if p in inside else (p, d) for p, d in sources)


def _arrive(sources: Sources, scan: int) -> Sources:
    return frozenset((path, delays - {scan}) for path, delays in sources)
