"""Steer a small language model by particle filter: constraints, a checker, two voices.

The model in `assets/small-lm` imitates Jane Austen and the King James Bible and works sums,
often wrongly. The same filter that tracks volatility in `tour.py` makes it obey; the
pictures show how the texts that obey descend from one another.
"""

import argparse
import re
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from motes.lm_bridge import TransformerLM, load_checkpoint
from motes.lm_bridge.decode import Unit, decode
from motes.lm_bridge.genealogy import genealogy_html, plot_genealogy
from motes.lm_bridge.potentials import LengthWindow, Predicate, expert, regex

LM, TOKENIZER = load_checkpoint(Path(__file__).resolve().parent / "assets/small-lm")
BYTES = tuple(TOKENIZER.token_bytes)
NEWLINES = tuple(i for i, spelled in enumerate(BYTES) if b"\n" in spelled)
ENDS = (*LM.eos_ids, *NEWLINES)
LINE = TransformerLM(LM.model, ENDS)  # its texts end with the line
SENTENCE, WITHOUT_E = r"[A-Za-z ,;:'-]+[.]", r"[A-DF-Za-df-z ,;:'-]+[.]"
OPERATIONS = {b"+": int.__add__, b"-": int.__sub__, b"*": int.__mul__}


def sentences(pattern, at_least, at_most):
    """Allow sentences of some numbers of tokens: a product of two potentials."""
    length = LengthWindow(at_least, at_most, LM.vocab_size, ENDS)
    return regex(pattern, BYTES, ENDS) * length


def constrain(key, prompt, num_plain, num_runs, max_tokens=32):
    """Ask for sentences without the letter e: by luck, and by steering."""
    plain_key, *run_keys = jax.random.split(key, num_runs + 1)
    ids = TOKENIZER.encode_prompt(prompt)
    plain = decode(plain_key, LINE, ids, num_plain, max_tokens, ess_threshold=0.0)
    texts = list(zip(plain.texts(TOKENIZER), plain.lengths, strict=True))
    print(f"{prompt!r} goes on with           plain texts    log probability")
    runs = []
    for rule, pattern, at_least in [
        ("a sentence", SENTENCE, 1),
        ("a sentence without an e", WITHOUT_E, 1),
        ("one of 12 tokens or more", WITHOUT_E, 12),
    ]:
        obey = sum(n >= at_least and bool(re.fullmatch(pattern, t)) for t, n in texts)
        allowed = sentences(pattern, at_least, max_tokens)
        runs = [decode(k, LINE, ids, 64, max_tokens, allowed) for k in run_keys]
        estimates = np.exp([float(run.log_evidence) for run in runs])
        error = estimates.std(ddof=1) / estimates.mean() / num_runs**0.5
        log_evidence = np.log(estimates.mean())
        print(f"  {rule:38}{obey:7} of {num_plain}{log_evidence:12.2f} +- {error:.2f}")
    show(runs[0])
    return runs[0]


def show(decoded, most=4):
    """Print the heaviest texts."""
    for text, weight in list(decoded.posterior(TOKENIZER).items())[:most]:
        print(f"  {weight:5.2f} {text.replace(chr(10), ' | ')}")


def is_right(line):
    """Check a line of a solution: `12 + 30 = 42`."""
    step = re.fullmatch(rb"(\d+) ([-+*]) (\d+) = (\d+)", line)
    if step is None:
        return False
    left, sign, right, value = step.groups()
    return OPERATIONS[sign](int(left), int(right)) == int(value)


def begins_right(text):
    """Check the lines that are complete."""
    return all(is_right(line) for line in text.split(b"\n")[:-1])


def solution_is_right(text):
    """Check every line, and that the answer is what the last one says."""
    last, answer = text.rpartition(b"\n")[::2]
    return begins_right(text) and answer == b"Answer: " + last.split(b" = ")[-1]


def check(key, question, num_particles=128, max_tokens=64):
    """Let a checker read each line: it knows sums, but not the question."""
    key, plain_key = jax.random.split(key)
    arguments = (LM, TOKENIZER.encode_prompt(question), num_particles, max_tokens)
    rules = (solution_is_right, BYTES, LM.vocab_size, LM.eos_ids, begins_right)
    ends = jnp.zeros(LM.vocab_size, bool).at[jnp.array(NEWLINES)].set(True)
    plain = decode(plain_key, *arguments, ess_threshold=0.0)
    steered = decode(key, *arguments, critic=Predicate(*rules), unit=Unit(24, ends))
    print(f"\n{question.strip()}\n  answers of {num_particles} texts, with weights:")
    for name, decoded in [("plain", plain), ("checked line by line", steered)]:
        votes = Counter()
        for text, weight in decoded.posterior(TOKENIZER).items():
            votes[text.split("\n")[-1].removeprefix("Answer: ")] += weight
        best = votes.most_common(4)
        print(f"  {name:22}", *(f"{answer:>6} {share:.2f}" for answer, share in best))
    print(f"  log probability of no mistake {float(steered.log_evidence):.2f}")
    show(steered, 1)


def agree(key, prompts, max_tokens=24):
    """Multiply the voices after two prompts: what would both books say?"""
    first, second = (TOKENIZER.encode_prompt(prompt) for prompt in prompts)
    both = sentences(SENTENCE, 8, max_tokens) * expert(LINE, second, power=0.5)
    print(f"\n{prompts[0]!r} and, half as loud, {prompts[1]!r} go on with")
    show(decode(key, LINE, first, 128, max_tokens, both))


def draw(file, decoded):
    """Draw the genealogy with the effective sample size above it."""
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(1, 7))
    plot_genealogy(decoded, TOKENIZER, bottom)
    top.bar(range(len(decoded.ess)), np.asarray(decoded.ess), color="0.7")
    top.set_ylabel("ESS")
    top.tick_params(axis="x", labelbottom=False, length=0)
    top.spines[["top", "right"]].set_visible(False)
    top.set_title("A sentence without the letter e, by particle filter", loc="left")
    figure.savefig(file, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plain", type=int, default=2000, help="texts drawn plainly")
    parser.add_argument("--runs", type=int, default=8, help="runs for each error bar")
    options = parser.parse_args()
    started = time.perf_counter()

    keys = jax.random.split(jax.random.key(2026), 3)
    prompt = "And the LORD said unto Moses,"
    decoded = constrain(keys[0], prompt, options.plain, options.runs)
    check(keys[1], "Question: What is 14 + 37 + 42 + 35 + 30?\n")
    agree(keys[2], ("And it came to pass, that", "Mrs. Bennet was"))

    draw("steer.png", decoded)
    Path("steer.html").write_text(genealogy_html(decoded, TOKENIZER), encoding="utf-8")
    seconds = time.perf_counter() - started
    print(f"\nwrote steer.png and steer.html, a page to explore, in {seconds:.0f} s")


if __name__ == "__main__":
    main()
