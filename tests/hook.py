"""Calls as users make them, whose arguments the import hook has not checked."""

import inspect
from typing import Any


def unhooked(function: Any) -> Any:
    """Return a function or method under the decorator of the hook."""
    if inspect.ismethod(function):
        return unhooked(function.__func__).__get__(function.__self__)
    return function.__wrapped__
