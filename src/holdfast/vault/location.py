"""Where a vault is, as people write it, and the store behind it.

==============================================  =====================================================================
``/path``                                       a local folder; a relative path is refused (it would depend on where
                                                the command was started)
``s3://bucket/prefix?endpoint=URL&region=R``    an object store. Keys: ``AWS_ACCESS_KEY_ID``,
                                                ``AWS_SECRET_ACCESS_KEY`` (``AWS_SESSION_TOKEN``), or
                                                ``&credentials=FILE`` with the same three as ``NAME=value`` lines.
                                                ``&ca=FILE``: certificates to trust besides the system's
``sftp://user@host:port/path?key=FILE``         an SFTP account; ``&known_hosts=FILE`` (default: ``~/.ssh/known_hosts``,
                                                then ``/etc/ssh/ssh_known_hosts``)
==============================================  =====================================================================
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from holdfast.errors import ConfigurationError
from holdfast.vault.backends.folder import FolderBackend
from holdfast.vault.pace import Pace
from holdfast.vault.patient import DISK, NETWORK, PatientBackend, Transfer
from holdfast.vault.port import Backend

SFTP_PORT: Final = 22
_HINT: Final = "Give /path, s3://bucket/prefix?endpoint=URL&region=R or sftp://user@host:port/path?key=FILE."


class FolderLocation(NamedTuple):
    path: Path


class S3Location(NamedTuple):
    """*prefix*: without slashes around it, may be empty. *endpoint*: empty for Amazon's own."""

    bucket: str
    prefix: str
    endpoint: str
    region: str
    credentials: Path | None
    ca: Path | None = None


class SftpLocation(NamedTuple):
    """*path*: absolute, or beginning with ``~/`` for the account's own folder. Files are None for the defaults."""

    user: str
    host: str
    port: int
    path: str
    key: Path | None
    known_hosts: Path | None


Location = FolderLocation | S3Location | SftpLocation


def parse_location(text: str) -> Location:
    """Raises ConfigurationError."""
    if text.startswith("/"):
        return FolderLocation(Path(text))
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _wrong(text, str(error)) from None
    if parts.password is not None:
        raise _wrong(f"{parts.scheme}://...", "it holds a password, which everybody would see", _PASSWORD_HINT)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return FolderLocation(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        return _s3(text, parts)
    if parts.scheme == "sftp":
        return _sftp(text, parts, port or SFTP_PORT)
    if parts.scheme and parts.netloc:
        raise _wrong(text, f"{parts.scheme}:// is not known")
    raise _wrong(text, "it is no absolute path", f"Write it from / on, or: {_HINT}")


def open_backend(
    text: str,
    *,
    create: bool = False,
    bytes_per_second: float = 0.0,
    progress: Callable[[Transfer], None] | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> PatientBackend:
    """The store at *text*; network stores are first spoken to with the first call. Close it when done.

    *create*: for a new vault (``init_vault``, the target of a copy): the folder is made, and may be written to before
    it holds a vault. Without it, a folder without ``vault.json`` counts as an unmounted disk and is not written to.
    *bytes_per_second*: both ways together; 0 is no limit. *progress*: see :class:`PatientBackend`.

    Raises ConfigurationError (*text* is no location), and what making the folder raises.
    """
    location = parse_location(text)
    pace = Pace(bytes_per_second, wait=wait)
    if isinstance(location, FolderLocation):
        folder = FolderBackend(location.path, create=create, pace=pace)
        return PatientBackend(folder, DISK, progress=progress, wait=wait)
    return PatientBackend(_network(location, create, pace), NETWORK, progress=progress, wait=wait)


def _network(location: S3Location | SftpLocation, create: bool, pace: Pace) -> Backend:
    """Their libraries take 20 and 300 ms to import."""
    if isinstance(location, S3Location):
        from holdfast.vault.backends.s3 import S3Backend, S3Keys

        keys = S3Keys(*_s3_keys(location.credentials))
        return S3Backend(
            location.bucket,
            location.prefix,
            keys,
            endpoint=location.endpoint,
            region=location.region,
            ca=location.ca,
            pace=pace,
        )
    from holdfast.vault.backends.sftp import SftpAccount, SftpBackend

    account = SftpAccount(location.user, location.host, location.port, location.key, location.known_hosts)
    return SftpBackend(account, location.path, create=create, pace=pace)


def _s3_keys(file: Path | None) -> tuple[str, str, str]:
    """Key, secret and session token, from *file* or the environment. Raises ConfigurationError."""
    found: Mapping[str, str] = os.environ
    if file is not None:
        try:
            lines = [line.partition("=") for line in file.read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{file}: cannot be read ({error})", hint=_KEYS_HINT) from None
        found = {name.strip().removeprefix("export ").upper(): value.strip().strip("\"'") for name, _, value in lines}
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    missing = [name for name in names if not found.get(name)]
    if missing:
        raise ConfigurationError(f"{file or 'the environment'} holds no {' and no '.join(missing)}", hint=_KEYS_HINT)
    return found[names[0]], found[names[1]], found.get("AWS_SESSION_TOKEN", "")


_KEYS_HINT: Final = "Name a file with lines AWS_ACCESS_KEY_ID=... and AWS_SECRET_ACCESS_KEY=...: ...?credentials=FILE."
_PASSWORD_HINT: Final = "Put keys into a file or the environment; see `holdfast vault init --help`."


def _s3(text: str, parts: SplitResult) -> S3Location:
    if not parts.netloc or "@" in parts.netloc or ":" in parts.netloc:
        raise _wrong(text, "the bucket's name is missing or none")
    options = _options(text, parts, ("endpoint", "region", "credentials", "ca"))
    endpoint = options.get("endpoint", "")
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        raise _wrong(text, f"endpoint {endpoint!r} is no http(s) address")
    prefix = unquote(parts.path).strip("/")
    credentials, ca = _file(options.get("credentials")), _file(options.get("ca"))
    return S3Location(parts.netloc, prefix, endpoint, options.get("region", ""), credentials, ca)


def _sftp(text: str, parts: SplitResult, port: int) -> SftpLocation:
    path = unquote(parts.path)
    if not parts.hostname or not parts.username:
        raise _wrong(text, "it must name user and host")
    if path.startswith("/~/"):
        path = path[1:]
    if path.rstrip("/") in ("", "~"):
        raise _wrong(text, "the folder is missing")
    options = _options(text, parts, ("key", "known_hosts"))
    user = unquote(parts.username)
    key, known_hosts = _file(options.get("key")), _file(options.get("known_hosts"))
    return SftpLocation(user, parts.hostname, port, path.rstrip("/"), key, known_hosts)


def _options(text: str, parts: SplitResult, known: tuple[str, ...]) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = [name for name in options if name not in known]
    if unknown or parts.fragment:
        what = f"option {unknown[0]!r} is not known" if unknown else "it holds a '#'"
        raise _wrong(text, what, f"Known here: {', '.join(known)}.")
    return options


def _file(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None


def _wrong(text: str, why: str, hint: str = _HINT) -> ConfigurationError:
    return ConfigurationError(f"{text!r} is no place for a vault: {why}", hint=hint)
