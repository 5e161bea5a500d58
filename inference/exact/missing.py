"""Missing observations: entries that are NaN are integrated out.

`OrMissing` is the support of a density that takes them; `kalman_filter` and `hmm_filter`
say what they do with them.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints


class OrMissing(constraints.Constraint):
    """What satisfies `base`, and events that are NaN throughout."""

    def __init__(self, base: Any):
        self.base = base
        self.event_dim = base.event_dim

    def __call__(self, x: Any) -> Any:
        numeric = np if isinstance(x, np.ndarray) else jnp
        axes = tuple(range(-self.event_dim, 0))
        return self.base(x) | numeric.isnan(x).all(axes)

    def tree_flatten(self) -> Any:
        return (self.base,), (("base",), {"event_dim": self.event_dim})


biject_to.register(OrMissing, lambda support: biject_to(support.base))
