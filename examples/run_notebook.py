"""Run `steer_a_language_model.ipynb` from top to bottom and keep its outputs in it.

    python examples/run_notebook.py

Do so after every change of its code: the tests refuse a notebook whose outputs come from other code. It is run in an
empty folder, with this one's `embedded_model.py`, so that what it saves is not left here.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).with_name("steer_a_language_model.ipynb")
LOADER = NOTEBOOK.with_name("embedded_model.py")
EXECUTED = "code_executed"  # in the notebook's metadata: a digest of the code that made its outputs


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_digest(notebook: NotebookNode) -> str:
    return hashlib.sha256("\0".join(cell.source for cell in code_cells(notebook)).encode()).hexdigest()[:16]


def execute(notebook: NotebookNode, timeout: int = 3600, loader: Path = LOADER) -> None:
    """Run all cells in order, in a kernel of their own; nbclient's CellExecutionError where one fails.

    What they import as `embedded_model` is the file `loader`.
    """
    os.environ["TQDM_DISABLE"] = "1"  # a bar of one moment is no output to keep
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # nor what tqdm says where there are no widgets
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(loader, Path(folder, LOADER.name))
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(
            notebook, timeout=timeout, kernel_name="python3", record_timing=False, resources=resources
        )
        client.execute()
    notebook.metadata.language_info = {"name": "python"}  # which Python it was is no part of the page
    notebook.metadata[EXECUTED] = code_digest(notebook)


if __name__ == "__main__":
    page = nbformat.read(NOTEBOOK, as_version=4)
    execute(page)
    nbformat.write(page, NOTEBOOK)
    print(f"{NOTEBOOK.name}: {len(code_cells(page))} cells, {NOTEBOOK.stat().st_size / 1024:.0f} KB")
