"""The notebook of the docs runs, its outputs are small, and it is a page of the site."""

import importlib.util
import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))


@pytest.fixture(scope="module")
def notebook():
    """`docs/notebook.py`."""
    spec = importlib.util.spec_from_file_location("notebook", DOCS / "notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kinds(outputs):
    return [sorted(output.get("data", {"text": None})) for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_shows_what_it_showed(notebook, path, tmp_path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = notebook.run(cells, tmp_path)
    assert sum(map(bool, outputs)) >= 4
    for cell, shown in zip(cells, outputs, strict=True):
        assert kinds(cell.get("outputs", [])) == kinds(shown), "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_small_and_valid(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert path.stat().st_size < 100_000
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    assert all(cell["outputs"] == [] or cell["source"] for cell in content["cells"] if cell["cell_type"] == "code")
    assert "/tmp/" not in path.read_text(encoding="utf-8")


def test_outputs_are_those_of_jupyter(notebook, tmp_path):
    def run(*sources):
        cells = [{"cell_type": "code", "source": source.splitlines(keepends=True)} for source in sources]
        return notebook.run(cells, tmp_path)

    first, second, third = run("x = 2\nprint('a')", "print('b')\nx + 1", "None")
    assert first == [{"output_type": "stream", "name": "stdout", "text": ["a\n"]}]
    assert second[0]["text"] == ["b\n"]
    assert second[1]["data"] == {"text/plain": ["3"]}
    assert third == []
    with pytest.raises(ZeroDivisionError):
        run("1 / 0")


def test_a_page_shows_text_code_and_outputs(notebook):
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {"cell_type": "code", "source": ["print(1)"], "outputs": [{"output_type": "stream", "text": ["1\n"]}]},
        {"cell_type": "code", "source": ["x"], "outputs": [{"data": {"text/html": ["<b>y</b>"], "text/plain": ["y"]}}]},
    ]
    page = notebook.as_markdown({"cells": cells})
    assert "# Title\n\n```python\nprint(1)\n```\n\n```text\n1\n" in page
    assert "<b>y</b>" in page
