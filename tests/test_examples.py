"""The examples run as a reader runs them: as programs, in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

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
