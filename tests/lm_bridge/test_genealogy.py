"""Genealogies: what is embedded and drawn against the history it came from."""

import json
import re
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection

from motes.lm_bridge.ancestry import ancestry
from motes.lm_bridge.decoded import Decoded, History
from motes.lm_bridge.decoding import Budget
from motes.lm_bridge.genealogy import genealogy_html, plot_genealogy
from tests.lm_bridge.tokenizers_zoo import byte_level

matplotlib.use("Agg")
STEPS, PARTICLES, UNIT = 7, 5, 2


class Page(HTMLParser):
    """The scripts and table cells of a page."""

    def __init__(self, page):
        super().__init__()
        self.scripts, self.cells, self._inside = [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        into = {"script": self.scripts, "td": self.cells}.get(tag, self._inside)
        if into is not None and tag in ("script", "td"):
            into.append("")
        self._inside = into

    def handle_endtag(self, tag):
        if tag in ("script", "tr", "tbody"):
            self._inside = None

    def handle_data(self, data):
        if self._inside:
            self._inside[-1] += data


def data_of(page):
    return json.loads(Page(page).scripts[0])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return byte_level(tmp_path_factory.mktemp("tokenizer"))


def decoded_of(history, tokens, lengths, log_evidence=-3.25):
    log_weights = history.log_weights[-1]
    budget = Budget(*jnp.array([7, 61, 70, 123456, 0]))
    done = jnp.ones(len(lengths), bool)
    evidence = jnp.asarray(log_evidence)
    return Decoded(tokens, lengths, done, log_weights, evidence, history, budget)


def random_decode(seed, num_particles=PARTICLES):
    """Return a made-up decode whose texts hold characters that are split over tokens."""
    rng = np.random.default_rng(seed)
    shape = (STEPS, num_particles)
    tokens = rng.integers(2, 258, (*shape, UNIT))
    tokens[..., 1] = np.where(rng.random(shape) < 0.3, -1, tokens[..., 1])
    ancestors = np.sort(rng.integers(0, num_particles, shape), 1)
    ancestors[0] = np.arange(num_particles)
    log_weights = rng.normal(0, 1, shape)
    log_weights -= np.log(np.exp(log_weights).mean(1, keepdims=True))
    ess = np.exp(2 * _lse(log_weights) - _lse(2 * log_weights))
    history = History(*map(jnp.asarray, (tokens, ancestors, log_weights, ess)))
    rows = [line_of(history, n) for n in range(num_particles)]
    lengths = jnp.array([len(row) for row in rows])
    padded = jnp.array([row + [1] * (STEPS * UNIT - len(row)) for row in rows])
    return decoded_of(history, padded, lengths)


def _lse(x):
    return np.log(np.exp(x).sum(1))


def line_of(history, particle, step=STEPS - 1):
    """Walk back from a particle and return its tokens: the independent answer."""
    drawn = []
    while step >= 0:
        drawn.append([int(t) for t in history.tokens[step, particle] if t >= 0])
        particle, step = int(history.ancestors[step, particle]), step - 1
    return [token for some in drawn[::-1] for token in some]


def test_page_embeds_the_history(tokenizer):
    decoded = random_decode(0)
    data, history = data_of(genealogy_html(decoded, tokenizer)), decoded.history
    assert data["numParticles"] == PARTICLES
    np.testing.assert_array_equal(data["particles"], [range(PARTICLES)] * STEPS)
    np.testing.assert_array_equal(data["parents"][1:], history.ancestors[1:])
    np.testing.assert_allclose(data["ess"], history.ess, rtol=1e-4)
    weights = np.exp(history.log_weights)
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(data["weights"], weights, rtol=1e-3)
    assert np.all(data["drew"])


def test_each_node_shows_the_text_of_its_line(tokenizer):
    decoded = random_decode(1)
    data = data_of(genealogy_html(decoded, tokenizer))
    for step in range(STEPS):
        for n in range(PARTICLES):
            spelled = tokenizer.decode_bytes(line_of(decoded.history, n, step))
            shown = data["texts"][data["text"][step][n]]
            assert shown == spelled.decode("utf-8", errors="replace")
    final = [data["texts"][i] for i in data["text"][-1]]
    assert final == decoded.texts(tokenizer)


def test_survivors_are_the_ancestors_of_the_last_step(tokenizer):
    decoded = random_decode(2)
    tree, living = ancestry(decoded, tokenizer), set(range(PARTICLES))
    for step in reversed(range(STEPS)):
        assert set(np.flatnonzero(tree.survives[step])) == living
        living = {int(decoded.history.ancestors[step, n]) for n in living}
    weightless = decoded.history.log_weights.at[-1, 1:].set(-jnp.inf)
    decoded = decoded._replace(history=decoded.history._replace(log_weights=weightless))
    assert ancestry(decoded, tokenizer).survives.sum(1).tolist() == [1] * STEPS


def test_many_particles_are_drawn_in_part_with_all_their_parents(tokenizer):
    decoded = random_decode(3, num_particles=40)
    tree, history = ancestry(decoded, tokenizer, 6), decoded.history
    assert tree.particles.shape == (STEPS, 6)
    heaviest = np.sort(np.argsort(-history.log_weights[-1])[:6])
    np.testing.assert_array_equal(tree.particles[-1], heaviest)
    for step in range(1, STEPS):
        parents = tree.particles[step - 1][tree.parents[step]]
        expected = history.ancestors[step, tree.particles[step]]
        np.testing.assert_array_equal(parents, expected)
    assert tree.texts[-1] == [decoded.texts(tokenizer)[n] for n in heaviest]
    page = genealogy_html(decoded, tokenizer, max_particles=6)
    assert "40 (6 drawn here)" in page


def test_steps_that_change_nothing_are_left_out(tokenizer):
    decoded = random_decode(4)
    tokens = decoded.history.tokens.at[4:].set(-1)
    ancestors = decoded.history.ancestors.at[5:].set(jnp.arange(PARTICLES))
    history = decoded.history._replace(tokens=tokens, ancestors=ancestors)
    decoded = decoded._replace(history=history)
    tree = ancestry(decoded, tokenizer)
    assert len(tree.particles) == 5  # step 4 draws nothing, but resamples
    assert tree.drew.any(1).tolist() == [True] * 4 + [False]
    assert len(data_of(genealogy_html(decoded, tokenizer))["ess"]) == 5


def test_markup_in_texts_stays_text(tokenizer):
    evil = "</script><script>alert(1)</script><!--<b>&amp;{{data}}"
    ids = tokenizer.encode(evil)
    tokens = jnp.asarray(ids)[:, None, None]
    still, even = jnp.zeros((len(ids), 1), int), jnp.zeros((len(ids), 1))
    history = History(tokens, still, even, jnp.ones(len(ids)))
    decoded = decoded_of(history, tokens[None, :, 0, 0], jnp.array([len(ids)]))
    page = genealogy_html(decoded, tokenizer)
    found = Page(page)
    assert len(found.scripts) == 2 and not re.search("<script>alert|<!--|<b>", page)
    data = json.loads(found.scripts[0])
    assert data["texts"][data["text"][-1][0]] == evil
    assert found.cells[1].strip() == evil


def test_page_is_one_file_that_lists_account_and_texts(tokenizer):
    decoded = random_decode(5)
    page = genealogy_html(decoded, tokenizer)
    # The one address is the name of SVG, which nothing fetches.
    assert set(re.findall(r"https?://[^\s\"]*", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<link|src=|@import|url\(", page)
    assert "-3.250 nats" in page and "123,456" in page
    listed = Page(page).cells
    for (text, weight), cells in zip(
        decoded.posterior(tokenizer).items(),
        zip(listed[::2], listed[1::2], strict=True),
        strict=True,
    ):
        assert cells[0] == f"{weight:.3f}" and cells[1].strip() == text.strip()


def test_plot_has_a_line_for_each_particle_and_step(tokenizer):
    decoded = random_decode(6)
    ax = plot_genealogy(decoded, tokenizer)
    dead, alive = [c for c in ax.collections if isinstance(c, LineCollection)]
    survives = ancestry(decoded, tokenizer).survives
    assert len(alive.get_segments()) == survives[1:].sum()
    assert len(dead.get_segments()) == (~survives[1:]).sum()
    found = {
        tuple(map(tuple, line)) for c in (dead, alive) for line in c.get_segments()
    }
    ancestors = decoded.history.ancestors
    assert found == {
        ((step - 1, int(ancestors[step, n])), (step, n))
        for step in range(1, STEPS)
        for n in range(PARTICLES)
    }
    (nodes,) = [c for c in ax.collections if isinstance(c, PathCollection)]
    assert len(nodes.get_offsets()) == STEPS * PARTICLES
    weights = np.exp(decoded.history.log_weights)
    weights /= weights.sum(1, keepdims=True)
    np.testing.assert_allclose(nodes.get_sizes(), (30 * weights).ravel().clip(0.5))
    matplotlib.pyplot.close(ax.figure)


def test_plot_marks_the_heaviest_text(tokenizer):
    decoded = random_decode(7)
    _, own = matplotlib.pyplot.subplots()
    ax = plot_genealogy(decoded, tokenizer, own)
    assert ax is own
    heaviest = next(iter(decoded.posterior(tokenizer)))
    (line,) = ax.lines
    last = int(line.get_ydata()[-1])
    assert decoded.texts(tokenizer)[last] == heaviest
    for step in range(STEPS - 1, 0, -1):
        last = int(decoded.history.ancestors[step, last])
        assert line.get_ydata()[step - 1] == last
    matplotlib.pyplot.close(own.figure)


def test_wrong_arguments_are_named(tokenizer):
    decoded = random_decode(8)
    with pytest.raises(ValueError, match="max_particles must be at least 1, got 0"):
        ancestry(decoded, tokenizer, 0)
    many = decoded._replace(history=jax.tree.map(lambda x: x[None], decoded.history))
    with pytest.raises(
        ValueError, match=r"got shape \(1, 7, 5, 2\).*decoded.of_prompt"
    ):
        genealogy_html(many, tokenizer)
    with pytest.raises(ValueError, match="history of one prompt, got none"):
        plot_genealogy(decoded._replace(history=None), tokenizer)
