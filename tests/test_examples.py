"""The examples run as a reader runs them: as programs, in a folder of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PNG_HEADER = b"\x89PNG\r\n\x1a\n"


def run_example(name: str, *options: str, folder: Path) -> str:
    """Run `examples/<name>` in `folder` and return what it printed."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    cache = os.environ.get("JAX_CACHE", str(ROOT / ".jax_cache"))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_COMPILATION_CACHE_DIR": cache,
    }
    command = [sys.executable, str(ROOT / "examples" / name), *options]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_tour_fits_the_oil_price_and_draws_it(tmp_path: Path) -> None:
    printed = run_example("tour.py", "--draws", "20", folder=tmp_path)
    assert "stochastic volatility is better by" in printed
    assert (tmp_path / "tour.png").read_bytes().startswith(PNG_HEADER)


@pytest.mark.slow
def test_steer_obeys_and_draws_its_genealogy(tmp_path: Path) -> None:
    printed = run_example("steer.py", "--plain", "200", "--runs", "2", folder=tmp_path)
    rows = re.findall(r"(\d+) of 200 +(-\d+\.\d\d) \+- ", printed)
    sentence, *_, longest = [(int(obey), float(log_z)) for obey, log_z in rows]
    # Plain texts obey as often as the evidence says, and the hardest rule hardly ever.
    assert abs(sentence[0] / 200 - np.exp(sentence[1])) < 0.15
    assert longest[0] <= 2 and longest[1] < -6
    steered = re.search(r"checked line by line +158 (\d\.\d\d)", printed)
    assert steered is not None and float(steered[1]) > 0.5
    assert (tmp_path / "steer.png").read_bytes().startswith(PNG_HEADER)
    assert "log evidence" in (tmp_path / "steer.html").read_text(encoding="utf-8")
