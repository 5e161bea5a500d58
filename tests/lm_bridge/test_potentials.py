"""Potentials against Python predicates and exact enumeration."""

import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest

from motes.lm_bridge.potentials import (
    Classifier,
    LengthWindow,
    Potential,
    Predicate,
    TablePotential,
    TokenWeights,
    ban_tokens,
    check_potential,
    coerce,
    containing_words,
    expert,
    json_schema,
    language_of_regex,
    phrases,
    regex,
    stopping_at,
    without,
)
from motes.lm_bridge.potentials.languages import _whole_word
from motes.lm_bridge.tabular import enumerate_posterior, tabular_lm

FIRST = [0.5, 0.3, 0.15, 0.05]
ROWS = [[0.2, 0.4, 0.2, 0.2], [0.3, 0.1, 0.3, 0.3], [0.25] * 4]
LM = tabular_lm(FIRST, ROWS, "abc")
BYTES, EOS = LM.token_bytes, LM.eos_ids
TEXTS = ["".join(w) for n in range(5) for w in itertools.product("abc", repeat=n)]
NO_CC = without(["cc"], BYTES, EOS)
LIKES_B = TokenWeights(jnp.array([0.0, 0.7, 0.0, 0.0]), 4, EOS)


@pytest.mark.parametrize(
    ("potential", "evidence"),
    [
        (None, 0.6961003125),
        (NO_CC, 0.64578),
        (LIKES_B, 1.2967080661),
        (regex("[abc]*b", BYTES, EOS), 0.263488125),
        (NO_CC * LIKES_B, 1.2168427556),
    ],
)
def test_evidence_is_that_of_the_design(potential, evidence):
    exact = enumerate_posterior(LM, potential, 4)
    assert np.exp(exact.log_evidence) == pytest.approx(evidence, rel=1e-9)
    assert potential is not None or len(exact.texts) == 121


@pytest.mark.parametrize(
    ("potential", "accepts"),
    [
        (without(["cc", "ab"], BYTES, EOS), lambda s: "cc" not in s and "ab" not in s),
        (stopping_at(["bc", "a"], BYTES, EOS),
         lambda s: re.fullmatch("(b|c(?<!bc))*(a|(?<=b)c)", s)),
        (phrases(["abc", "ab", "c"], BYTES, EOS), lambda s: s in ("abc", "ab", "c")),
        (containing_words(["ab", "ca"], BYTES, EOS, whole=False),
         lambda s: "ab" in s and "ca" in s),
        (regex("a+b?c*", BYTES, EOS), lambda s: re.fullmatch("a+b?c*", s)),
        (ban_tokens([2], 4, EOS), lambda s: "c" not in s),
        (LengthWindow(2, 3, 4, EOS), lambda s: 2 <= len(s) <= 3),
        (NO_CC * regex("c.*", BYTES, EOS), lambda s: s[:1] == "c" and "cc" not in s),
        (Predicate(lambda t: t.count(b"a") == 2, BYTES, 4, EOS),
         lambda s: s.count("a") == 2),
    ],
)  # fmt: skip
def test_constraint_accepts_exactly_its_texts(potential, accepts):
    found = enumerate_posterior(LM, potential, 4)
    spelled = {"".join("abc"[v] for v in text) for text in found.texts}
    assert spelled == {text for text in TEXTS if accepts(text)}


@pytest.mark.parametrize(
    "pattern", ["[abc]*b", "(ab)*", "a*?b", "", "a|bc|", "(a|b){2,3}c?"]
)
def test_automaton_of_a_regex_agrees_with_python(pattern):
    language = language_of_regex(pattern)
    for text in TEXTS:
        assert language.accepts(text.encode()) == bool(re.fullmatch(pattern, text)), (
            text
        )


def test_words_have_borders():
    language = _whole_word(b"ab")
    for word in itertools.chain.from_iterable(
        itertools.product("ab -", repeat=n) for n in range(6)
    ):
        text = "".join(word)
        expected = bool(re.search(r"(?a)\bab\b", text))
        assert language.accepts(text.encode()) == expected, text


def test_characters_split_over_tokens_are_matched_by_bytes():
    # The middle of an e with acute accent, alone no UTF-8, and a token across characters.
    tokens = (b"\xc3", b"\xa9", b"x\xc3", b"\xa9y", b"\xff", b"")
    potential = regex("x?\u00e9+y?", tokens, (5,))
    assert potential.complete([0, 1]) == 0.0
    assert potential.complete([2, 1, 0, 3]) == 0.0
    assert potential.complete([0]) == potential.prefix([4]) == -np.inf
    assert potential.prefix([1]) == -np.inf
    assert without(["\u00e9"], tokens, (5,)).prefix([0, 1]) == -np.inf
    assert without(["\u00e9"], tokens, (5,)).complete([4, 0]) == 0.0


