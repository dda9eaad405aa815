"""A machine's own values in main.cf: put in, taken out, never mixed up."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ConfigurationError
from holdfast.mail.postfix import for_gates
from holdfast.mail.postfix_render import canonical, parse_overrides, render

keys = st.text(string.ascii_lowercase + "_", min_size=1, max_size=8)
values = st.text(st.characters(blacklist_categories=("Cc", "Cs")), max_size=20)
overrides = st.dictionaries(keys, values, max_size=4)
lines = st.one_of(
    st.binary(max_size=30),
    keys.map(lambda key: f"{key} = x".encode()),
    st.sampled_from(
        [b"  continued", b"# comment", b"#holdfast-shared#a = b", b"#holdfast-end#", b"#holdfast-begin-joined#"]
    ),
)
files = st.lists(lines).map(b"\n".join)


@given(files, overrides, overrides)
def test_rendering_can_be_undone_and_replaced(content: bytes, first: dict[str, str], second: dict[str, str]) -> None:
    shared = canonical(content)
    assert canonical(shared) == shared
    rendered = render(content, first)
    assert canonical(rendered) == shared
    assert render(rendered, second) == render(content, second)
    assert render(rendered, first) == rendered


@given(files.filter(lambda content: b"#holdfast" not in content))
def test_a_file_without_marks_is_its_own_canonical_form(content: bytes) -> None:
    assert canonical(content) == content == render(content, {})


def test_the_shared_setting_is_commented_out_with_its_continuation_and_nothing_else() -> None:
    shared = b"a = 1\ninet_interfaces = 10.0.0.1,\n# why\n  10.0.0.2\nb = 2\n"
    assert render(shared, {"inet_interfaces": "10.0.0.9"}) == (
        b"a = 1\n#holdfast-shared#inet_interfaces = 10.0.0.1,\n# why\n#holdfast-shared#  10.0.0.2\nb = 2\n"
        b"#holdfast-begin# This machine's own values, from its overrides file; written anew at every start.\n"
        b"inet_interfaces = 10.0.0.9\n#holdfast-end#\n"
    )


def test_what_postconf_appended_after_the_block_is_kept() -> None:
    rendered = render(b"a = 1", {"b": "2"}) + b"c = 3\n"
    assert canonical(rendered) == b"a = 1\nc = 3\n"


@pytest.mark.parametrize("text", ["no equals sign", "two words = x", "= x"])
def test_an_override_that_is_no_setting_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"own\.cf, line 2"):
        parse_overrides("a = 1\n" + text, "own.cf")


def test_overrides_have_comments_and_continued_lines() -> None:
    assert parse_overrides("# x\na = 1,\n   2\n\nb=\n", "own.cf") == {"a": "1, 2", "b": ""}


def test_a_value_of_two_lines_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        render(b"", {"a": "1\nsmtpd_relay_restrictions = permit"})


def test_what_the_gates_need_of_postfix_is_told_where_our_milter_is_asked() -> None:
    ours = {"smtpd_milters": "unix:private/holdfast-milter"}
    assert [said.split(" needs ")[1].split(" in ")[0] for said in for_gates(ours)] == [
        "enable_long_queue_ids = yes",
        "smtputf8_autodetect_classes = verify",
    ]
    long = {**ours, "enable_long_queue_ids": "yes"}
    assert [len(for_gates({**long, "smtputf8_autodetect_classes": value})) for value in ("verify", "", "all")] == [
        0,
        0,
        1,
    ]
    assert for_gates({**long, "smtputf8_enable": "no"}) == []
    assert for_gates({"smtpd_milters": "inet:127.0.0.1:8891"}) == []
