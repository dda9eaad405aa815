"""What may be written as a vault's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import ConfigurationError
from holdfast.vault import location
from holdfast.vault.backends.s3 import S3Keys
from holdfast.vault.location import FolderLocation, S3Location, SftpLocation, open_backend, parse_location


def test_places() -> None:
    assert parse_location("/srv/my vault") == FolderLocation(Path("/srv/my vault"))
    assert parse_location("file:///srv/vault") == FolderLocation(Path("/srv/vault"))
    assert parse_location("s3://mail/a/b/?endpoint=https://s3.example.org:9000&region=eu&credentials=/etc/k") == (
        S3Location("mail", "a/b", "https://s3.example.org:9000", "eu", Path("/etc/k"))
    )
    assert parse_location("s3://mail") == S3Location("mail", "", "", "", None)
    assert parse_location("sftp://anna@[::1]:2222/srv/vault?key=/k&known_hosts=/h") == (
        SftpLocation("anna", "::1", 2222, "/srv/vault", Path("/k"), Path("/h"))
    )
    assert parse_location("sftp://anna@host/~/vault") == SftpLocation("anna", "host", 22, "~/vault", None, None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("vault", "no absolute path"),
        ("", "no absolute path"),
        ("ftp://host/x", "ftp:// is not known"),
        ("s3:///x", "bucket"),
        ("s3://mail?endpont=https://x", "'endpont' is not known"),
        ("s3://mail?endpoint=s3.example.org", "no http"),
        ("sftp://host/x", "user"),
        ("sftp://anna@host", "folder"),
        ("sftp://anna:geheim@host/x", "password"),
        ("sftp://anna@host:http/x", "[Pp]ort"),
    ],
)
def test_what_is_none_is_said(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as refused:
        open_backend(text)
    assert refused.value.hint
    assert "geheim" not in str(refused.value)


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="no AWS_ACCESS_KEY_ID and no AWS_SECRET_ACCESS_KEY"):
        open_backend("s3://mail")
    file = tmp_path / "keys"
    file.write_text("[default]\naws_access_key_id = one\nexport AWS_SECRET_ACCESS_KEY='two'\n")
    assert location._s3_keys(file) == ("one", "two", "")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "three")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "four")
    assert location._s3_keys(None) == ("three", "four", "")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_backend(f"s3://mail?credentials={tmp_path}/none")
    assert "two" not in repr(S3Keys("one", "two"))


def test_only_a_new_vault_makes_its_folder(tmp_path: Path) -> None:
    open_backend(str(tmp_path / "no"))
    assert not (tmp_path / "no").exists()
    open_backend(str(tmp_path / "a" / "b"), create=True).put("vault.json", b"{}")
    assert (tmp_path / "a" / "b" / "vault.json").read_bytes() == b"{}"
