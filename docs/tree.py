"""Writes docs/tree.md: every file of the packages, with the first sentence of its docstring.

python docs/tree.py
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "server": "The service: runs from the repository's root, needs no torch.",
    "training": "Models, recordings, training, evaluation: needs torch.",
    "training/models": "The twin and its parts.",
    "training/export": "From checkpoints to bundles.",
    "training/analyses": "What a trained twin says about its mice (paper, appendix A).",
    "training/studies": "The paper's studies.",
    "clients/python/v1t_client": "The published client: knows only HTTP.",
    "clients/python/v1t_client/insilico": "Experiments on a twin: the client's extra `insilico`.",
}


def first_sentence(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[a-z0-9)`])\.(?= [A-Z`]|$)", paragraph)[0].rstrip(":")


def tree() -> str:
    parts = ["# The tree\n\nA line per file, by `python docs/tree.py`: the first sentence of each file's docstring."]
    for package, what in PACKAGES.items():
        files = [path for path in sorted((ROOT / package).glob("*.py")) if path.name != "__init__.py"]
        lines = [f"| [{path.name}](../{package}/{path.name}) | {first_sentence(path)} |" for path in files]
        parts.append(f"## `{package}/`\n\n{what}\n\n| file | what lives there |\n|---|---|\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "tree.md").write_text(tree(), encoding="utf-8")
