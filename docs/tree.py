"""Writes docs/tree.md: every folder of the packages, with the docstring of its `__init__.py`.

python docs/tree.py
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("server", "training", "clients/python/v1t_client")


def tree() -> str:
    """The page, in Markdown."""
    lines = [
        "# The tree",
        "",
        "A sentence for each folder, from its `__init__.py`; `python docs/tree.py` writes this page.",
    ]
    for package in PACKAGES:
        lines += ["", "| folder | what is in it |", "|---|---|"]
        for path in sorted((ROOT / package).rglob("__init__.py")):
            folder = path.parent.relative_to(ROOT).as_posix()
            sentence = " ".join(
                (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split()
            )
            lines.append(f"| [`{folder}/`](../{folder}) | {sentence} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "tree.md").write_text(tree(), encoding="utf-8")
