"""Models as JAX programs with traced effects."""
