"""Reusable models with exact answers where they exist.

Each module has `chain`, one generative model whose scan is time, and the same model as the
pair `initial` and `transition`; its parameters are a class of its own. Where the states can
be integrated out, `marginal` is the exact density of the observations.
"""

from motes.models import (
    bearings_only as bearings_only,
    hidden_markov as hidden_markov,
    linear_gaussian as linear_gaussian,
    local_level as local_level,
    stochastic_volatility as stochastic_volatility,
    theta_logistic as theta_logistic,
)
from motes.models.state_space import (
    StateSpace as StateSpace,
    state_space as state_space,
)
