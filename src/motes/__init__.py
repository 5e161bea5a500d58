"""Probabilistic programs with programmable inference, in JAX."""
