"""Notebooks of the docs: their cells run, their outputs written, and shown as pages, all without Jupyter.

`python docs/notebook.py docs/tour.ipynb` runs a notebook in an empty folder and writes its outputs into it. MkDocs
calls `on_files` (see `hooks` in mkdocs.yml), which turns each notebook into a page.
"""

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def run(cells: list[Cell], folder: Path) -> list[list[Cell]]:
    """The outputs of each cell, run one after the other in a folder as Jupyter would. An error of a cell is raised."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(folder):
        return [_outputs("".join(cell["source"]), names) if cell["cell_type"] == "code" else [] for cell in cells]


def _outputs(source: str, names: dict[str, Any]) -> list[Cell]:
    *body, last = ast.parse(source).body
    shown = last if isinstance(last, ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body if shown else [*body, last], []), "<cell>", "exec"), names)
        if shown:
            value = eval(compile(ast.Expression(shown.value), "<cell>", "eval"), names)
    found = [{"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())}] if printed.tell() else []
    if value is not None:
        data: Cell = {"text/plain": _lines(repr(value))}
        if (html := getattr(value, "_repr_html_", lambda: None)()) is not None:
            data["text/html"] = _lines(html)
        if (png := getattr(value, "_repr_png_", lambda: None)()) is not None:
            data = {"image/png": base64.b64encode(png).decode()}  # without the text, which has an address in memory
        found.append({"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data})
    return found


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def as_markdown(notebook: Cell) -> str:
    """A notebook as a page: text, code and the richest output of each cell."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/png" in data:
                parts.append(f'<img src="data:image/png;base64,{data["image/png"]}" alt="output of the cell above">')
            elif "text/html" in data:
                parts.append(f"<div>{''.join(data['text/html'])}</div>")
            else:
                parts.append(f"```text\n{''.join(data['text/plain'])}\n```")
    return "\n\n".join(parts) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """MkDocs' hook: a page for each notebook, beside the notebook itself."""
    from mkdocs.structure.files import File  # noqa: PLC0415 - only MkDocs calls this

    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = as_markdown(json.loads(Path(file.abs_src_path).read_text(encoding="utf-8")))
        files.append(File.generated(config, file.src_uri.removesuffix(".ipynb") + ".md", content=page))
    return files


def main(path: Path) -> None:
    """Run a notebook and write its outputs into it."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DLSR_CACHE"] = str(Path(folder, "cache"))
        Path(folder, "here").mkdir()
        every = run(notebook["cells"], Path(folder, "here"))
    for cell, outputs in zip(notebook["cells"], every, strict=True):
        if cell["cell_type"] == "code":
            cell["outputs"] = outputs
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
