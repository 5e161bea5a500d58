"""The Kalman filter and smoother against reference numbers and dense Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.inference.exact import LinearGaussian, kalman_filter, kalman_smoother
from motes.ppl import ShapeError, condition, model, sample, unconstrained
from tests.oracles import AR1, AR1_Y


def ar1_chain(rho=0.9):
    one = jnp.ones((1, 1))
    return LinearGaussian(
        jnp.zeros(1),
        0.25 / (1 - rho**2) * one,
        rho * one,
        0.25 * one,
        one,
        0.64 * one,
        num_steps=10,
    )


def random_chain(key, num_steps, time_varying):
    keys = jax.random.split(key, 8)
    lead = (num_steps,) if time_varying else ()
    less = (num_steps - 1,) if time_varying else ()

    def cov(key, shape, size):
        root = jax.random.normal(key, (*shape, size, size))
        return root @ jnp.swapaxes(root, -1, -2) + 0.1 * jnp.eye(size).reshape(
            (1,) * len(shape) + (size, size)
        )

    return LinearGaussian(
        jax.random.normal(keys[0], (3,)),
        cov(keys[1], (), 3),
        0.7 * jax.random.normal(keys[2], (*less, 3, 3)),
        cov(keys[3], less, 3),
        jax.random.normal(keys[4], (*lead, 2, 3)),
        cov(keys[5], lead, 2),
        num_steps=num_steps,
        transition_offset=jax.random.normal(keys[6], (*less, 3)),
        observation_offset=jax.random.normal(keys[7], (*lead, 2)),
    )


def dense(chain):
    """Mean and covariance of all states and observations, by linear algebra."""
    f, b, q = chain._transitions()
    h, d, r = chain._observations()
    num, size = chain.num_steps, 3
    mean, cov = [chain.initial_mean], {(0, 0): chain.initial_cov}
    for t in range(1, num):
        mean.append(f[t - 1] @ mean[-1] + b[t - 1])
        for s in range(t):
            cov[s, t] = cov[s, t - 1] @ f[t - 1].T
            cov[t, s] = cov[s, t].T
        cov[t, t] = f[t - 1] @ cov[t - 1, t - 1] @ f[t - 1].T + q[t - 1]
    mean = jnp.concatenate(mean)
    cov = jnp.block([[cov[s, t] for t in range(num)] for s in range(num)])
    big_h = jax.scipy.linalg.block_diag(*h)
    y_mean = big_h @ mean + d.reshape(-1)
    y_cov = big_h @ cov @ big_h.T + jax.scipy.linalg.block_diag(*r)
    return mean, cov, y_mean, y_cov, cov @ big_h.T, size


def test_ar1_matches_the_reference():
    filtered = kalman_filter(ar1_chain(), AR1_Y[:, None])
    assert float(filtered.log_evidence) == pytest.approx(
        AR1["log_likelihood"], abs=1e-9
    )
    np.testing.assert_allclose(filtered.means[:, 0], AR1["filter_mean"], atol=1e-9)
    np.testing.assert_allclose(
        filtered.log_increments, AR1["loglik_increments"], atol=1e-9
    )
    smoothed = kalman_smoother(ar1_chain(), AR1_Y[:, None])
    np.testing.assert_allclose(smoothed.means[:, 0], AR1["smooth_mean"], atol=1e-9)
    np.testing.assert_allclose(smoothed.covs[5, 0], AR1["smooth_var_t5"], atol=1e-9)
    np.testing.assert_allclose(smoothed.covs[0, 0], AR1["smooth_var_t0"], atol=1e-9)


@pytest.mark.parametrize("time_varying", [False, True])
def test_filter_and_smoother_match_a_dense_gaussian(key, time_varying):
    chain = random_chain(key, 4, time_varying)
    _, values = chain.sample_path(key)
    mean, cov, y_mean, y_cov, cross, size = dense(chain)
    flat = values.reshape(-1)
    exact = jax.scipy.stats.multivariate_normal.logpdf(flat, y_mean, y_cov)
    smoothed = kalman_smoother(chain, values)
    np.testing.assert_allclose(smoothed.log_evidence, exact, rtol=1e-9)
    post = mean + cross @ jnp.linalg.solve(y_cov, flat - y_mean)
    post_cov = cov - cross @ jnp.linalg.solve(y_cov, cross.T)
    np.testing.assert_allclose(smoothed.means.reshape(-1), post, rtol=1e-7, atol=1e-9)
    blocks = [post_cov[size * t : size * (t + 1)][:, size * t : size * (t + 1)]
              for t in range(4)]  # fmt: skip
    np.testing.assert_allclose(smoothed.covs, jnp.stack(blocks), rtol=1e-7, atol=1e-9)


def test_missing_observations_are_integrated_out():
    chain = ar1_chain()
    some = AR1_Y.at[jnp.array([2, 3, 9])].set(jnp.nan)[:, None]
    states = jnp.abs(jnp.arange(10)[:, None] - jnp.arange(10)[None, :])
    cov = 0.25 / (1 - 0.81) * 0.9**states + 0.64 * jnp.eye(10)
    kept = jnp.array([0, 1, 4, 5, 6, 7, 8])
    exact = jax.scipy.stats.multivariate_normal.logpdf(
        AR1_Y[kept], jnp.zeros(7), cov[kept][:, kept]
    )
    assert float(kalman_filter(chain, some).log_evidence) == pytest.approx(float(exact))


def test_a_marginalized_chain_takes_missing_rows(key):
    @model
    def chain():
        sample("y", ar1_chain())

    some = AR1_Y.at[jnp.array([2, 9])].set(jnp.nan)[:, None]
    _, log_weight = chain.generate(key, {"y": some})
    exact = kalman_filter(ar1_chain(), some).log_evidence
    assert float(log_weight) == pytest.approx(float(exact), abs=1e-12)
    assert unconstrained(chain).unconstrain({"y": some}).shape == (10,)
    with pytest.raises(ValueError, match=r"got inf at address 'y', index \(2, 0\)"):
        chain.generate(key, {"y": some.at[2].set(jnp.inf)})


def test_single_precision_stays_close():
    with jax.enable_x64(False):
        chain = jax.tree.map(lambda x: x.astype(jnp.float32), ar1_chain())
        found = kalman_filter(chain, jnp.asarray(AR1_Y, jnp.float32)[:, None])
    assert float(found.log_evidence) == pytest.approx(AR1["log_likelihood"], abs=1e-4)


def test_marginalized_chain_is_a_site():
    @model
    def autoregression():
        rho = sample("rho", dist.Uniform(-1.0, 1.0))
        sample("y", ar1_chain(rho))

    target = unconstrained(condition(autoregression, {"y": AR1_Y[:, None]}))
    position = target.unconstrain({"rho": 0.9})
    jacobian = jnp.log(2.0) + jnp.log(0.95) + jnp.log(0.05)
    exact = AR1["log_likelihood"] - jnp.log(2.0) + jacobian
    np.testing.assert_allclose(target.log_density(position), exact, rtol=1e-9)
    assert jnp.isfinite(jax.grad(target.log_density)(position)).all()
    assert autoregression.simulate(jax.random.key(0))["y"].shape == (10, 1)


def test_number_of_observations_is_checked():
    for shape in ((3, 1), (10, 2)):
        with pytest.raises(ValueError, match="must have 10 rows of 1 columns, got"):
            kalman_filter(ar1_chain(), jnp.zeros(shape))


@pytest.mark.parametrize(
    ("part", "shape", "words"),
    [
        ("initial_mean", (3, 1), r"shape \(3,\) here, got \(3, 1\)"),
        ("initial_cov", (2, 2), r"shape \(3, 3\) here, got \(2, 2\)"),
        ("transition", (4, 3, 3), r"\(3, 3\) or \(3, 3, 3\) here, got \(4, 3, 3\)"),
        ("transition_cov", (3,), r"\(3, 3\) or \(3, 3, 3\) here, got \(3,\)"),
        ("observation", (3,), r"\(1, 3\) or \(4, 1, 3\) here, got \(3,\)"),
        ("observation_cov", (3, 3), r"\(2, 2\) or \(4, 2, 2\) here, got \(3, 3\)"),
        ("transition_offset", (), r"\(3,\) or \(3, 3\) here, got \(\)"),
        ("observation_offset", (3, 2), r"\(2,\) or \(4, 2\) here, got \(3, 2\)"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(key, part, shape, words):
    whole = vars(random_chain(key, 4, time_varying=False))
    # Without its types the class can be made of what the import hook would refuse.
    untyped = type("LinearGaussian", (LinearGaussian,), {"__annotations__": {}})
    untyped(**whole)
    with pytest.raises(ShapeError, match=f"LinearGaussian: {part} must have .*{words}"):
        untyped(**whole | {part: jnp.zeros(shape)})
    holes = jnp.full(whole[part].shape, jnp.nan)
    with pytest.raises(ValueError, match=f"LinearGaussian: {part} must not be NaN"):
        untyped(**whole | {part: holes})
