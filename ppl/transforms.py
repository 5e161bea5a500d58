"""Models made from models: interventions and posterior targets.

`do` cuts sites off from their densities; `condition` fixes choices and leaves the others
to inference. Both run the model's jaxpr again, so they see through scans and plates.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float, Key

from motes.ppl.choices import Entry, read_entries
from motes.ppl.effects import factor, sample, scope
from motes.ppl.errors import Path, describe, format_path
from motes.ppl.interpreter import Answer, Interpreter, Tally, tally
from motes.ppl.model import Model
from motes.ppl.nesting import Choices, check_choices, join
from motes.ppl.plates import vmap
from motes.ppl.program import traced_leaves
from motes.ppl.trace import Trace


@dataclass(frozen=True)
class Rebind:
    """Make the same effects again, except where a value is given."""

    def site(self, path: Path, key: Any, density: Any, given: Entry | None) -> Answer:
        if given is not None:
            return Answer(given.value, None, tally())
        with scope(*path[:-1]):
            return Answer(sample(path[-1], density), None, tally())

    def factor(self, path: Path, log_weight: Any) -> Tally:
        with scope(*path[:-1]):
            factor(path[-1], log_weight)
        return tally()


def do(model: Model, values: Choices) -> Model:
    """Intervene: sites in `values` take these values and are no longer random.

    The result is a model without these addresses (Pearl's do-operator): what depends on
    them is changed, what they depended on is not. A value may lie outside the support of
    its site, whose density is not evaluated: a dose of zero, where doses are positive.

    Raises:
        AddressError: When run, if an address is not one of the model.
        ShapeError: When run, if a value has another shape or kind of dtype than its site.
        ValueError: When run, if a value is masked.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"do: model must be a model, got {describe(model)}. Intervene on the model, "
            "then condition the result."
        )
    check_choices("do", values)

    def intervened(*args: Any) -> Any:
        program = model.program(*args)
        entries = read_entries("do", values, program.sites, any_value=True)
        for path, entry in entries.items():
            if entry.mask is not None:
                raise ValueError(
                    f"do: values must not be masked, got a mask at address "
                    f"{format_path(path)!r}. Split the site in two."
                )
        return rebind(program, entries, args)

    intervened.__name__ = f"do_{getattr(model, '__name__', 'model')}"
    return Model(intervened)


def rebind(program: Any, entries: dict[Path, Entry], args: tuple) -> Any:
    """Make a program's effects in the model that is being traced, calls inlined."""
    interpreter = Interpreter(Rebind(), lanes=_structured)
    leaves = traced_leaves(args)
    outs, _ = interpreter.run(program.body, leaves, None, entries)
    return program.unflatten(outs)


def _structured(fun: Callable, in_axes: Any, size: int) -> Callable:
    return vmap(fun, in_axes, size)


@dataclass(frozen=True)
class Conditioned:
    """A model with some choices fixed: the unnormalized posterior of the others.

    Attributes:
        model: The joint model.
        constraints: The choices that are fixed.
    """

    model: Model
    constraints: Choices

    def log_density(
        self, choices: Choices, *args: Any, key: Key[Array, ""] | None = None
    ) -> Float[Array, ""]:
        """Return the log joint density of `choices` and the constraints, in nats.

        Raises:
            AddressError: If `choices` has an address that is conditioned on.
        """
        joined = join("log_density", choices, self.constraints)
        return self.model.log_density(joined, *args, key=key)

    def generate(
        self, key: Key[Array, ""], constraints: Choices, *args: Any
    ) -> tuple[Trace, Float[Array, ""]]:
        """Generate from the model under its own and further constraints.

        Raises:
            AddressError: If `constraints` has an address that is conditioned on.
        """
        joined = join("generate", constraints, self.constraints)
        return self.model.generate(key, joined, *args)


def condition(model: Model | Conditioned, constraints: Choices) -> Conditioned:
    """Fix choices of a model; the result is the target of inference for the others.

    Raises:
        AddressError: If an address is conditioned on already; when evaluated, if it is not
            one of the model.
    """
    target = as_target("condition", model)
    joined = join("condition", constraints, target.constraints)
    return Conditioned(target.model, joined)


def as_target(call: str, target: Any) -> Conditioned:
    """Return a model, or a conditioned one, as a target of inference."""
    if isinstance(target, Conditioned):
        return target
    if isinstance(target, Model):
        return Conditioned(target, {})
    raise TypeError(
        f"{call}: target must be a model or condition(model, constraints), got "
        f"{describe(target)}."
    )


jax.tree_util.register_dataclass(
    Conditioned, data_fields=["constraints"], meta_fields=["model"]
)