def test_nothing_is_started_that_cannot_be_finished():
    potential = regex("abc|c", BYTES, EOS)
    budgets = jnp.array([0, 1, 2, 3])
    allowed = np.isfinite(potential.log_weights(potential.init(4, 3), budgets))
    assert allowed[:, 0].tolist() == [False, False, False, True]
    assert allowed[:, 2].tolist() == [False, True, True, True]
    assert potential.min_tokens == 1


def test_product_of_tables_knows_the_distance_of_both():
    potential = regex("(aa)*", BYTES, EOS) * regex("(aaa)*b?", BYTES, EOS)
    assert isinstance(potential, TablePotential)
    started = potential.step(potential.init(1, 9), jnp.array([0]), jnp.array([True]))
    assert not np.isfinite(potential.log_weights(started, 4)).any()
    assert np.isfinite(potential.log_weights(started, 5)).any()


def test_json_schema_accepts_json():
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
    }
    tokens = (*(bytes([b]) for b in range(256)), b"")
    potential = json_schema(schema, tokens, (256,))
    assert potential.complete(list(b'{"a":12}')) == 0.0
    assert potential.prefix(list(b'{"b')) == -np.inf


@pytest.mark.parametrize(
    "potential",
    [
        NO_CC, LIKES_B, NO_CC / LIKES_B, NO_CC * LIKES_B, LengthWindow(1, 3, 4, EOS),
        expert(LM, (0,), 0.5),
        Classifier(lambda y, n: -0.3 * n + 0.1 * y.sum(1), 4, EOS, on_completion=False),
        Predicate(lambda t: b"cc" not in t, BYTES, 4, EOS, lambda t: b"cc" not in t),
        coerce(NO_CC, [[0], [1], [2], []], EOS),
    ],
)  # fmt: skip
def test_potential_obeys_the_laws(potential):
    check_potential(potential, [[0, 1, 2], [2, 2, 0], [1, 1, 1]])


def test_coerced_potential_weighs_spelled_tokens():
    outer = coerce(NO_CC * LIKES_B, [[1, 2], [2, 0], [2, 2], []], EOS)
    assert outer.complete([0, 1]) == -np.inf
    assert outer.prefix([2]) == -np.inf
    assert outer.complete([1, 0, 0]) == pytest.approx(1.4)


def test_dividing_a_twist_out_restores_the_target():
    twisted = enumerate_posterior(LM, NO_CC * LIKES_B / LIKES_B, 4)
    plain = enumerate_posterior(LM, NO_CC, 4)
    assert twisted.as_dict() == pytest.approx(plain.as_dict())


class Leaky(LengthWindow):
    """Counts the tokens of all particles together."""

    def step(self, state, tokens, active):
        return state + active.sum()


class Offset(Classifier):
    """A critic of its own that weighs the empty prefix."""

    def log_prefix(self, state):
        return super().log_prefix(state) - 1.0


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (TokenWeights(jnp.array([0.0, jnp.nan, 0.0, 0.0]), 4, EOS), "NaN"),
        (Leaky(2, 30, 4, EOS), "depend on the others"),
        # Texts are accepted whose prefixes are not.
        (
            Predicate(lambda t: True, BYTES, 4, EOS, lambda t: b"c" not in t),
            "below [+]inf",
        ),
        (Offset(lambda y, n: 0.0 * n, 4, EOS), "empty prefix must weigh one"),
    ],
)
def test_broken_law_is_named(broken: Potential, law):
    with pytest.raises(AssertionError, match=law):
        check_potential(broken, [[0, 1, 2], [1, 2, 0]])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: regex("(", BYTES, EOS), "regular expression"),
        (lambda: regex("xyz", BYTES, EOS), "some text over the vocabulary"),
        (
            lambda: regex("a", BYTES, EOS) * regex("b", BYTES, EOS),
            "product: constraint",
        ),
        (lambda: without([], BYTES, EOS), "non-empty"),
        (lambda: json_schema({"type": "foo"}, BYTES, EOS), "regular form"),
        (lambda: ban_tokens([3], 4, EOS), "end a text"),
        (lambda: LengthWindow(3, 2, 4, EOS), "min_tokens"),
        (lambda: NO_CC * LengthWindow(0, 1, 5, EOS), "share one vocabulary"),
        (lambda: tabular_lm(FIRST, [[1.0] * 4] * 3, "abc"), "sum to one"),
        (lambda: enumerate_posterior(LM, None, -1), "at least 0"),
    ],
)
def test_impossible_requests_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
