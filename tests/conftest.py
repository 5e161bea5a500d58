"""Settings that every test runs under.

Double precision is on, shapes are never promoted in rank without a word, and every test
gets a key of its own. Warnings are errors and shapes are checked at run time: see
`[tool.pytest.ini_options]` in pyproject.toml.
"""

import os
import zlib
from pathlib import Path

# Most of the time goes into compiling many small programs: leave LLVM's part out.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax  # noqa: E402
import pytest  # noqa: E402

# `JAX_CACHE` names another folder for compiled programs, for example one kept by CI.
_CACHE = Path(__file__).resolve().parents[1] / ".jax_cache"

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_CACHE", str(_CACHE)))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> jax.Array:
    """A key of the test's own, the same on every run."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True, scope="module")
def few_programs_in_memory():
    """Each compiled program maps memory, of which a process has a limited number."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def users_lines_in_errors():
    """The hook that checks types wraps every function; errors should not point at it."""
    import jaxtyping

    from motes.ppl.jaxprs import hide_frames

    hide_frames(str(Path(jaxtyping.__file__).parent))
