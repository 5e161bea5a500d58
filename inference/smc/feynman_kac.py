r"""Feynman-Kac programs: what the SMC engine runs.

A program draws $x_0 \sim M_0$ and $x_t \sim M_t(x_{t-1}, \cdot)$ and weighs by
$G_t(x_{t-1}, x_t)$, for all particles at once. `run` and `steps` are the drivers.
"""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, Key


@runtime_checkable
class FeynmanKac(Protocol):
    """A sequence of weighted transitions, batched over particles; a pytree.

    Attributes:
        inputs: Pytree whose leaves have the steps as leading axis: the data of each step.
        num_steps: Number of steps after `init`.
        init_is_step: Whether `init` is the first time step (it has seen data) and is
            collected, or only what comes before the first.
    """

    @property
    def inputs(self) -> Any:
        """The data of each step."""
        ...

    @property
    def num_steps(self) -> int:
        """Number of steps after `init`."""
        ...

    @property
    def init_is_step(self) -> bool:
        """Whether `init` has seen data."""
        ...

    def init(
        self, key: Key[Array, ""], num_particles: int
    ) -> tuple[Any, Float[Array, " N"]]:
        """Draw the first states and their log-weights."""
        ...

    def step(
        self, key: Key[Array, ""], state: Any, inputs: Any
    ) -> tuple[Any, Float[Array, " N"]]:
        """Move every particle one step; return states and log-weight increments."""
        ...


@runtime_checkable
class LooksAhead(Protocol):
    """A program that scores particles by the data to come, before it resamples."""

    def look_ahead(self, state: Any, inputs: Any) -> Float[Array, " N"]:
        """Return first-stage log-weights; the engine divides them out afterwards."""
        ...


@runtime_checkable
class Finishes(Protocol):
    """A program with something to weigh after the last step."""

    def finish(self, key: Key[Array, ""], state: Any) -> Float[Array, " N"]:
        """Return the last log-weight increments."""
        ...


@runtime_checkable
class Gathers(Protocol):
    """A program whose particles share something that must not be copied."""

    def gather(self, state: Any, ancestors: Any) -> Any:
        """Return the state whose particle `n` is a copy of particle `ancestors[n]`."""
        ...


@runtime_checkable
class Ends(Protocol):
    """A program that may end before its last step; from then on nothing changes."""

    def has_ended(self, state: Any) -> Bool[Array, ""]:
        """Return whether further steps would leave every particle as it is."""
        ...
