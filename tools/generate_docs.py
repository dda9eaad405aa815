#!/usr/bin/env python3
"""Write the pages that are made from the code; with ``--check``, fail when one differs from what it would write.

docs/reference/commands.md       from the commands' own help
docs/reference/configuration.md  from the structs that read holdfast.toml, their defaults and docstrings
docs/concepts/roles.md           from the table of roles
docs/concepts/failover.md        from the tables of automatic failover
docs/formats/frame.md            from the frame and change modules
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import click
import msgspec

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made by tools/generate_docs.py from {source}: change it there, then `make docs`. -->\n\n"


def commands_page() -> str:
    """Help of every command, as the command prints it."""
    from holdfast.console.main import main

    out = [NOTE.format(source="the commands"), "# Commands\n"]

    def describe(command: click.Command, path: str, parent: click.Context | None) -> None:
        context = click.Context(command, info_name=path, parent=None, max_content_width=100, terminal_width=100)
        out.append(f"\n## `{path}`\n\n```\n{command.get_help(context).rstrip()}\n```\n")
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                sub = command.get_command(context, name)
                if sub is not None:
                    describe(sub, f"{path} {name}", context)

    describe(main, "holdfast", None)
    return "".join(out)


def _attribute_docs(struct: type) -> dict[str, str]:
    """Docstrings that stand below the fields of a class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(struct))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(after.value.value).split())
    return docs


def _type_name(annotation: object) -> str:
    text = str(annotation) if not isinstance(annotation, type) else annotation.__name__
    for long, short in (("typing.", ""), ("holdfast.mail.outputs.", ""), ("holdfast.trees.spec.", ""), ("str", "text")):
        text = text.replace(long, short)
    return text.replace("tuple[", "list of ").replace(", ...]", "").replace("Literal[", "one of ").replace("]", "")


def _fields(struct: type[msgspec.Struct], table: str) -> Iterator[str]:
    docs = _attribute_docs(struct)
    yield "| key | type | default | meaning |\n|---|---|---|---|\n"
    nested = []
    for field in msgspec.structs.fields(struct):
        kind = field.type
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            nested.append((field.name, kind))
            continue
        if field.required:
            default = "required"
        elif field.default is not msgspec.NODEFAULT:
            default = f"`{field.default!r}`" if field.default not in ((), None) else ""
        else:
            default = ""
        meaning = docs.get(field.name, "").replace("|", "\\|")
        yield f"| `{field.name}` | {_type_name(kind)} | {default} | {meaning} |\n"
    for name, kind in nested:
        yield from _table(kind, f"{table.strip('[]')}.{name}" if table else name)


def _table(struct: type[msgspec.Struct], name: str) -> Iterator[str]:
    yield f"\n## `[{name}]`\n\n"
    text = inspect.getdoc(struct) or ""
    if text and "Struct" not in text.split("\n")[0]:
        yield text + "\n\n"
    yield from _fields(struct, name)


def configuration_page() -> str:
    """Every key of holdfast.toml."""
    from holdfast.mail.outputs import OutputSpec
    from holdfast.node.settings import MachineSettings, Settings
    from holdfast.trees.spec import TreeSpec
    from holdfast.vault.settings import VaultSettings

    out = [NOTE.format(source="src/holdfast/node/settings.py and src/holdfast/mail/settings.py")]
    out.append("# Configuration: /etc/holdfast/holdfast.toml\n\n")
    out.append("One file for the whole site; only the line `machine` differs between machines. Units are in the\n")
    out.append("names. An unknown key, a wrong type or an impossible value is an error that names file and key.\n\n")
    out.append("## At the top\n\n")
    out += _fields(Settings, "")
    for struct, name in (
        (MachineSettings, "[machines]"),
        (VaultSettings, "[vaults]"),
        (OutputSpec, "[mail.outputs]"),
        (TreeSpec, "[mail.trees]"),
    ):
        out += _table(struct, name)
    return "".join(out)


def roles_page() -> str:
    """The table that decides what a machine does."""
    from holdfast.node import roles

    out = [NOTE.format(source="src/holdfast/node/roles.py"), "# Roles\n\n", inspect.getdoc(roles) or "", "\n\n"]
    out.append("| a machine becomes | because | and a person is told |\n|---|---|---|\n")
    for row in roles.TABLE:
        out.append(f"| {row.role} | {row.reason} | {row.advice} |\n")
    out.append("\nThe first row that applies counts.\n")
    return "".join(out)


def failover_page() -> str:
    """The tables that decide what is done without a person, and a picture of them."""
    from holdfast.node import watchman
    from holdfast.node.watchman import PRIMARY_TABLE, STANDBY_TABLE, Order

    arrows = {
        Order.STOP: "serves --> held",
        Order.REFUSE: "serves --> reads",
        Order.ALLOW: "reads --> serves",
        Order.PROVE: "held --> proved",
        Order.SERVE: "proved --> serves",
        Order.PROMOTE: "standby --> serves",
        Order.ASK: "standby --> asks",
    }
    out = [NOTE.format(source="src/holdfast/node/watchman.py"), "# Failover without a person\n\n"]
    out += [inspect.getdoc(watchman) or "", "\n\n## As a picture\n\n```mermaid\nstateDiagram-v2\n"]
    out += ["  serves: primary, serves\n  held: primary, serves nobody\n  proved: its record was taken\n"]
    out += ["  reads: primary, serves who reads\n  asks: standby, asks a person\n"]
    for row in (*PRIMARY_TABLE, *STANDBY_TABLE):
        if row.order in arrows:
            out.append(f"  {arrows[row.order]}: {row.reason.replace(':', ',').replace(';', ',')}\n")
    out.append("  serves --> standby: replaced, compared, joined again\n```\n\n## The primary\n\n")
    out.append("The first row that applies counts, in both tables.\n\n| it does | because |\n|---|---|\n")
    out += [f"| {row.order} | {row.reason} |\n" for row in PRIMARY_TABLE]
    out.append("\n## A standby\n\n| it does | because | and a person is told |\n|---|---|---|\n")
    out += [f"| {row.order} | {row.reason} | {row.advice} |\n" for row in STANDBY_TABLE]
    out.append("\n## The constants\n\n| name | seconds |\n|---|---|\n")
    out += [f"| `{name}` | {value:g} |\n" for name, value in vars(watchman).items() if "_SECONDS" in name]
    return "".join(out)


def _frame_page() -> str:
    sys.path.insert(0, str(ROOT / "tools"))
    module: ModuleType = __import__("gen_frame_doc")
    page: str = module.render()
    return page


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/commands.md": commands_page,
    "docs/reference/configuration.md": configuration_page,
    "docs/concepts/roles.md": roles_page,
    "docs/concepts/failover.md": failover_page,
    "docs/formats/frame.md": _frame_page,
}


def main() -> int:
    """Exit status 1 when ``--check`` finds a page that is not up to date."""
    stale = []
    for name, render in PAGES.items():
        path, page = ROOT / name, render()
        if path.exists() and path.read_text(encoding="utf-8") == page:
            continue
        if "--check" in sys.argv:
            stale.append(name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page, encoding="utf-8")
            print(f"wrote {name}")
    for name in stale:
        print(f"{name} is not up to date: run `make docs`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
