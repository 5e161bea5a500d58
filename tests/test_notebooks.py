"""Every notebook of `examples/notebooks` executes, from its own folder, without an error.

They are marked slow: a note that fits, compares and plots takes a minute or two, most of
it compilation. What is stored with them must be whole and small enough to keep in git.
"""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
MAX_BYTES = 1_500_000


def _name(file: Path) -> str:
    return file.stem


def _environment() -> dict[str, str]:
    """Let the kernel find this checkout and keep compiled programs between runs."""
    cache = os.environ.get("JAX_CACHE", str(ROOT / ".jax_cache"))
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own parts
@pytest.mark.parametrize("file", NOTEBOOKS, ids=_name)
def test_notebook_executes(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    resources = {"metadata": {"path": str(file.parent)}}
    client = NotebookClient(notebook, timeout=300, resources=resources)
    client.execute(env=_environment())
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=_name)
def test_notebook_is_stored_executed_and_small(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert "error" not in [output.output_type for output in outputs]
    assert "stderr" not in [output.get("name") for output in outputs]
    assert file.stat().st_size < MAX_BYTES
