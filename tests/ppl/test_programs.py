"""A model is traced once, sees what changes, and keeps the lanes of plates apart.

Nothing of one run may stay behind for the next: no stale program, no scope, no lane.
"""

import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from motes.ppl import factor, model, sample, scope, vmap
from tests.ppl.zoo import normal


def test_nested_plates_of_equal_sizes_keep_rows_and_columns_apart(key):
    steps = jnp.arange(3.0)

    @model
    def grid():
        def cell(row, column):
            mean = 100 * row + 10 * column + steps
            sample("x", dist.Normal(mean, 1e-3).to_event(1))
            sample("row", dist.Normal(row, 1e-3))
            sample("column", dist.Normal(column, 1e-3))

        vmap(lambda row: vmap(lambda column: cell(row, column))(steps))(steps)

    i, j, k = np.meshgrid(steps, steps, steps, indexing="ij")
    exact = {"x": 100 * i + 10 * j + k, "row": i[..., 0], "column": j[..., 0]}
    drawn = grid.simulate(key)
    lanes = jax.vmap(grid.simulate)(jax.random.split(key, 3))
    for name, mean in exact.items():
        np.testing.assert_allclose(drawn[name], mean, atol=0.01)
        np.testing.assert_allclose(lanes[name], np.stack([mean] * 3), atol=0.01)
        assert len(np.unique(drawn[name] - mean)) == mean.size
    by_hand = sum(normal(drawn[name], mean, 1e-3) for name, mean in exact.items())
    np.testing.assert_allclose(drawn.log_density, by_hand)


def test_a_branch_under_a_plate_counts_once_per_lane(key):
    @model
    def lanes(flags):
        def lane(flag, weight):
            jax.lax.cond(
                flag, lambda: factor("f", weight), lambda: factor("g", -1000 * weight)
            )

        vmap(lane)(flags, jnp.array([1.0, 10.0, 100.0]))

    for flags in itertools.product([False, True], repeat=3):
        signs = np.where(flags, 1.0, -1000.0)
        found = lanes.simulate(key, jnp.array(flags)).log_density
        np.testing.assert_allclose(found, signs @ [1.0, 10.0, 100.0])


def test_a_second_call_neither_traces_nor_compiles(key, capsys, caplog):
    @model
    def loud(x):
        print("traced")  # noqa: T201
        sample("y", dist.Normal(x, 1.0))

    def operate(x):
        trace = loud.simulate(key, x)
        loud.generate(key, {"y": x}, x)
        loud.update(key, trace, {"y": x})
        loud.regenerate(key, trace, "y")
        loud.log_density(trace.choices, x)

    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        operate(jnp.asarray(1.0))
        assert capsys.readouterr().out == "traced\n"
        assert "compil" in caplog.text.lower()
        caplog.clear()
        operate(jnp.asarray(2.0))
    assert capsys.readouterr().out == ""
    assert not caplog.records


class Settings:
    """A namespace of a model below, as users write them."""

    mean = 1.0

    @staticmethod
    def shifted():
        return Settings.mean + 1.0


@pytest.mark.parametrize("read", [lambda: Settings.mean, lambda: Settings.shifted()])
def test_changed_attributes_of_classes_are_seen(read, monkeypatch):
    @model
    def location():
        sample("x", dist.Normal(read(), 1.0))

    for mean in (1.0, 2.0):
        monkeypatch.setattr(Settings, "mean", mean)
        found = location.log_density({"x": 0.5})
        np.testing.assert_allclose(found, normal(0.5, read()))
    kept = location.program()
    assert location.program() is kept


@pytest.mark.parametrize("where", ["scan", "plate", "cond", "jit"])
def test_an_exception_deep_inside_leaves_no_scope_behind(key, where):
    def broken(x):
        with scope("inner"):
            sample("x", dist.Normal(x, 1.0))
            raise RuntimeError("broken on purpose")

    nests = {
        "scan": lambda: jax.lax.scan(lambda c, x: broken(x), 0.0, jnp.ones(2)),
        "plate": lambda: vmap(broken)(jnp.ones(2)),
        "cond": lambda: jax.lax.cond(True, broken, lambda x: x, 1.0),
        "jit": lambda: jax.jit(broken)(1.0),
    }
    outer = model(lambda: model(nests[where])(address="outer"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="on purpose"):
            outer.simulate(key)
    plain = model(lambda: sample("x", dist.Normal(0.0, 1.0)))
    assert plain.simulate(key).choices.keys() == {"x"}
