"""Stochastic volatility of the oil price: simulate, filter, compare, smooth, plot.

Run `python examples/tour.py`; it takes under a minute on two cores and writes
`tour.png`. Data: daily WTI prices, 2013 to 2016 (U.S. Energy Information Administration).
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.stats import norm

from motes.inference.smc import (
    backward_sampling,
    derive,
    keep_history,
    run,
)
from motes.inference.smc.particles import from_log_weights
from motes.ppl import model, sample, unconstrained

HERE = Path(__file__).resolve().parent


@model
def volatility(mean, persistence, scale, num_steps):
    """Log variance x is a stationary autoregression; returns y have variance exp(x)."""
    start = sample("start", dist.Normal(mean, scale / jnp.sqrt(1 - persistence**2)))

    def step(x, _):
        x = sample("x", dist.Normal(mean + persistence * (x - mean), scale))
        sample("y", dist.Normal(0.0, jnp.exp(x / 2)))
        return x, None

    return jax.lax.scan(step, start, None, length=num_steps)[0]


@model
def parameters():
    """Prior of the three parameters, for daily returns in percent."""
    mean = sample("mean", dist.Normal(1.0, 1.0))
    persistence = sample("persistence", dist.Beta(40.0, 2.0))
    scale = sample("scale", dist.HalfNormal(0.3))
    return mean, persistence, scale


def load(file: Path) -> tuple[np.ndarray, jnp.ndarray]:
    """Return dates and daily returns in percent."""
    table = np.genfromtxt(file, delimiter=",", skip_header=1, dtype="U10,f8")
    returns = 100 * np.diff(np.log(table["f1"]))
    return table["f0"][1:].astype("M8[D]"), jnp.asarray(returns)


def log_evidence_so_far(particles):
    return particles.log_evidence


def constant_volatility(returns):
    """Cumulative log evidence of independent normal returns, by quadrature."""
    scales = jnp.linspace(0.3, 8.0, 400)
    log_prior = dist.LogNormal(0.5, 0.5).log_prob(scales)
    log_prior -= jax.nn.logsumexp(log_prior)
    log_joint = jnp.cumsum(norm.logpdf(returns[:, None], 0.0, scales[None]), axis=0)
    return jax.nn.logsumexp(log_joint + log_prior[None], axis=1)


def learn(key, returns, num_draws, num_particles, num_rounds=4):
    """Weigh parameters by unbiased evidence estimates: exact on average.

    The draws are divided into rounds: the first is from the prior, each later one from a
    wide Student t fitted to the round before. The estimates are those of the last round.
    """
    prior = unconstrained(parameters)
    num_draws = num_draws // num_rounds

    @jax.jit
    def log_joint(key, position):
        theta = prior.constrain(position)
        theta = tuple(theta[name] for name in ("mean", "persistence", "scale"))
        program = derive(volatility, {"y": returns}, *theta, returns.shape[0])
        log_evidence = run(key, program, num_particles)[0].log_evidence
        return prior.log_density(position) + log_evidence, theta

    def weigh(key, positions, log_proposal):
        rows = (jax.random.split(key, num_draws), positions)
        scores, theta = jax.lax.map(lambda row: log_joint(*row), rows)
        return from_log_weights(theta, scores - log_proposal)

    draw_key, weigh_key, *keys = jax.random.split(key, num_rounds + 1)
    draws = jax.vmap(lambda k: parameters.simulate(k).choices)(
        jax.random.split(draw_key, num_draws)
    )
    positions = jax.vmap(prior.unconstrain)(draws)
    log_proposal = jax.vmap(prior.log_density)(positions)
    posterior = weigh(weigh_key, positions, log_proposal)
    for key in keys:
        draw_key, weigh_key = jax.random.split(key)
        wide = widened(posterior, positions)
        positions = wide.sample(draw_key, (num_draws,))
        posterior = weigh(weigh_key, positions, wide.log_prob(positions))
    return posterior


def widened(posterior, positions):
    """A heavy-tailed fit to weighted positions, wider where few of them count."""
    center = posterior.mean(positions)
    apart = positions - center
    cov = posterior.mean(apart[:, :, None] * apart[:, None, :])
    floor = 0.02 * jnp.cov(positions.T) if posterior.ess < 20 else 0.0
    return dist.MultivariateStudentT(
        5.0, center, jnp.linalg.cholesky(1.2 * cov + floor)
    )


def smooth(key, theta, returns):
    """Filter at `theta`, then draw whole paths of the log variance backwards."""
    mean, persistence, scale = theta
    filter_key, smooth_key = jax.random.split(key)
    program = derive(volatility, {"y": returns}, *theta, returns.shape[0])
    _, growth = run(filter_key, program, 20_000, collect=log_evidence_so_far)
    _, history = run(filter_key, program, 1_000, collect=keep_history)
    history = history._replace(values=history.values.carry[0])

    def log_transition(x, later):
        return norm.logpdf(later, mean + persistence * (x - mean), scale)

    paths = backward_sampling(smooth_key, history, log_transition, 300)
    return growth, paths


def plot(file, dates, returns, paths, growth, baseline):
    """Draw returns with volatility bands, and the evidence over time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    low, middle, high = np.exp(np.quantile(np.asarray(paths) / 2, [0.05, 0.5, 0.95], 1))
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 6.5), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    top.bar(dates, np.asarray(returns), width=1.0, color="0.7", label="daily return, %")
    top.fill_between(
        dates, low, high, color="tab:red", alpha=0.3, lw=0, label="90% band"
    )
    top.plot(dates, middle, color="tab:red", lw=1.5, label="smoothed volatility")
    top.set_ylabel("percent a day")
    top.legend(loc="lower left", ncols=3, frameon=False)
    top.set_title("WTI crude oil: stochastic volatility by particle filter", loc="left")
    bottom.plot(dates, np.asarray(growth - baseline), color="tab:blue")
    bottom.axhline(0.0, color="0.5", lw=0.8)
    bottom.set_ylabel("log evidence\nover constant volatility")
    bottom.set_xlabel("evidence accumulates in nats, day by day")
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plot", type=Path, default=Path("tour.png"))
    parser.add_argument("--draws", type=int, default=300, help="parameter draws")
    options = parser.parse_args()
    started = time.perf_counter()

    dates, returns = load(HERE / "data" / "wti.csv")
    print(f"{len(returns)} daily returns of WTI, {dates[0]} to {dates[-1]}\n")
    print(volatility.sites(1.0, 0.97, 0.2, len(returns)), "\n")

    learn_key, smooth_key = jax.random.split(jax.random.key(2026))
    posterior = learn(learn_key, returns, options.draws, 500)
    theta = tuple(float(x) for x in posterior.mean())
    print(f"posterior of the parameters ({options.draws} draws in four rounds; the last is "
          f"worth {float(posterior.ess):.0f} of {posterior.num_particles}):")  # fmt: skip
    for name, value in zip(("mean", "persistence", "scale"), theta, strict=True):
        print(f"  {name:12} {value:.3f}")

    growth, paths = smooth(smooth_key, theta, returns)
    baseline = constant_volatility(returns)
    print("\nlog evidence, nats         stochastic (at the mean)   constant volatility")
    for moment in np.linspace(len(returns) / 5, len(returns), 5).astype(int) - 1:
        print(f"  first {moment + 1:4} days          {float(growth[moment]):24.1f}   "
              f"{float(baseline[moment]):19.1f}")  # fmt: skip
    print(f"  its parameters integrated out{float(posterior.log_evidence):20.1f}   "
          f"{float(baseline[-1]):19.1f}")  # fmt: skip
    gain = float(posterior.log_evidence - baseline[-1])
    print(f"stochastic volatility is better by {gain:.0f} nats over three years")

    plot(options.plot, dates, returns, paths, growth, baseline)
    print(f"\nwrote {options.plot} in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
