"""Times two functions that do the same work, in turn, and reports ratios of medians."""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax


class Row(NamedTuple):
    """One comparison; `ratio` is ours/theirs, `ok` whether it meets its bar."""

    name: str
    rival: str
    ours: float | None
    theirs: float | None
    unit: str
    ratio: float | None
    ok: bool | None


def compare(
    name: str,
    rival: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    bar: float,
    repeats: int,
    inner: int = 1,
) -> Row:
    """Time compiled functions in alternation; `bar` is the largest good ratio."""
    for fun in (ours, theirs):
        jax.block_until_ready(fun())
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(repeats):
        pair = [("ours", ours), ("theirs", theirs)]
        for label, fun in pair if turn % 2 else pair[::-1]:
            times[label].append(_seconds(fun, inner))
    medians = {k: 1e3 * statistics.median(v) / inner for k, v in times.items()}
    ratio = medians["ours"] / medians["theirs"]
    return Row(
        name, rival, medians["ours"], medians["theirs"], "ms", ratio, ratio <= bar
    )


def compare_first_call(
    name: str,
    make_ours: Callable[[], Callable],
    make_theirs: Callable[[], Callable],
    bar: float,
    repeats: int,
) -> Row:
    """Time tracing, compiling and one run, from empty caches."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for turn in range(repeats + 1):
        for label, make in (("ours", make_ours), ("theirs", make_theirs)):
            jax.clear_caches()
            seconds = _seconds(make(), 1)
            if turn:  # the first warms up Python itself
                times[label].append(seconds)
    medians = {k: statistics.median(v) for k, v in times.items()}
    ratio = medians["ours"] / medians["theirs"]
    name = f"{name}, first call"
    return Row(
        name, "hand", medians["ours"], medians["theirs"], "s", ratio, ratio <= bar
    )


def missing(name: str, rival: str) -> Row:
    """A row that says that a rival is not installed."""
    return Row(f"{name} ({rival} is not installed)", rival, None, None, "", None, None)


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def arguments(description: str, **switches: str) -> argparse.Namespace:
    """Parse the command line; `switches` are further flags with their help."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="finish in under 50 seconds"
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    for name, meaning in switches.items():
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    return parser.parse_args()


def report(rows: list[Row], file: Path | None) -> None:
    """Print a table and write the rows."""
    print(f"{'':52}{'rival':>10}{'ours':>11}{'theirs':>11}  unit {'ratio':>7}  ok")
    for row in rows:
        if row.ratio is None:
            print(f"{row.name:52}{row.rival:>10}{'-':>11}{'-':>11}")
            continue
        verdict = "" if row.ok is None else "yes" if row.ok else "NO"
        print(
            f"{row.name:52}{row.rival:>10}{row.ours:11.3f}{row.theirs:11.3f}  "
            f"{row.unit:5}{row.ratio:7.3f}  {verdict}"
        )
    if file is not None:
        file.write_text(json.dumps([row._asdict() for row in rows], indent=1))


def _seconds(fun: Callable[[], Any], inner: int) -> float:
    start = time.perf_counter()
    for _ in range(inner):
        out = fun()
    jax.block_until_ready(out)
    return time.perf_counter() - start
