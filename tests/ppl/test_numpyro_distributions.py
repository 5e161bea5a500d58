"""Every NumPyro distribution is a site: alone, in a scan, under plates."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions.distribution import Distribution

from motes.ppl import model, sample, vmap

M = jnp.array([0.5, 1.5])
EYE, CHOL = jnp.eye(2), jnp.array([[1.0, 0.0], [0.3, 0.8]])
STICKS = jnp.array([0.2, 0.5, 0.3])
GRAPH = jnp.array([[0.0, 1.0], [1.0, 0.0]])
EXAMPLES = {
    "AsymmetricLaplace": lambda a: dist.AsymmetricLaplace(a, 1.0, 0.7),
    "AsymmetricLaplaceQuantile": lambda a: dist.AsymmetricLaplaceQuantile(a, 1.0, 0.3),
    "Bernoulli": lambda a: dist.Bernoulli(a / 3),
    "BernoulliLogits": lambda a: dist.BernoulliLogits(a),
    "BernoulliProbs": lambda a: dist.BernoulliProbs(a / 3),
    "Beta": lambda a: dist.Beta(a, 2.0),
    "BetaBinomial": lambda a: dist.BetaBinomial(a, 2.0, 5),
    "BetaProportion": lambda a: dist.BetaProportion(a / 3, 4.0),
    "Binomial": lambda a: dist.Binomial(5, a / 3),
    "BinomialLogits": lambda a: dist.BinomialLogits(a, 5),
    "BinomialProbs": lambda a: dist.BinomialProbs(a / 3, 5),
    "CAR": lambda a: dist.CAR(jnp.zeros(2), 0.5, a, GRAPH),
    "Categorical": lambda a: dist.Categorical(logits=a * jnp.arange(3.0)),
    "CategoricalLogits": lambda a: dist.CategoricalLogits(a * jnp.arange(3.0)),
    "CategoricalProbs": lambda a: dist.CategoricalProbs(STICKS + 0 * a),
    "Cauchy": lambda a: dist.Cauchy(a, 1.0),
    "Chi2": lambda a: dist.Chi2(a + 1),
    "Delta": lambda a: dist.Delta(a),
    "Dirichlet": lambda a: dist.Dirichlet(a * jnp.ones(3)),
    "DirichletMultinomial": lambda a: dist.DirichletMultinomial(a * jnp.ones(3), 5),
    "DiscreteUniform": lambda a: dist.DiscreteUniform(0, 4),
    "EulerMaruyama": lambda a: dist.EulerMaruyama(
        jnp.arange(3.0), lambda x, t: (-x, 0.5), dist.Normal(a, 1.0)
    ),
    "Exponential": lambda a: dist.Exponential(a),
    "Gamma": lambda a: dist.Gamma(a, 2.0),
    "GammaPoisson": lambda a: dist.GammaPoisson(a, 2.0),
    "GaussianRandomWalk": lambda a: dist.GaussianRandomWalk(a, 3),
    "GaussianStateSpace": lambda a: dist.GaussianStateSpace(
        3, 0.5 * EYE, covariance_matrix=a * EYE
    ),
    "Geometric": lambda a: dist.Geometric(a / 3),
    "GeometricLogits": lambda a: dist.GeometricLogits(a),
    "GeometricProbs": lambda a: dist.GeometricProbs(a / 3),
    "Gompertz": lambda a: dist.Gompertz(a, 1.0),
    "Gumbel": lambda a: dist.Gumbel(a, 1.0),
    "HalfCauchy": lambda a: dist.HalfCauchy(a),
    "HalfNormal": lambda a: dist.HalfNormal(a),
    "InverseGamma": lambda a: dist.InverseGamma(a + 2, 1.0),
    "Kumaraswamy": lambda a: dist.Kumaraswamy(a, 2.0),
    "Laplace": lambda a: dist.Laplace(a, 1.0),
    "LeftTruncatedDistribution": lambda a: dist.LeftTruncatedDistribution(
        dist.Normal(0.0, 1.0), a
    ),
    "Levy": lambda a: dist.Levy(a, 1.0),
    "LKJ": lambda a: dist.LKJ(2, a),
    "LKJCholesky": lambda a: dist.LKJCholesky(2, a),
    "LogNormal": lambda a: dist.LogNormal(a, 0.5),
    "LogUniform": lambda a: dist.LogUniform(a, 9.0),
    "Logistic": lambda a: dist.Logistic(a, 1.0),
    "LowRankMultivariateNormal": lambda a: dist.LowRankMultivariateNormal(
        a * jnp.ones(2), jnp.ones((2, 1)), jnp.ones(2)
    ),
    "MatrixNormal": lambda a: dist.MatrixNormal(a * EYE, CHOL, CHOL),
    "MixtureGeneral": lambda a: dist.MixtureGeneral(
        dist.Categorical(jnp.array([0.4, 0.6])),
        [dist.Normal(a, 1.0), dist.Normal(9.0, 1.0)],
    ),
    "MixtureSameFamily": lambda a: dist.MixtureSameFamily(
        dist.Categorical(jnp.array([0.4, 0.6])), dist.Normal(a * M, 1.0)
    ),
    "Multinomial": lambda a: dist.Multinomial(5, probs=STICKS + 0 * a),
    "MultinomialLogits": lambda a: dist.MultinomialLogits(a * jnp.arange(3.0), 5),
    "MultinomialProbs": lambda a: dist.MultinomialProbs(STICKS + 0 * a, 5),
    "MultivariateNormal": lambda a: dist.MultivariateNormal(a * M, scale_tril=CHOL),
    "MultivariateStudentT": lambda a: dist.MultivariateStudentT(5.0, a * M, CHOL),
    "NegativeBinomial": lambda a: dist.NegativeBinomial(4.0, a / 3),
    "NegativeBinomial2": lambda a: dist.NegativeBinomial2(a, 2.0),
    "NegativeBinomialLogits": lambda a: dist.NegativeBinomialLogits(4.0, a),
    "NegativeBinomialProbs": lambda a: dist.NegativeBinomialProbs(4.0, a / 3),
    "Normal": lambda a: dist.Normal(a, 2.0),
    "OrderedLogistic": lambda a: dist.OrderedLogistic(a, jnp.array([-1.0, 1.0])),
    "Pareto": lambda a: dist.Pareto(a, 4.0),
    "Poisson": lambda a: dist.Poisson(a),
    "ProjectedNormal": lambda a: dist.ProjectedNormal(a * M),
    "RelaxedBernoulli": lambda a: dist.RelaxedBernoulli(0.5, probs=a / 3),
    "RelaxedBernoulliLogits": lambda a: dist.RelaxedBernoulliLogits(0.5, a),
    "RightTruncatedDistribution": lambda a: dist.RightTruncatedDistribution(
        dist.Normal(0.0, 1.0), a
    ),
    "SineBivariateVonMises": lambda a: dist.SineBivariateVonMises(
        0.0, 0.0, a, 1.0, 0.2
    ),
    "SineSkewed": lambda a: dist.SineSkewed(
        dist.VonMises(0.0, a).expand([1]).to_event(1), jnp.array([0.3])
    ),
    "SoftLaplace": lambda a: dist.SoftLaplace(a, 1.0),
    "StudentT": lambda a: dist.StudentT(6.0, a, 1.0),
    "TruncatedCauchy": lambda a: dist.TruncatedCauchy(0.0, 1.0, low=-a, high=a),
    "TruncatedDistribution": lambda a: dist.TruncatedDistribution(
        dist.Normal(0.0, 1.0), -a, a
    ),
    "TruncatedNormal": lambda a: dist.TruncatedNormal(0.0, 1.0, low=-a, high=a),
    "TruncatedPolyaGamma": lambda a: dist.TruncatedPolyaGamma(),
    "TwoSidedTruncatedDistribution": lambda a: dist.TwoSidedTruncatedDistribution(
        dist.Normal(0.0, 1.0), -a, a
    ),
    "Uniform": lambda a: dist.Uniform(0.0, a),
    "Unit": lambda a: dist.Unit(a),
    "VonMises": lambda a: dist.VonMises(0.0, a),
    "Weibull": lambda a: dist.Weibull(a, 2.0),
    "Wishart": lambda a: dist.Wishart(4.0 + a, scale_tril=CHOL),
    "WishartCholesky": lambda a: dist.WishartCholesky(4.0 + a, scale_tril=CHOL),
    "ZeroInflatedDistribution": lambda a: dist.ZeroInflatedDistribution(
        dist.Poisson(a), gate=0.3
    ),
    "ZeroInflatedNegativeBinomial2": lambda a: dist.ZeroInflatedNegativeBinomial2(
        a, 2.0, gate=0.3
    ),
    "ZeroInflatedPoisson": lambda a: dist.ZeroInflatedPoisson(0.3, a),
    "ZeroSumNormal": lambda a: dist.ZeroSumNormal(a, (3,)),
    "BetaNegativeBinomial": lambda a: dist.BetaNegativeBinomial(a + 2, 2.0, 3.0),
    "CirculantNormal": lambda a: dist.CirculantNormal(
        a * jnp.ones(3), jnp.array([1.0, 0.2, 0.2])
    ),
    "Dagum": lambda a: dist.Dagum(a, 2.0, 1.0),
    "DoublyTruncatedPowerLaw": lambda a: dist.DoublyTruncatedPowerLaw(a, 1.0, 9.0),
    "HurdleGamma": lambda a: dist.HurdleGamma(0.3, a),
    "HurdleLogNormal": lambda a: dist.HurdleLogNormal(0.3, a),
    "HurdleLogits": lambda a: dist.HurdleLogits(dist.Poisson(a), 0.3),
    "HurdlePoisson": lambda a: dist.HurdlePoisson(0.3, a),
    "HurdleProbs": lambda a: dist.HurdleProbs(dist.Poisson(a), 0.3),
    "InverseWishart": lambda a: dist.InverseWishart(6.0 + a, scale_tril=CHOL),
    "InverseWishartCholesky": lambda a: dist.InverseWishartCholesky(
        6.0 + a, scale_tril=CHOL
    ),
    "LowerTruncatedPowerLaw": lambda a: dist.LowerTruncatedPowerLaw(-a - 2, 1.0),
    "ZeroInflatedLogits": lambda a: dist.ZeroInflatedLogits(dist.Poisson(a), 0.3),
    "ZeroInflatedProbs": lambda a: dist.ZeroInflatedProbs(dist.Poisson(a), 0.3),
    "Expanded": lambda a: dist.Normal(a, 1.0).expand([2]),
    "Masked": lambda a: dist.Normal(a, 1.0).mask(True),
    "Independent": lambda a: dist.Normal(a * M, 1.0).to_event(1),
    "Transformed": lambda a: dist.TransformedDistribution(
        dist.Normal(a, 1.0), dist.transforms.ExpTransform()
    ),
    "Folded": lambda a: dist.FoldedDistribution(dist.Normal(a, 1.0)),
}
# Bases and wrappers that have no meaning alone, censored likelihoods, what cannot be drawn
# from at all, and copulas, which need another package for their draws.
NOT_SITES = {
    "Distribution", "ExpandedDistribution", "ImproperUniform", "Independent",
    "MaskedDistribution", "TransformedDistribution", "FoldedDistribution",
    "MixtureDistribution", "LeftTruncatedGamma", "RightTruncatedGamma",
    "TwoSidedTruncatedGamma", "GaussianCopula", "GaussianCopulaBeta",
    "IntervalCensoredDistribution", "LeftCensoredDistribution",
    "RightCensoredDistribution",
}  # fmt: skip
LANES = jnp.array([0.6, 2.4])


def exported():
    return {
        name
        for name in dist.__all__
        if inspect.isclass(getattr(dist, name))
        and issubclass(getattr(dist, name), Distribution)
    }


def test_every_exported_distribution_is_covered():
    assert exported() - NOT_SITES <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_site_in_a_scan_and_under_plates(key, name):
    make = EXAMPLES[name]

    @model
    def f(lanes):
        sample("one", make(lanes[0]))

        def step(carry, a):
            sample("row", make(a))
            return carry, None

        jax.lax.scan(step, 0.0, lanes)
        vmap(lambda a: sample("lane", make(a)))(lanes)
        vmap(lambda a: vmap(lambda b: sample("grid", make(b + 0 * a)))(lanes))(lanes)
        vmap(lambda: sample("free", make(lanes[1])), axis_size=2)()

    with jax.numpy_rank_promotion("allow"):
        trace = f.simulate(key, LANES)

        def total(density, value):
            return jnp.sum(density.log_prob(value))

        exact = total(make(LANES[0]), trace["one"])
        for i, a in enumerate(LANES):
            exact += total(make(a), trace["row"][i]) + total(make(a), trace["lane"][i])
            exact += total(make(LANES[1]), trace["free"][i])
            exact += sum(total(make(a), trace["grid"][j, i]) for j in range(2))
        np.testing.assert_allclose(trace.log_density, exact, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(
            f.log_density(trace.choices, LANES), exact, rtol=1e-8
        )


@pytest.mark.parametrize("name", EXAMPLES)
def test_lanes_have_their_own_distribution_and_are_independent(key, name):
    make = EXAMPLES[name]

    @model
    def f(lanes):
        vmap(lambda a: sample("x", make(a)))(lanes)

    if make(LANES[0]).shape() == (0,):
        return  # a factor: it has no value
    with jax.numpy_rank_promotion("allow"):
        num = (
            2000 if name != "SineBivariateVonMises" else 200
        )  # it draws N x N proposals
        many = jnp.repeat(LANES, num)
        drawn = np.asarray(f.simulate(key, many)["x"], float).reshape(2, num, -1)
        for lane, a in enumerate(LANES):
            direct = make(a).sample(jax.random.fold_in(key, lane + 1), (num,))
            direct = np.asarray(direct, float).reshape(num, -1)
            for column in range(direct.shape[1]):
                _assert_same_distribution(drawn[lane, :, column], direct[:, column])
        _assert_uncorrelated(drawn)


def _assert_same_distribution(first, second):
    """Compare by two-sample Kolmogorov-Smirnov distance at a level of about 1e-6."""
    both = np.sort(np.concatenate([first, second]))
    first, second, both = (np.round(x, 6) for x in (first, second, both))
    cdfs = [
        np.searchsorted(np.sort(x), both, side="right") / len(x)
        for x in (first, second)
    ]
    distance = np.abs(cdfs[0] - cdfs[1]).max()
    assert distance < 2.7 * np.sqrt(2 / len(first)), f"distance {distance}"


def _assert_uncorrelated(drawn):
    ranks = np.argsort(np.argsort(drawn[..., 0], axis=1), axis=1)
    if len(np.unique(drawn[0, :, 0])) < 20:
        return  # a discrete variable with few values is checked by its distribution
    neighbors = np.corrcoef(ranks[0, :-1], ranks[0, 1:])[0, 1]
    lanes = np.corrcoef(ranks[0], ranks[1])[0, 1]
    bound = 5.4 / np.sqrt(drawn.shape[1])
    assert abs(neighbors) < bound and abs(lanes) < bound, (neighbors, lanes)
