"""Steered decoding of a 4.2 M-parameter Llama against llamppl, genlm-control and torch.

Run `python benchmarks/lm.py`; `--quick` takes under 50 s and leaves out what needs longer.
Texts have no letter e. All use one core; times are medians of alternating runs in one
process, in seconds of CPU and of the wall. Products are Eigen's, for both sides of each
row: with heads that are not grouped it decodes a tenth faster than YNNPACK, which XLA
takes by itself, with grouped heads slower; `XLA_FLAGS` chooses. `pip install llamppl==0.2.3
genlm-control==0.4.1` brings the rivals, and a torch, into an environment of their own;
rows say which are missing.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

EIGEN = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_REDUCE"
if "--gpu" not in sys.argv:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ.setdefault("XLA_FLAGS", EIGEN)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import lm_cache, lm_gpu  # noqa: E402
from benchmarks.harness import Row, arguments, has, missing, report  # noqa: E402
from benchmarks.lm_rivals import (  # noqa: E402
    LETTER,
    PROMPT,
    RIVALS,
    Decoder,
    write_checkpoint,
)
from motes.lm_bridge import TransformerLM, load_checkpoint  # noqa: E402
from motes.lm_bridge.decode import decode  # noqa: E402
from motes.lm_bridge.potentials.languages import regex  # noqa: E402
from motes.lm_bridge.potentials.token_weights import ban_tokens  # noqa: E402

WIDE, LONG = (128, 32), (32, 128)
# Largest good ratio of times: at least so many times as many tokens per second.
BARS = {
    ("generate", WIDE): 1 / 2,
    ("llamppl", WIDE): 1 / 13,
    ("genlm", WIDE): 1 / 8,
    ("llamppl", LONG): 1 / 28,
    ("genlm", LONG): 1 / 28,
}
QUICK = {("generate", WIDE), ("genlm", WIDE)}
KEY = jax.random.key(0)
Run = Callable[[], Any]


class Setup(NamedTuple):
    """What we decode from."""

    lm: TransformerLM
    prompt: list[int]
    no_letter: Any
    no_letter_regex: Any

    def run(self, size: tuple[int, int], potential: Any = None, **how: Any) -> Run:
        """Return a function that decodes `size` particles and tokens."""
        num_particles, num_tokens = size

        def once() -> Any:
            args = (self.lm, self.prompt, num_particles, num_tokens, potential)
            return jax.block_until_ready(decode(KEY, *args, **how))

        return once


def load(folder: Path) -> Setup:
    lm, tokenizer = load_checkpoint(folder)
    spelled = tokenizer.token_bytes
    banned = [i for i, token in enumerate(spelled) if LETTER in token]
    return Setup(
        lm,
        tokenizer.encode(PROMPT),
        ban_tokens(banned, lm.vocab_size, lm.eos_ids),
        regex(f"[^{LETTER.decode()}]*", spelled, lm.eos_ids),
    )


def clocked(run: Run) -> tuple[float, float]:
    """Return the seconds of CPU and of the wall of one run."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def compare(
    name: str, rival: str, ours: Run, theirs: Run, bar: float, repeats: int
) -> list[Row]:
    """Time two runs in turn; a row for the seconds of CPU, another for the wall's."""
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    for turn in range(repeats):
        pair = [("ours", ours), ("theirs", theirs)]
        for label, run in pair if turn % 2 else pair[::-1]:
            times[label].append(clocked(run))
    rows = []
    for clock, unit in enumerate(("cpu s", "s")):
        ours_s, theirs_s = (
            statistics.median(t[clock] for t in times[label]) for label in times
        )
        ratio = ours_s / theirs_s
        rows.append(Row(name, rival, ours_s, theirs_s, unit, ratio, ratio <= bar))
    return rows


def label(size: tuple[int, int]) -> str:
    return f"N={size[0]}, T={size[1]}"


def compile_rows(setup: Setup, sizes: list[tuple[int, int]]) -> list[Row]:
    """Time the first calls beside later ones, and count what a bucket compiles."""
    counted: list[str] = []

    def listen(event: str, duration: float, **facts: str | int) -> None:
        if (
            event.endswith("backend_compile_duration")
            and facts.get("fun_name") == "jit(_run)"
        ):
            counted.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    rows = []
    for size in sizes:
        run = setup.run(size, setup.no_letter)
        (_, first), (_, later) = clocked(run), clocked(run)
        name = f"first call beside later ones, {label(size)}"
        rows.append(Row(name, "-", first, later, "s", first / later, None))
    for num_tokens in (20, 25, 31):
        setup.run((WIDE[0], num_tokens), setup.no_letter)()
    num, most = len(counted), len(sizes)
    name = f"compiled loops, {most} sizes, {most + 3} lengths"
    return [*rows, Row(name, "-", num, most, "", num / most, num <= most)]


