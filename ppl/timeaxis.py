"""The time axis of a model: the scan in its jaxpr, and what comes before and after.

A model with one `lax.scan` of sites is a state-space model. Equations before the scan
that involve random choices belong to each particle; the others are computed once.
"""

from dataclasses import dataclass
from typing import Any

from motes.ppl import jaxprs
from motes.ppl.errors import AddressError, Path, format_paths
from motes.ppl.jaxprs import Block, Loop
from motes.ppl.model import Model
from motes.ppl.program import Program
from motes.ppl.site_table import sites_in
from motes.ppl.transforms import rebind


@dataclass(frozen=True, eq=False)
class TimeAxis:
    """A model's program, cut at its scan.

    Attributes:
        body: The whole program, calls inlined.
        shared: Equations before the scan that no random choice reaches.
        before: The other equations before the scan.
        scan: The scan equation.
        after: Equations after the scan that its sites or factors need.
        paths: Addresses inside the scan.
    """

    program: Program
    body: Block
    shared: tuple[Any, ...]
    before: tuple[Any, ...]
    scan: Any
    after: tuple[Any, ...]
    paths: tuple[Path, ...]

    @property
    def loop(self) -> Loop:
        return jaxprs.loop(self.scan)


def time_axis(model: Model, *args: Any) -> TimeAxis:
    """Find the time axis of a model.

    Raises:
        AddressError: If not exactly one top-level scan has sites, or a site after it
            depends on the rows that the scan stacked.
    """
    original = model.program(*args)
    if "time axis" not in original.memo:
        original.memo["time axis"] = _cut(original, args)
    return original.memo["time axis"]


def _cut(original: Program, args: tuple) -> TimeAxis:
    program = Program(lambda *xs: rebind(original, {}, xs), args)
    body = program.body
    eqns = list(body.eqns)
    scans = [i for i, e in enumerate(eqns) if jaxprs.is_scan(e) and jaxprs.has_sites(e)]
    if len(scans) != 1:
        raise AddressError(
            "derive: the model must have exactly one lax.scan of sites at top level, its "
            f"time axis, got {len(scans)} among sites {format_paths(program.sites)}. Use "
            "bootstrap(initial, transition, observations) instead."
        )
    cut = scans[0]
    random = _random_vars(eqns[:cut])
    shared = [e for e in eqns[:cut] if not _is_random(e, random)]
    before = [e for e in eqns[:cut] if _is_random(e, random)]
    after = _needed_by_sites(eqns[cut + 1 :])
    scan = eqns[cut]
    _check_after(after, scan)
    paths = tuple(sites_in(scan))
    return TimeAxis(
        program, body, tuple(shared), tuple(before), scan, tuple(after), paths
    )


def reads(eqns: tuple[Any, ...]) -> set[Any]:
    """Variables that equations read from outside themselves."""
    made: set[Any] = set()
    needed: set[Any] = set()
    for eqn in eqns:
        needed |= {a for a in eqn.invars if jaxprs.is_variable(a) and a not in made}
        made |= set(eqn.outvars)
    return needed


def made(eqns: tuple[Any, ...]) -> set[Any]:
    """Variables that equations define."""
    return {var for eqn in eqns for var in eqn.outvars}


def _random_vars(eqns: list[Any]) -> set[Any]:
    random: set[Any] = set()
    for eqn in eqns:
        if _is_random(eqn, random):
            random |= set(eqn.outvars)
    return random


def _is_random(eqn: Any, random: set[Any]) -> bool:
    return jaxprs.has_sites(eqn) or any(
        jaxprs.is_variable(a) and a in random for a in eqn.invars
    )


def _needed_by_sites(eqns: list[Any]) -> list[Any]:
    needed: set[Any] = set()
    kept = []
    for eqn in reversed(eqns):
        if jaxprs.has_sites(eqn) or any(var in needed for var in eqn.outvars):
            kept.append(eqn)
            needed |= {a for a in eqn.invars if jaxprs.is_variable(a)}
    return kept[::-1]


def _check_after(after: list[Any], scan: Any) -> None:
    rows = set(scan.outvars[jaxprs.loop(scan).num_carry :])
    if rows & reads(tuple(after)):
        site = next(filter(None, (jaxprs.first_site_of(eqn) for eqn in after)))
        raise AddressError(
            f"derive: a site after the scan must depend on its final carry only, got "
            f"{'/'.join(site.params['path'])!r} ({jaxprs.source(site)}), which reads the "
            "stacked rows. Carry what it needs."
        )
