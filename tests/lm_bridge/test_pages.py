"""Pages: moving rows after resampling equals gathering them, for every ancestry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motes.lm_bridge.pages import _scatter_rows, page_sizes, settle, write

NUM = 8


def population(rng, num_resamplings):
    """Return pages, one of them of stacked layers, and rows after some resamplings."""
    pages = (rng.normal(size=(NUM, 2, 3, 4)), rng.normal(size=(2, NUM, 1, 2, 3)))
    rows = rng.permutation(NUM)
    for _ in range(num_resamplings):
        rows = rows[np.sort(rng.integers(0, NUM, NUM))]
    return jax.tree.map(jnp.asarray, pages), jnp.asarray(rows, jnp.int32)


def assert_gathered(settled, rows, before, old_rows):
    np.testing.assert_array_equal(np.sort(rows), np.arange(NUM))
    np.testing.assert_array_equal(settled[0][rows], before[0][old_rows])
    np.testing.assert_array_equal(settled[1][:, rows], before[1][:, old_rows])


@pytest.mark.parametrize("num_resamplings", [0, 1, 2, 9])
def test_settling_is_gathering(num_resamplings):
    pages, rows = population(np.random.default_rng(num_resamplings), num_resamplings)
    assert_gathered(*jax.jit(settle)(pages, rows, jnp.array(True)), pages, rows)


def test_settling_many_populations_is_settling_each():
    many = [population(np.random.default_rng(seed), seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *many)
    pages, rows = jax.jit(jax.vmap(settle))(*stacked, jnp.array([True, True, True]))
    for index, (before, old_rows) in enumerate(many):
        own = jax.tree.map(lambda leaf, i=index: leaf[i], pages)
        assert_gathered(own, rows[index], before, old_rows)


def test_nothing_moves_when_no_row_is_shared():
    pages, rows = population(np.random.default_rng(1), 1)
    settled, same = settle(pages, rows, jnp.array(False))
    np.testing.assert_array_equal(same, rows)
    jax.tree.map(np.testing.assert_array_equal, settled, pages)


def test_rows_stay_within_their_prompt():
    rows = jnp.asarray([1, 1, 1, 3, 6, 4, 4, 6], jnp.int32)
    pages, _ = population(np.random.default_rng(2), 0)
    settled, moved = settle(pages, rows, jnp.array(True))
    assert_gathered(settled, moved, pages, rows)
    assert (moved[:4] < 4).all() and (moved[4:] >= 4).all()


def test_scattering_rows_is_copying_them():
    (page, _), _ = population(np.random.default_rng(3), 0)
    moved = _scatter_rows(0, page, jnp.array([5, 2, 0]), jnp.array([1, 7, NUM]))
    expected = page.at[1].set(page[5]).at[7].set(page[2])
    np.testing.assert_array_equal(moved, expected)


def test_slots_outside_a_page_write_nothing():
    page, new = jnp.zeros((3, 1, 2, 1)), jnp.arange(1.0, 4.0).reshape(3, 1, 1)
    written = write(page, new, jnp.array([-1, 1, 2]))
    np.testing.assert_array_equal(written[:, 0, :, 0], [[0, 0], [0, 2], [0, 0]])


def test_pages_double_up_to_the_last_token():
    assert page_sizes(5) == [5]
    assert page_sizes(100) == [16, 16, 32, 36]
