"""NumPyro models as models of motes.

A latent site keeps its name and distribution; an observed one becomes the factor
log p(obs), so the log density is the one that NumPyro computes. NumPyro's `scan` and
`cond` become JAX's own, with addressed sites inside.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import _PYRO_STACK, Messenger

from motes.ppl.effects import factor, sample, scope
from motes.ppl.errors import check_functions
from motes.ppl.model import Model


def from_numpyro(fn: Callable, **kwargs: Any) -> Model:
    """Turn a NumPyro model into a model of motes.

    The log density is that of `numpyro.infer.util.log_density` for the same values, in
    the supports. A site with `obs` is a factor: it counts, and has no value among the
    choices. Without `obs` it is a choice, so a model run on `obs=None` is the joint
    model, to be conditioned with `condition` or `generate`. A scale multiplies a latent
    site's log density through a further factor `<name>_scale`; a masked latent site is
    drawn and counts nothing where it is masked. Discrete latent sites are choices and
    are not enumerated. `numpyro.param` is its initial value, `numpyro.deterministic` is
    an ordinary value. A name `a/x`, as `numpyro.handlers.scope` makes it, is the
    address `x` in the scope `a`.

    Args:
        fn: A NumPyro model, also one under `reparam`, `scale`, `mask`, `condition` or
            other handlers.
        **kwargs: Keyword arguments for `fn`, fixed; positional ones are the model's.

    Raises:
        ValueError: When run, if the model subsamples a plate, asks for a PRNG key, or
            has around a `scan` a handler with a time axis or a seed.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> def coin(flips=None):
        ...     p = numpyro.sample("p", dist.Beta(2.0, 3.0))
        ...     with numpyro.plate("n", 4):
        ...         numpyro.sample("flips", dist.Bernoulli(p), obs=flips)
        >>> from_numpyro(coin).simulate(jax.random.key(0))["flips"].shape
        (4,)
    """
    check_functions("from_numpyro", fn=fn)

    def run(*args: Any) -> Any:
        with _Sites():
            return fn(*args, **kwargs)

    for name in ("__name__", "__qualname__", "__doc__"):
        if (value := getattr(fn, name, None)) is not None:
            setattr(run, name, value)
    return Model(run)


class _Sites(Messenger):
    """The outermost handler of a NumPyro model; it answers by effects of motes."""

    def __init__(self) -> None:
        super().__init__()
        self._around_scan: list[Messenger] = []

    def process_message(self, msg: Any) -> None:
        # Handlers around the caller are not part of the model.
        msg["stop"] = True
        kind = msg["type"]
        if kind == "sample":
            for handler in self._around_scan:
                _check_around_scan(handler, msg["name"])
            _answer_sample(msg)
        elif kind == "plate" and msg["value"] is None:
            size, part = msg["args"]
            raise ValueError(
                f"from_numpyro: a plate must not be subsampled, got {part} of {size} "
                f"in plate {msg['name']!r}. Index the data before the model."
            )
        elif kind == "prng_key":
            raise ValueError(
                "from_numpyro: the model must not ask for a PRNG key, got "
                "numpyro.prng_key or a callable initial value. Pass an array instead."
            )
        elif kind == "control_flow":
            self._answer_control_flow(msg)

    def _answer_control_flow(self, msg: Any) -> None:
        around = _PYRO_STACK[_PYRO_STACK.index(self) + 1 :]
        if any(isinstance(handler, handlers.seed) for handler in around):
            raise ValueError(
                "from_numpyro: a model with control flow must not be seeded, got "
                "handlers.seed around it. Remove it; operations take the key."
            )
        if len(msg["args"]) == 4:
            msg["value"] = jax.lax.cond(*msg["args"]), PytreeTrace({})
            return
        outer, self._around_scan = self._around_scan, around
        carry, rows = jax.lax.scan(*msg["args"])
        self._around_scan = outer
        msg["value"] = (None, None, carry), (PytreeTrace({}), rows)


def _answer_sample(msg: Any) -> None:
    *scopes, address = msg["name"].split("/")
    density, scale = msg["fn"], msg["scale"]
    is_given = msg["value"] is not None
    with scope(*scopes):
        if not is_given:
            batch = (*msg["kwargs"]["sample_shape"], *density.batch_shape)
            if batch != density.batch_shape:
                density = density.expand(batch)
            msg["value"] = sample(address, density)
        if is_given or scale is not None:
            log_prob = density.log_prob(msg["value"])
            if not is_given:
                factor(f"{address}_scale", _scaled(log_prob, scale - 1.0))
            else:
                factor(address, _scaled(log_prob, 1.0 if scale is None else scale))


def _scaled(log_prob: Any, scale: Any) -> Any:
    shape = jnp.broadcast_shapes(jnp.shape(log_prob), jnp.shape(scale))
    return jnp.sum(jnp.broadcast_to(scale, shape) * jnp.broadcast_to(log_prob, shape))


def _check_around_scan(handler: Messenger, name: str) -> None:
    """Refuse what NumPyro applies along the time axis, after the scan."""
    if isinstance(handler, handlers.mask) and getattr(handler.mask, "ndim", 0):
        raise _time_axis("an array in handlers.mask", name)
    if isinstance(handler, handlers.scale) and getattr(handler.scale, "ndim", 0):
        raise _time_axis("an array in handlers.scale", name)
    if isinstance(handler, handlers.condition | handlers.substitute):
        kind = type(handler).__name__
        if handler.data is None or name in handler.data:
            raise _time_axis(f"handlers.{kind}", name)


def _time_axis(what: str, name: str) -> ValueError:
    return ValueError(
        f"from_numpyro: a handler around a scan must not act along its time axis, got "
        f"{what} at address {name!r}. Use it in the body, or condition the motes model."
    )
