"""Blocks of Markdown as one web page: headings, tables, figures, commands and paragraphs with `code`."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

__all__ = ["web_page"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
       background: #fff }
h2 { margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #e4e4e4; white-space: nowrap }
th { border-bottom: 2px solid #888; white-space: normal; vertical-align: bottom; max-width: 12rem }
img { max-width: 100%; height: auto }
pre { background: #f4f4f4; padding: .6rem .8rem; overflow-x: auto }
"""


def web_page(title: str, blocks: Sequence[str]) -> str:
    """A page of these blocks; each is one heading, table, figure, command or paragraph."""
    body = "\n".join(_block(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _block(block: str) -> str:
    if heading := re.fullmatch(r"(#{1,6}) (.+)", block):
        level = len(heading[1])
        return f"<h{level}>{_text(heading[2])}</h{level}>"
    if figure := re.fullmatch(r"!\[(.*)\]\((.+)\)", block):
        return f'<p><img src="{html.escape(figure[2])}" alt="{html.escape(figure[1])}"></p>'
    if block.startswith("```"):
        return f"<pre><code>{html.escape(block.partition(chr(10))[2].removesuffix('```').rstrip())}</code></pre>"
    if block.startswith("|"):
        header, _, *rows = ([cell.strip() for cell in row.strip("|").split("|")] for row in block.splitlines())
        head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
        body = "\n".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    return f"<p>{_text(block)}</p>"


def _text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
