"""A site is made, and its machines join it."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.errors import ConfigurationError, Refused
from holdfast.log.trust import describe
from holdfast.node.enrol import Folder, create_site, join_site, make_code, open_bundle, renew_site

from .test_settings import GOOD


@pytest.fixture
def first(tmp_path: Path) -> tuple[Folder, dict[str, str]]:
    folder = Folder(tmp_path / "main")
    return folder, create_site(GOOD, folder)


def test_all_get_the_relay_key_a_standby_gets_the_segment_key_and_a_relay_does_not(
    first: tuple[Folder, dict[str, str]], tmp_path: Path
) -> None:
    folder, codes = first
    for name in ("backup", "relay"):
        bundle = open_bundle((folder.bundles / f"{name}.join").read_bytes(), codes[name])
        joined = Folder(tmp_path / name)
        assert join_site(bundle, joined).machine == name
        assert joined.segment_key.exists() == (name == "backup")
        assert joined.read_relay_key().secret == folder.read_relay_key().secret
        assert describe(joined.tls_files().certificate).machine == name
    assert Folder(tmp_path / "backup").read_segment_key().secret == folder.read_segment_key().secret


def test_secrets_are_readable_by_their_owner_only(first: tuple[Folder, dict[str, str]]) -> None:
    folder, _ = first
    keys = (folder.segment_key, folder.relay_key, folder.tls_files().key, folder.authority / "ca.key")
    for path in (*keys, *folder.bundles.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


def test_another_code_or_a_changed_bundle_opens_nothing(first: tuple[Folder, dict[str, str]]) -> None:
    folder, codes = first
    data = (folder.bundles / "backup.join").read_bytes()
    with pytest.raises(ConfigurationError, match="join code"):
        open_bundle(data, make_code())
    with pytest.raises(ConfigurationError, match="join code"):
        open_bundle(data[:-1] + bytes([data[-1] ^ 1]), codes["backup"])
    with pytest.raises(ConfigurationError, match="no join bundle"):
        open_bundle(b"something else", codes["backup"])


def test_a_code_is_taken_as_people_type_it(first: tuple[Folder, dict[str, str]]) -> None:
    folder, codes = first
    typed = codes["backup"].replace("-", " ").upper()
    assert open_bundle((folder.bundles / "backup.join").read_bytes(), typed).segment_key


def test_a_site_is_not_made_twice_on_one_machine(first: tuple[Folder, dict[str, str]]) -> None:
    with pytest.raises(Refused, match="belongs to a site already"):
        create_site(GOOD, first[0])


def test_a_machine_of_another_site_does_not_join(first: tuple[Folder, dict[str, str]], tmp_path: Path) -> None:
    folder, codes = first
    bundle = open_bundle((folder.bundles / "backup.join").read_bytes(), codes["backup"])
    with pytest.raises(Refused, match="the bundle is for 'backup'"):
        join_site(bundle, folder)


def test_renewal_gives_every_machine_a_fresh_certificate(first: tuple[Folder, dict[str, str]]) -> None:
    folder, _ = first
    before = folder.tls_files().certificate.read_bytes()
    codes = renew_site(folder)
    assert set(codes) == {"backup", "relay"}
    assert folder.tls_files().certificate.read_bytes() != before
    open_bundle((folder.bundles / "relay.join").read_bytes(), codes["relay"])


def test_a_site_from_before_there_were_relay_keys_gets_one_by_a_renewal(
    first: tuple[Folder, dict[str, str]], tmp_path: Path
) -> None:
    folder, _ = first
    folder.relay_key.unlink()
    with pytest.raises(ConfigurationError, match=r"relay\.key cannot"):
        folder.read_relay_key()
    codes = renew_site(folder)
    bundle = open_bundle((folder.bundles / "relay.join").read_bytes(), codes["relay"])
    assert bundle.relay_key == folder.read_relay_key().secret
