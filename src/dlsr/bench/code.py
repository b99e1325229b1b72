"""A digest of the code behind a result, so that a stored result of other code is not taken for one of this."""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

import dlsr

ROOT = Path(dlsr.__file__).parent
ROOMS = tuple(f"dlsr.{room}." for room in ("baselines", "calibration", "method", "scorers", "training"))
"""Imports are followed within these rooms: what they hold decides scores."""


def code_digest(*modules: str) -> str:
    """Hex SHA-256 over the source of these modules of dlsr and, if they are in `ROOMS`, of all there that they import.

    The version of dlsr is not enough: in a checkout the code changes, and its version does not.
    """
    sources: dict[str, bytes] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        path = _file(module)
        if module in sources or path is None:
            continue
        sources[module] = path.read_bytes()
        if module.startswith(ROOMS):
            waiting += [name for name in _imports(sources[module]) if name.startswith(ROOMS)]
    digest = hashlib.sha256()
    for module in sorted(sources):
        digest.update(module.encode() + hashlib.sha256(sources[module]).digest())
    return digest.hexdigest()


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split(".")[1:])
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


def _imports(source: bytes) -> Iterable[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
