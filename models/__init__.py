"""Reusable models with exact answers where they exist."""
