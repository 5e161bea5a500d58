"""Arguments that no filter could use are refused before any work."""

import jax
import jax.numpy as jnp
import pytest

from motes.inference.smc import (
    backward_sampling,
    bootstrap,
    fixed_lag,
    guided,
    importance_sampling,
    keep_history,
    run,
    run_blocks,
    steps,
    systematic,
)
from motes.ppl import AddressError, ShapeError, masked
from tests.hook import unhooked
from tests.oracles import AR1_Y, ar1, ar1_initial, ar1_proposal, ar1_transition

PROGRAM = bootstrap(ar1_initial, ar1_transition, {"y": AR1_Y})


@pytest.mark.parametrize("count", [10.0, "10", None, jnp.ones(2, int)])
def test_counts_must_be_integers(key, count):
    words = "must be an integer known when tracing, got"
    for call in (run, steps):
        with pytest.raises(TypeError, match=f"{call.__name__}: num_particles {words}"):
            unhooked(call)(key, PROGRAM, count)
    with pytest.raises(TypeError, match=f"num_blocks {words}"):
        unhooked(run_blocks)(key, PROGRAM, count, 3)
    with pytest.raises(TypeError, match=f"importance_sampling: num_particles {words}"):
        unhooked(importance_sampling)(key, ar1_initial, count)
    with pytest.raises(TypeError, match=f"systematic: num_draws {words}"):
        unhooked(systematic)(key, jnp.zeros(3), count)
    history = keep_history(run(key, PROGRAM, 3)[0])
    with pytest.raises(TypeError, match=f"lag {words}"):
        unhooked(fixed_lag)(history, count)
    with pytest.raises(TypeError, match=f"num_paths {words}"):
        unhooked(backward_sampling)(key, history, None, count)


def test_counts_may_not_be_traced(key):
    with pytest.raises(TypeError, match=r"known when tracing, got .*Tracer"):
        jax.jit(lambda num: unhooked(run)(key, PROGRAM, num)[0].log_evidence)(10)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((0, PROGRAM), {}, TypeError, "key must be one PRNG key, got 0. Make it by"),
        ((PROGRAM, ar1), {}, TypeError, "key must be one PRNG key, got Pair"),
        (("key", ar1), {}, TypeError, "program must .* got Model.ar1.* with derive"),
        (("key", PROGRAM), {"resample": "ssp"}, TypeError, "got 'ssp'. .* in SCHEMES"),
        (("key", PROGRAM), {"ess_threshold": jnp.nan}, ValueError, "0 and 1, got nan"),
        (("key", PROGRAM), {"ess_threshold": -0.1}, ValueError, "0 and 1, got -0.1"),
        (("key", PROGRAM), {"ess_threshold": 50}, ValueError, "0 and 1, got 50"),
        (("key", PROGRAM), {"ess_threshold": None}, TypeError, "0 and 1, got None"),
    ],
)
def test_what_no_run_could_use_is_refused(key, arguments, options, error, words):
    given, program = arguments
    given = key if given == "key" else given
    for call in (run, steps):
        with pytest.raises(error, match=f"{call.__name__}: .*{words}"):
            unhooked(call)(given, program, 5, **options)
    with pytest.raises(error, match=f"run_blocks: .*{words}"):
        unhooked(run_blocks)(given, program, 2, 5, **options)


@pytest.mark.parametrize(
    ("observations", "error", "words"),
    [
        ({"z": AR1_Y}, AddressError, "'z' must be an address of the model"),
        ({"y": AR1_Y[:, None]}, ShapeError, r"shape \(10,\), got \(10, 1\) .* 'y'"),
        ({"y": AR1_Y + 0j}, ShapeError, "dtype float64, got complex128"),
        ({"y": AR1_Y.at[4].set(jnp.nan)}, ValueError, r"got nan .* \(4,\).* masked"),
        (None, TypeError, "choices must be a dict by address, got None"),
    ],
)
def test_observations_of_pairs_are_checked_when_built(observations, error, words):
    with pytest.raises(error, match=f"bootstrap: .*{words}"):
        unhooked(bootstrap)(ar1_initial, ar1_transition, observations)
    with pytest.raises(error, match=f"guided: .*{words}"):
        unhooked(guided)(ar1_initial, ar1_transition, ar1_proposal, observations)


def test_covariates_are_a_tuple():
    with pytest.raises(
        TypeError, match="covariates must be a tuple of arrays, got flo"
    ):
        unhooked(bootstrap)(ar1_initial, ar1_transition, {"y": AR1_Y}, covariates=AR1_Y)


def test_missing_rows_are_masked(key):
    seen = jnp.arange(10) % 3 > 0
    data = {"y": masked(AR1_Y.at[0].set(jnp.nan), seen)}
    pair = run(key, bootstrap(ar1_initial, ar1_transition, data), 50)[0]
    assert jnp.isfinite(pair.log_evidence)
