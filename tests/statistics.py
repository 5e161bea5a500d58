"""Assertions about random numbers, in units of their Monte Carlo error.

Keys are fixed, so none of them can flake; they fail for real bugs because their tolerance
is the standard error and not a number tuned by hand.
"""

import numpy as np


def assert_mean_is(exact, draws, num_sigmas=5.0, atol=1e-5):
    """Assert that the mean of independent `draws` is `exact` up to Monte Carlo error.

    The first axis of `draws` is the sample; the others are checked element by element.
    """
    draws = np.asarray(draws, float)
    std_error = draws.std(axis=0, ddof=1) / draws.shape[0] ** 0.5
    error = draws.mean(axis=0) - np.asarray(exact)
    # A deterministic estimator has standard error 0 and rounding error: hence atol.
    assert np.all(abs(error) <= num_sigmas * std_error + atol), (
        f"mean is off by {error}, with a standard error of {std_error}"
    )


def assert_log_evidence_unbiased(exact, log_estimates, num_sigmas=3.0):
    """Assert that the mean of `exp(log_estimates)` is `exp(exact)`.

    `-inf` estimates count as zero. All are divided by the largest, so nothing overflows.
    """
    log_estimates, exact = np.asarray(log_estimates, float), float(exact)
    scale = max(exact, log_estimates.max())
    ratio = np.exp(exact - scale)
    ratios = np.exp(log_estimates - scale)
    assert_mean_is(ratio, ratios, num_sigmas, atol=1e-6 * ratio)


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
