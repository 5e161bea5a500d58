"""Assertions about random numbers, in units of their Monte Carlo error."""

import numpy as np


def assert_mean_is(exact, draws, num_sigmas=5.0, atol=1e-5):
    """Assert that the mean of independent `draws` is `exact` up to Monte Carlo error."""
    draws = np.asarray(draws, float)
    std_error = draws.std(axis=0, ddof=1) / draws.shape[0] ** 0.5
    error = draws.mean(axis=0) - np.asarray(exact)
    assert np.all(abs(error) <= num_sigmas * std_error + atol), (
        f"mean is off by {error}, with a standard error of {std_error}"
    )


def assert_log_evidence_unbiased(exact, log_estimates, num_sigmas=3.0):
    """Assert that the mean of `exp(log_estimates)` is `exp(exact)`."""
    ratios = np.exp(np.asarray(log_estimates, float) - float(exact))
    assert_mean_is(1.0, ratios, num_sigmas, atol=1e-6)


def assert_counts_fit(probabilities, counts, level=1e-3):
    """Assert by a chi-square test that counts come from the probabilities."""
    from scipy.stats import chi2

    probabilities, counts = np.asarray(probabilities, float), np.asarray(counts, float)
    assert np.all(counts[probabilities == 0] == 0), "an impossible value was drawn"
    kept = probabilities > 0
    expected = counts.sum() * probabilities[kept]
    statistic = ((counts[kept] - expected) ** 2 / expected).sum()
    p_value = chi2.sf(statistic, kept.sum() - 1)
    assert p_value > level, f"chi-square p-value {p_value:.2g}: {counts} vs {expected}"
