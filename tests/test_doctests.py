"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import motes

MODULES = [m.name for m in pkgutil.walk_packages(motes.__path__, "motes.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0, f"{result.failed} of {result.attempted} failed in {name}"


def test_some_docstrings_have_examples():
    finder = doctest.DocTestFinder()
    modules = map(importlib.import_module, MODULES)
    examples = [x for m in modules for test in finder.find(m) for x in test.examples]
    assert len(examples) >= 5
