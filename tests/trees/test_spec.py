"""Which paths a tree protects."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ConfigurationError
from holdfast.trees.spec import PatternSet, Tree, TreeSpec


@pytest.mark.parametrize(
    ("pattern", "path", "directory", "expected"),
    [
        ("*.lock", b"a/b/x.lock", False, True),
        ("*.lock", b"x.lock", False, True),
        ("*.lock", b"x.lock/below", False, False),
        ("dovecot.index.cache", b"u/Maildir/dovecot.index.cache", False, True),
        ("dovecot.index.cache", b"u/Maildir/dovecot.index.cache2", False, False),
        ("dovecot.index.cache", b"u/Maildir/dovecotXindexXcache", False, False),
        ("tmp/", b"u/tmp", True, True),
        ("tmp/", b"u/tmp", False, False),
        ("/tmp/", b"u/tmp", True, False),
        ("/tmp/", b"tmp", True, True),
        ("/a/*.x", b"a/b.x", False, True),
        ("/a/*.x", b"a/c/b.x", False, False),
        ("/a/**", b"a/c/b.x", False, True),
        ("/a/**/b", b"a/b", False, True),
        ("/a/**/b", b"a/x/y/b", False, True),
        ("/a/**/b", b"ab", False, False),
        ("mail/cur", b"x/mail/cur", True, True),
        ("mail/cur", b"mail/cur", True, True),
        ("mail/cur", b"xmail/cur", True, False),
        ("a?c", b"abc", False, True),
        ("a?c", b"a/c", False, False),
        ("*", b"new\nline", False, True),
        ("?", b"\xff", False, True),
        ("[ab]", b"a", False, False),
        ("[ab]", b"[ab]", False, True),
        ("ü*", "x/über".encode(), False, True),
    ],
)
def test_what_a_pattern_matches(pattern: str, path: bytes, directory: bool, expected: bool) -> None:
    assert PatternSet((pattern,)).matches(path, directory=directory) is expected
    assert PatternSet((pattern, "never-here")).matches(path, directory=directory) is expected


@given(st.text(alphabet="ab*?.", min_size=1, max_size=6), st.text(alphabet="ab.", min_size=1, max_size=6))
def test_a_pattern_without_a_slash_is_a_glob_of_one_name(pattern: str, name: str) -> None:
    expected = re.compile(fnmatch.translate(pattern)).fullmatch(name) is not None
    assert PatternSet((pattern,)).matches_name(name.encode(), directory=False) is expected
    assert PatternSet((pattern,)).matches(b"above/" + name.encode(), directory=False) is expected


@given(st.lists(st.text(alphabet="ab*/?", min_size=1, max_size=8), max_size=4), st.binary(max_size=30), st.booleans())
def test_any_set_of_patterns_answers_for_any_path(patterns: list[str], path: bytes, directory: bool) -> None:
    patterns = [pattern for pattern in patterns if pattern.strip("/")]
    together = PatternSet(tuple(patterns)).matches(path, directory=directory)
    assert together == any(PatternSet((p,)).matches(path, directory=directory) for p in patterns)


def tree(**fields: tuple[str, ...]) -> Tree:
    return Tree(TreeSpec("t", "/srv/t", **fields))


def test_our_own_folder_is_never_protected() -> None:
    for spec in (tree(), tree(include=(".holdfast",)), tree(exclude=("x",))):
        assert spec.excluded(b".holdfast", directory=True)
        assert spec.excluded_name(b".holdfast", directory=True)


def test_includes_protect_what_they_name_and_the_way_to_it() -> None:
    some = tree(include=("etc/postfix", "/etc/aliases"))
    assert not some.decides_by_name
    for path, directory in (
        (b"etc", True),
        (b"etc/postfix", True),
        (b"etc/postfix/a/b", False),
        (b"etc/aliases", False),
    ):
        assert not some.excluded(path, directory=directory), path
    for path, directory in ((b"etc", False), (b"etc/postfix2", True), (b"etc/passwd", False), (b"var", True)):
        assert some.excluded(path, directory=directory), path


def test_a_machines_own_files_are_left_out() -> None:
    own = tree(overrides=("etc/hostname",))
    assert own.excluded(b"etc/hostname", directory=False)
    assert not own.excluded(b"x/etc/hostname", directory=False)
    assert not own.decides_by_name


def test_names_decide_alone_where_they_can() -> None:
    assert tree(exclude=("*.lock", "tmp/")).decides_by_name
    assert not tree(exclude=("a/b",)).decides_by_name
    assert not tree(exclude=("/a/",)).decides_by_name


@pytest.mark.parametrize("root", ["", "relative", "/", "/a/", "/a/../b", "//a", "/a/./b"])
def test_unusable_roots(root: str) -> None:
    with pytest.raises(ConfigurationError, match="root"):
        Tree(TreeSpec("t", root))


def test_append_and_read_first() -> None:
    kinds = tree(append=("dovecot.index.log", "m.*"), read_first=("dovecot.index*",))
    assert kinds.appended(b"x/m.12")
    assert not kinds.appended(b"x/n.12")
    assert kinds.read_first(b"u/dovecot.index")
    assert not kinds.read_first(b"u/dovecot-uidlist")
