"""The table of sites: shapes, supports and parents read off the jaxpr."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from motes.ppl import AddressError, factor, model, sample, scope, vmap
from motes.ppl.structure import density_name, format_support

normal = dist.Normal


def parents(made, *args):
    return {address: row.parents for address, row in made.sites(*args).items()}


@model
def straight():
    a = sample("a", normal(0.0, 1.0))
    b = sample("b", normal(a, 1.0))
    c = sample("c", normal(jnp.zeros_like(a), 1.0))
    sample("d", normal(b, jnp.exp(c)))
    factor("e", a * b)


def test_parents_are_the_direct_ones():
    assert parents(straight) == {
        "a": (),
        "b": ("a",),
        "c": (),
        "d": ("b", "c"),
        "e": ("a", "b"),
    }


def test_rows_say_kind_shape_and_support():
    @model
    def f(x):
        with scope("arm"):
            scale = sample("scale", dist.HalfNormal(x.sum()))
        sample("low", dist.Uniform(0.0, scale).expand([2]))
        sample("k", dist.Poisson(x).to_event(1))
        factor("w", scale)

    table = f.sites(jax.ShapeDtypeStruct((3,), jnp.float32))
    assert list(table) == ["arm/scale", "low", "k", "w"]
    row = table["low"]
    assert (row.kind, row.density, row.shape) == ("sample", "Uniform", (2,))
    assert format_support(row.support) == "interval (0, ?)"
    assert row.parents == ("arm/scale",)
    k = table["k"]
    assert (k.density, k.shape, k.dtype) == ("Poisson", (3,), str(jnp.arange(1).dtype))
    assert (table["w"].kind, table["w"].dtype) == ("factor", "")


def chain(use_init):
    @model
    def f(num_steps):
        x0 = sample("x0", normal(0.0, 1.0))
        scale = sample("scale", dist.HalfNormal(1.0))

        def step(carry, _):
            x, level = carry
            x = sample("x", normal(x, scale))
            y = sample("y", normal(x + level, 1.0))
            return (x, 1.0 * level), y  # an invariant carry JAX would hoist

        carry = (x0, x0 if use_init else 0.0)
        (last, _), ys = jax.lax.scan(step, carry, None, length=num_steps)
        sample("end", normal(last, 1.0))
        sample("sum", normal(ys.sum(), 1.0))

    return f


def test_a_carried_site_is_its_own_parent_in_an_earlier_step():
    table = chain(use_init=False).sites(4)
    assert table["x"].current == ("x0", "scale")
    assert table["x"].previous == ("x",)
    assert table["x"].parents == ("x0", "scale", "x")
    assert table["y"].parents == ("x",)


def test_a_constant_carry_stays_what_it_was():
    table = chain(use_init=True).sites(4)
    assert table["y"].current == ("x0", "x") and table["y"].previous == ()


def test_a_scan_of_one_step_has_no_earlier_step():
    assert chain(use_init=False).sites(1)["x"].previous == ()


def test_sites_after_a_scan_depend_on_its_sites():
    table = chain(use_init=False).sites(4)
    assert table["end"].parents == ("x",) and table["sum"].parents == ("y",)


def test_influence_crosses_several_steps():
    @model
    def f():
        def step(carry, _):
            a, b, c = carry
            new = sample("z", normal(c, 1.0))
            return (new, a, b), None

        start = sample("start", normal(0.0, 1.0))
        last, _ = jax.lax.scan(step, (0.0, 0.0, start), None, length=5)
        sample("end", normal(last[2], 1.0))

    table = f.sites()
    assert (table["z"].current, table["z"].previous) == (("start",), ("z",))
    assert table["end"].previous == ()


def test_independent_carries_stay_apart():
    @model
    def f():
        def step(carry, _):
            a, b = carry
            a = sample("a", normal(a, 1.0))
            b = sample("b", normal(b, 1.0))
            return (a, b), None

        jax.lax.scan(step, (0.0, 0.0), None, length=5)

    assert parents(f) == {"a": ("a",), "b": ("b",)}


def test_an_outer_step_is_told_from_an_inner_one():
    @model
    def f():
        def outer(x, _):
            u = sample("u", normal(x, 1.0))

            def inner(z, _):
                return sample("z", normal(z + x, 1.0)), None

            return jax.lax.scan(inner, u, None, length=3)[0], None

        jax.lax.scan(outer, 0.0, None, length=2)

    table = f.sites()
    assert (table["u"].current, table["u"].previous) == ((), ("z",))
    assert (table["z"].current, table["z"].previous) == (("u",), ("z",))
    assert [frame.size for frame in table["z"].frames] == [2, 3]


def test_a_predicate_is_a_parent_of_what_its_branches_make():
    @model
    def f():
        p = sample("p", normal(0.0, 1.0))
        m = sample("m", normal(0.0, 1.0))
        n = sample("n", normal(0.0, 1.0))
        out = jax.lax.cond(
            p > 0,
            lambda: sample("z", normal(m, 1.0)),
            lambda: n + sample("only", normal(0.0, 1.0)),
        )
        sample("y", normal(out, 1.0))

    table = f.sites()
    assert table["z"].parents == ("p", "m") and table["only"].parents == ("p",)
    assert set(table["y"].parents) == {"p", "n", "z", "only"}
    assert table["only"].conditional and not table["y"].conditional


def with_own_jvp(f):
    wrapped = jax.custom_jvp(f)
    wrapped.defjvp(lambda primals, tangents: jax.jvp(f, primals, tangents))
    return wrapped


def with_own_vjp(f):
    wrapped = jax.custom_vjp(f)
    wrapped.defvjp(lambda x, y: (f(x, y), None), lambda _, dots: dots)
    return wrapped


@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        jax.checkpoint,
        with_own_jvp,
        with_own_vjp,
        lambda f: lambda x, y: vmap(f, in_axes=(None, 0))(x, y[None]),
        lambda f: lambda x, y: jax.lax.map(lambda y: f(x, y), y[None]),
    ],
    ids=["jit", "checkpoint", "custom_jvp", "custom_vjp", "plate", "map"],
)
def test_flow_through_calls_keeps_arguments_apart(wrap):
    @model
    def f():
        def called(a, b):
            return sample("c", normal(a, 1.0)), b

        a = sample("a", normal(0.0, 1.0))
        b = sample("b", normal(0.0, 1.0))
        c, b = wrap(called)(a, b)
        sample("d", normal(jnp.sum(b), 1.0))
        sample("e", normal(jnp.sum(c), 1.0))

    made = parents(f)
    assert (made["c"], made["d"], made["e"]) == (("a",), ("b",), ("c",))


def test_plates_of_one_size_are_told_apart():
    @model
    def f():
        vmap(lambda: sample("a", normal(0.0, 1.0)), axis_size=3)()
        vmap(lambda: sample("b", normal(0.0, 1.0)), axis_size=3)()

    table = f.sites()
    (first,), (second,) = table["a"].frames, table["b"].frames
    assert str(first) == str(second) == "plate 3" and first != second


def test_parents_are_what_changes_the_density(key):
    """A site is a parent exactly if the density's derivative in it is not zero."""
    made = chain(use_init=True)
    trace = made.simulate(key, 3)
    table = made.sites(3)
    mixed = jax.hessian(lambda c: made.log_density(c, 3))(trace.choices)
    for child in ("y", "end", "sum"):
        for other in ("x0", "scale"):
            linked = bool(jnp.any(mixed[child][other] != 0))
            assert linked == (other in table[child].parents)


def test_table_reads_as_text_and_html():
    table = chain(use_init=False).sites(4)
    lines = repr(table).splitlines()
    assert len(lines) == len(table) + 1
    x = next(line for line in lines if line.startswith("x "))
    assert "scan 4" in x and x.endswith("x0, scale, x[t-1]")
    page = table._repr_html_()
    assert page.count("<tr>") == len(table) + 1 and "<td>scan 4</td>" in page


def test_names_drop_wrappers_that_only_change_the_batch():
    density = dist.Bernoulli(0.5).expand([3]).mask(True).to_event(1)
    assert density_name(density) == "Bernoulli"


def test_unknown_address_is_refused_with_the_nearest_name():
    with pytest.raises(AddressError, match="Did you mean 'scale'"):
        chain(use_init=False).sites(4)["scales"]
