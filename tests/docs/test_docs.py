"""What the pages say exists: links, commands, options, configuration, exit statuses, metrics, tests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import msgspec
import pytest

from holdfast.console.main import main
from holdfast.drill.lab import mail_files
from holdfast.drill.lab.spec import Account
from holdfast.errors import ExitStatus
from holdfast.node import metrics
from holdfast.node.settings import parse_settings
from holdfast.node.status import MachineView, SiteStatus

from .pages import DOCS, ROOT, Block, anchors, blocks, commands, links, pages

FRAGMENT = "# fragment"
"""The first line of a TOML block that is a part of a file: put behind the least that a whole file has."""
LEAST = """\
site = "example"
machine = "main"
[[machines]]
name = "main"
role = "mail"
address = "192.0.2.11"
"""


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), f"{target} is not there"
        if anchor:
            assert anchor in anchors(to), f"{target}: there is no such heading"


def test_the_index_lists_every_page() -> None:
    listed = {(DOCS / target).resolve() for target in links(DOCS / "index.md")}
    assert listed == set(DOCS.rglob("*.md")) - {DOCS / "index.md"}


SHELL = [block for page in pages() for block in blocks(page, "sh")]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_and_their_options_exist(block: Block) -> None:
    for words in commands(block.text):
        check_command(words)


def check_command(given_words: list[str]) -> None:
    line, words = shlex.join(given_words), given_words[1:]
    command: click.Command = main
    context = click.Context(main, info_name="holdfast")
    while isinstance(command, click.Group):
        assert words, f"{line}: a command is missing"
        name, *words = words
        found = command.get_command(context, name)
        assert found is not None, f"{line}: there is no command {name}"
        command, context = found, click.Context(found, info_name=name, parent=context)
        if found.context_settings.get("ignore_unknown_options"):
            context.ignore_unknown_options = True
            context.allow_interspersed_args = False
    try:
        given, left, _ = command.make_parser(context).parse_args(list(words))
    except click.UsageError as error:
        raise AssertionError(f"{line}: {error.format_message()}") from None
    assert not left, f"{line}: {left} is too much"
    for parameter in command.params:
        value = given.get(parameter.name or "")
        given_at_all = value not in (None, (), []) and not str(value).startswith("Sentinel.")
        assert given_at_all or not parameter.required, f"{line}: {parameter.name} is missing"
        if given_at_all and isinstance(parameter.type, click.Choice):
            assert value in parameter.type.choices, f"{line}: {value}"
    inner = given.get("command")
    if isinstance(inner, tuple | list) and "holdfast" in inner[:2]:
        check_command(list(inner)[list(inner).index("holdfast") :])


@pytest.mark.parametrize(
    "wrong",
    [
        "holdfast statsu",
        "holdfast status --jsn",
        "holdfast init",
        "holdfast trust rotate again",
        "holdfast switchover backup",
        "until holdfast lab exec main -- holdfast takeover --wy x | cat; do true; done",
        "holdfast lab exec main -- sh -c 'setsid holdfast agnet >/dev/null 2>&1 &'",
    ],
)
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        test_commands_and_their_options_exist(Block(DOCS, 1, "sh", wrong))


def test_command_lines_are_found_wherever_they_stand() -> None:
    text = """\
until holdfast status 2>/dev/null | grep -q standby; do sleep 1; done
code=$(holdfast version)   # holdfast no
holdfast join x \\
    --code 'y z'
agent() { holdfast lab exec "$1" -- sh -c 'setsid holdfast agent >log 2>&1 &'; }
tee f <<'EOF'
holdfast no
EOF
"""
    assert [shlex.join(words) for words in commands(text)] == [
        "holdfast version",
        "holdfast status",
        "holdfast join x --code 'y z'",
        "holdfast lab exec '$1' -- sh -c 'setsid holdfast agent >log 2>&1 &'",
        "holdfast agent",
    ]


TOML = [block for page in pages() for block in blocks(page, "toml")]


@pytest.mark.parametrize("block", TOML, ids=str)
def test_configuration_is_accepted(block: Block) -> None:
    text = block.text
    parse_settings((LEAST if text.startswith(FRAGMENT) else "") + text, str(block))


def test_the_worked_example_is_what_the_lab_runs_on() -> None:
    site = mail_files.Site(
        domain="example.org",
        service_name="mail.example.org",
        accounts=(Account("alice@example.org", ""), Account("bob@example.org", "")),
    )
    wanted = {
        "dovecot.conf": mail_files.dovecot_conf(site),
        "main.cf": mail_files.main_cf(site),
        "master.cf": mail_files.master_cf(),
        "vmailbox": mail_files.vmailbox(site),
        "virtual": mail_files.virtual(site),
        "radicale.config": mail_files.radicale_config(),
    }
    for name, text in wanted.items():
        assert (DOCS / "worked-example" / name).read_text(encoding="utf-8") == text, name


def test_every_exit_status_is_explained() -> None:
    page = (DOCS / "operations/exit-statuses.md").read_text(encoding="utf-8")
    for status in ExitStatus:
        assert f"\n| {int(status)} | {status.name.lower().replace('_', ' ')} |" in page


def test_every_metric_and_every_key_of_status_is_explained() -> None:
    page = (DOCS / "operations/monitoring.md").read_text(encoding="utf-8")
    source = Path(metrics.__file__).read_text(encoding="utf-8")
    real = {f"holdfast_{name}" for name in re.findall(r'gauge\(\s*"(\w+)"', source)}
    assert real, "metrics are made in another way now"
    assert set(re.findall(r"\bholdfast_\w+", page)) == real
    named = set(re.findall(r"`([a-z_0-9]+)(?:\[\])?`", page))
    unexplained = {field.name for field in msgspec.structs.fields(SiteStatus)} - named
    assert unexplained <= {"site", "segment", "machine", "service_addresses"}
    assert named & {"lag_ms_p50", "lag_ms_p99"} <= {field.name for field in msgspec.structs.fields(MachineView)}


def test_tests_named_in_the_pages_exist() -> None:
    there = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
    }
    for page in pages():
        named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
        assert named <= there, f"{page.relative_to(ROOT)}: {sorted(named - there)}"


def test_the_gates_page_has_dovecots_file_as_it_is_tested() -> None:
    assert f"```\n{mail_files.dovecot_gates()}```" in (DOCS / "concepts" / "imap-gate.md").read_text()


def test_each_line_of_what_happens_when_names_a_test() -> None:
    page = (DOCS / "operations/what-happens-when.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    heads = {number for number, line in enumerate(rows) if set(line) <= set("|- ")}
    lines = [line for number, line in enumerate(rows) if number not in heads and number + 1 not in heads]
    assert len(lines) > 40
    assert [line for line in lines if not re.search(r"`test_\w+(\[\w+\])?`[^|]*\|$", line)] == []