def rival_rows(setup: Setup, folder: Path, quick: bool) -> list[Row]:
    rows = []
    for rival, (module, make) in RIVALS.items():
        sizes = [size for name, size in BARS if name == rival]
        timed = [size for size in sizes if not quick or (rival, size) in QUICK]
        if not has(module):
            rows += [missing(f"SMC, {label(size)}", rival) for size in sizes]
            continue
        for size in set(sizes) - set(timed):
            name, empty = f"SMC, {label(size)} (not with --quick)", (None, None, "")
            rows.append(Row(name, rival, *empty, None, None))
        rows += against(setup, rival, make(folder), timed, quick) if timed else []
    return rows


def against(
    setup: Setup,
    rival: str,
    decoder: Decoder,
    sizes: list[tuple[int, int]],
    quick: bool,
) -> list[Row]:
    """Compare with one rival, after a short run of each."""
    decoder(4, 4)
    rows = []
    for size in sizes:
        ours = setup.run(size, setup.no_letter)
        ours()

        def theirs(size: tuple[int, int] = size) -> None:
            num = decoder(*size)
            assert num == size[0] * size[1], f"{num} tokens"

        bar, repeats = BARS[rival, size], 1 if quick else 3
        rows += compare(f"SMC, {label(size)}", rival, ours, theirs, bar, repeats)
    return rows


def own_rows(setup: Setup, quick: bool, repeats: int) -> list[Row]:
    """Compare decodes with each other."""
    plain = setup.run(WIDE, ess_threshold=0.0)
    steered = setup.run(WIDE, setup.no_letter)
    regular = setup.run(WIDE, setup.no_letter_regex, ess_threshold=0.0)
    name = label(WIDE)
    cases = [
        (f"SMC, {name}", "plain", steered, plain, 1.15),
        (f"regex, {name}", "plain", regular, plain, 1.1),
    ]
    if not quick:
        always = setup.run(WIDE, setup.no_letter, ess_threshold=1.0)
        cases.append((f"SMC, always resampled, {name}", "plain", always, plain, 1.15))
        long, half = (setup.run((LONG[0], n), setup.no_letter) for n in (128, 64))
        name = f"T=128 for two times T=64, N={LONG[0]}"
        cases.append((name, "linear", long, lambda: (half(), half()), 1.3))
    rows = []
    for name, rival, ours, theirs, bar in cases:
        for run in (ours, theirs):
            run()
        rows += compare(name, rival, ours, theirs, bar, repeats)
    return rows


def peak_row(setup: Setup, repeats: int) -> Row:
    """Compare the arithmetic of a decode with a large product's, by CPU time."""
    config, (num, length) = setup.lm.model.config, WIDE
    blocks = sum(leaf.size for leaf in jax.tree.leaves(setup.lm.model.blocks))
    head = config.vocab_size * config.hidden_size
    positions = len(setup.prompt) + (length + 1) / 2
    attention = 2 * config.num_layers * config.hidden_size * positions
    # The head also tells how probable it is that the last token was the last.
    flops = 2 * num * (length * (blocks + attention) + (length + 1) * head)
    side = 1024
    square = jnp.ones((side, side), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    runs = [
        (setup.run(WIDE, setup.no_letter), flops),
        (lambda: product(square).block_until_ready(), 2 * side**3),
    ]
    for run, _ in runs:
        run()
    seconds = [[clocked(run)[0] for run, _ in runs] for _ in range(repeats)]
    ours, peak = (
        work / statistics.median(column) / 1e9
        for (_, work), column in zip(runs, zip(*seconds, strict=True), strict=True)
    )
    name, share = f"share of the peak of products, {label(WIDE)}", ours / peak
    return Row(name, "peak", ours, peak, "GF/s", share, share >= 0.6)


def main() -> None:
    options = arguments((__doc__ or "").splitlines()[0], gpu="measure a large model")
    if options.gpu:
        report(lm_gpu.rows(), options.json)
        return
    quick = options.quick
    sizes, repeats = ([WIDE], 3) if quick else ([WIDE, LONG], 11)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        setup = load(Path(folder))
        rows = compile_rows(setup, sizes) + own_rows(setup, quick, repeats)
        rows += [peak_row(setup, repeats), *lm_cache.rows(repeats)]
        rows += rival_rows(setup, Path(folder), quick)
    report(rows, options.json)


if __name__ == "__main__":
    main()
