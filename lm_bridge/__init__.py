"""Language models as state-space models."""
