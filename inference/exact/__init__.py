"""Exact inference: Kalman, forward-backward, enumeration."""

from motes.inference.exact.enumeration import (
    Enumerated as Enumerated,
    enumerate_choices as enumerate_choices,
)
from motes.inference.exact.hidden_markov import (
    HiddenMarkov as HiddenMarkov,
    HiddenMarkovState as HiddenMarkovState,
    hmm_filter as hmm_filter,
    hmm_smoother as hmm_smoother,
    sample_posterior as sample_posterior,
    viterbi as viterbi,
)
from motes.inference.exact.kalman import (
    KalmanState as KalmanState,
    LinearGaussian as LinearGaussian,
    kalman_filter as kalman_filter,
    kalman_smoother as kalman_smoother,
)
