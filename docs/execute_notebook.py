"""Execute docs/notebook.ipynb and store its outputs in it.

    .venv/bin/pip install nbclient ipykernel
    .venv/bin/python docs/execute_notebook.py

If a cell fails, nothing is written. tests/test_notebook.py checks what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("notebook.ipynb")


def joined(outputs: Sequence[Any]) -> list[Any]:
    """The outputs of a cell, with the pieces of a stream as one, and without the carriage returns of a terminal."""
    result: list[Any] = []
    for output in outputs:
        if output["output_type"] == "stream":
            output["text"] = output["text"].replace("\r\n", "\n")
            if result and result[-1].get("name") == output["name"]:
                result[-1]["text"] += output["text"]
                continue
        result.append(output)
    return result


def main() -> None:
    """Execute all cells in a new kernel, in the folder of the notebook."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=None, record_timing=False, resources=where).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
