"""Directives that write reference pages from the code: `cli-help` and `http-routes`; and links to files of the checkout.

    ```{cli-help} python -m training
    ```

shows the help of a command and of each of its verbs. `http-routes` shows the OpenAPI document: each route with its
parameters, the fields of its body and reply, and its statuses.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

__all__ = ["setup"]

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 110  # characters of a line of help
LINK = re.compile(r"\[(?P<text>[^\]\n]*)\]\((?P<target>\.\./[^)#\s]+)(?:#[\w-]*)?\)")

# command -> (module with `main`, its verbs, by a function that is called after the import)
COMMANDS: dict[str, tuple[str, Callable[[Any], list[str]]]] = {
    "v1t": ("v1t_client._cli.command", lambda module: _verbs(module._parser())),
    "python -m training": ("training.__main__", lambda module: list(module.VERBS)),
}


def _verbs(parser: Any) -> list[str]:
    (action,) = (action for action in parser._actions if hasattr(action, "choices") and isinstance(action.choices, dict))
    return list(action.choices)


def help_of(main: Callable[[list[str]], Any], arguments: list[str]) -> str:
    """What the command prints with these arguments."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": str(WIDTH), "NO_COLOR": "1"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        main(arguments)
    return printed.getvalue().rstrip()


class CommandHelp(Directive):
    """`cli-help COMMAND`."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        name, verbs_of = COMMANDS[self.arguments[0]]
        module = importlib.import_module(name)
        made: list[nodes.Node] = [_block(help_of(module.main, ["--help"]))]
        for verb in verbs_of(module):
            section = nodes.section(ids=[nodes.make_id(f"{self.arguments[0]} {verb}")])
            section += nodes.title("", "", nodes.literal("", f"{self.arguments[0]} {verb}"))
            section += _block(help_of(module.main, [verb, "--help"]))
            made.append(section)
        return made


def _block(text: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language="text")


class Routes(Directive):
    """`http-routes`."""

    def run(self) -> list[nodes.Node]:
        from server.api.openapi import document

        opened = document()
        schemas = opened["components"]["schemas"]
        made: list[nodes.Node] = []
        for path, operations in opened["paths"].items():
            for method, operation in operations.items():
                made.append(_route(f"{method.upper()} {path}", operation, schemas))
        types = nodes.section(ids=["types"])
        types += nodes.title("", "Types")
        for name, schema in schemas.items():
            section = nodes.section(ids=[f"type-{name.lower()}"], names=[])
            section += nodes.title("", "", nodes.literal("", name))
            section += _paragraph(schema.get("description", ""))
            section += _fields(schema)
            types += section
        return [*made, types]


def _route(name: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> nodes.section:
    section = nodes.section(ids=[nodes.make_id(name)])
    section += nodes.title("", "", nodes.literal("", name))
    section += _paragraph(operation["summary"] + ".")
    rows = [
        (one["name"], f"{one['in']}, {_type(one['schema'])}", one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    if rows:
        section += _table(("parameter", "type", "what"), rows)
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        section += _paragraph("Body, ", nodes.literal("", kind), ": ", *_types(body["schema"]), ".")
    replies = [
        (status, ", ".join(reply.get("content", ())), _schemas(reply), reply["description"])
        for status, reply in operation["responses"].items()
    ]
    section += _table(("status", "content type", "type", "what"), replies)
    return section


def _schemas(reply: Mapping[str, Any]) -> list[nodes.Node]:
    found: list[nodes.Node] = []
    for body in reply.get("content", {}).values():
        found += [nodes.Text(", ")] * bool(found) + _types(body.get("schema", {}))
    return found


def _types(schema: Mapping[str, Any]) -> list[nodes.Node]:
    """The names of the types of a body, each linked to its section."""
    parts = schema.get("anyOf") or schema.get("oneOf") or [schema]
    found: list[nodes.Node] = []
    for part in parts:
        found += [nodes.Text(" or ")] * bool(found)
        if "$ref" in part:
            name = part["$ref"].rpartition("/")[2]
            found.append(nodes.reference("", "", nodes.literal("", name), internal=True, refid=f"type-{name.lower()}"))
        else:
            found.append(nodes.Text(_type(part)))
    return found


def _type(schema: Mapping[str, Any]) -> str:
    """`array of integer`, `"fit" or "fill"`, `PredictRequest`, as words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "enum" in schema or "const" in schema:
        return " or ".join(f'"{value}"' for value in schema.get("enum", [schema.get("const")]))
    if parts := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(part) for part in parts))
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"array of {_type(items)}" if items else "array"
    return "bytes" if schema.get("format") == "binary" else str(schema.get("type", "any"))


def _fields(schema: Mapping[str, Any]) -> list[nodes.Node]:
    required = set(schema.get("required", ()))
    rows = [
        (name, _type(field), "" if name in required else repr(field.get("default")), field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]
    return [_table(("field", "type", "default", "what"), rows)] if rows else []


def _paragraph(*parts: str | nodes.Node) -> nodes.paragraph:
    made = nodes.paragraph()
    for part in parts:
        made += part if isinstance(part, nodes.Node) else list(_inline(part))
    return made


def _inline(text: str) -> Iterator[nodes.Node]:
    """Text with `code` in it."""
    for i, part in enumerate(text.split("`")):
        if part:
            yield nodes.literal("", part) if i % 2 else nodes.Text(part)


def _table(heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> nodes.table:
    table, group = nodes.table(), nodes.tgroup(cols=len(heads))
    table += group
    for _ in heads:
        group += nodes.colspec(colwidth=1)
    head, body = nodes.thead(), nodes.tbody()
    group += [head, body]
    for target, cells in [(head, heads), *((body, row) for row in rows)]:
        row = nodes.row()
        target += row
        for k, cell in enumerate(cells):
            entry = nodes.entry()
            row += entry
            if target is body and k == 0:
                cell = [nodes.literal("", cell)]
            entry += _paragraph(*(cell if isinstance(cell, list) else [cell]))
    return table


def _without_links_to_files(app: Sphinx, page: str, source: list[str]) -> None:
    """A link from a page to a file or folder of the checkout that is not on the site becomes its text.

    One to something that does not exist is left as it is, and so is an error of the build.
    """
    here = Path(app.srcdir, page).parent

    def text(link: re.Match[str]) -> str:
        path = (here / link["target"]).resolve()
        is_outside = path.is_relative_to(ROOT) and not path.is_relative_to(Path(app.srcdir).resolve())
        return link["text"] if is_outside and path.exists() else link[0]

    source[0] = LINK.sub(text, source[0])


def _literal_blocks(app: Sphinx, what: str, name: str, described: Any, options: Any, lines: list[str]) -> None:
    """In the docstring of a module, what is indented after an empty line is an example or a drawing."""
    if what == "module":
        for i in range(len(lines) - 1, 0, -1):
            if lines[i].startswith("    ") and not lines[i - 1].strip():
                is_new = i < 2 or not lines[i - 2].startswith("    ")
                if is_new:
                    lines[i:i] = ["::", ""]


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("cli-help", CommandHelp)
    app.add_directive("http-routes", Routes)
    app.connect("source-read", _without_links_to_files)
    app.connect("autodoc-process-docstring", _literal_blocks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
