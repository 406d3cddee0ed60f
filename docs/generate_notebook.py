"""Write docs/tutorials/vary-one-detail.ipynb from the page of the same name.

python docs/generate_notebook.py        # or: make docs
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "tutorials" / "vary-one-detail.md"
CODE = re.compile(r"^```python\n(.*?)^```$\n?", re.M | re.S)


def cell(kind: str, number: int, text: str) -> dict[str, Any]:
    """Return a cell; its id is its place, so that the file changes only where the page does."""
    lines = text.strip("\n").splitlines(keepends=True)
    code = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": lines, **code}


def render() -> str:
    """Return the notebook: blocks of Python are code cells, what is between them is text."""
    parts = CODE.split(PAGE.read_text(encoding="utf-8"))
    pairs = [("code" if number % 2 else "markdown", text) for number, text in enumerate(parts) if text.strip()]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {
        "cells": [cell(kind, number, text) for number, (kind, text) in enumerate(pairs)],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.with_suffix(".ipynb").write_text(render(), encoding="utf-8")
