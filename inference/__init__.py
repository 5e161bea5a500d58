"""Inference algorithms over weighted traces."""
