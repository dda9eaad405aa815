"""A store in a bucket of an S3 service.

Services differ. What is relied on, and what is done where it is missing:

* *Put if absent* (``If-None-Match: *``): asked for always. A service that does not know the header is asked plainly;
  one that ignores it replaces. So a HEAD goes first: only two programs that write one name with different bytes in the
  same moment could replace each other there, and all names but ``vault.json`` are digests of the bytes.
* *What was put*: the ETag of the answer is the MD5 of what the service received, or the object is read back and
  compared. A SHA-256 goes with every put (object lock asks for it; a service that checks it refuses what was damaged
  on the way).
* *Ranges*: of a service that answers with the whole object the last few are kept, and cut here.

With the synchronous calls of obstore only: a program that used its asynchronous ones aborts now and then at its end.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import obstore
from obstore import exceptions
from obstore.store import S3Store

from holdfast.errors import ConfigurationError
from holdfast.vault.pace import UNLIMITED, Pace
from holdfast.vault.port import (
    BackendFull,
    BackendRefused,
    BackendUnavailable,
    Found,
    ObjectExists,
    ObjectMissing,
    check_name,
    is_name,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig

CONNECT_SECONDS_MAX: Final = 10
SILENCE_SECONDS_MAX: Final = 60
"""Without a byte coming: a service that checks and stores 33 MiB takes a few seconds."""
REQUEST_SECONDS_MAX: Final = 20 * 60
"""A pack at 30 KB/s."""
PART_BYTES: Final = 5 * 1024 * 1024
"""The smallest S3 takes; what goes at once under a bandwidth limit."""
WHOLES_MAX: Final = 3
"""Objects kept of a service without ranges: a restore reads two ahead."""
DEFAULT_REGION: Final = "us-east-1"

_FULL: Final = frozenset(
    {"QuotaExceeded", "XMinioStorageFull", "StorageFull", "InsufficientStorage", "InsufficientCapacity"}
)
_REDIRECTS: Final = frozenset(
    {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_environment: Final = threading.Lock()
_STATUS: Final = re.compile(r"status code: (\d{3})([^:\n]*)")
_CODE: Final = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]*)</Message>")
_CAUSE: Final = re.compile(r"kind: (\w+)")


class S3Keys(NamedTuple):
    access: str
    secret: str
    session: str = ""

    def __repr__(self) -> str:
        """Without the secret: it ends up in messages and logs."""
        return f"S3Keys({self.access})"


class S3Backend:
    """Objects below *prefix* (``""``: all) of *bucket*. *endpoint*: empty for Amazon's. *ca*: certificates to trust
    besides the system's, a PEM file."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        keys: S3Keys,
        *,
        endpoint: str = "",
        region: str = "",
        ca: Path | None = None,
        pace: Pace = UNLIMITED,
        silence_seconds_max: float = SILENCE_SECONDS_MAX,
    ) -> None:
        self._where = f"s3://{bucket}/{prefix}".rstrip("/")
        self._pace = pace
        self._knows_conditions = True
        self._may_send_parts = True
        self._knows_ranges = True
        self._wholes: dict[str, bytes] = {}
        self._whole_lock = threading.Lock()
        client: ClientConfig = {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS_MAX),
            "read_timeout": timedelta(seconds=silence_seconds_max),
            "timeout": timedelta(seconds=REQUEST_SECONDS_MAX),
        }
        if ca is not None:
            client["root_certificate"] = ca.read_bytes()
        config: dict[str, Any] = {
            "region": region or DEFAULT_REGION,
            "access_key_id": keys.access,
            "secret_access_key": keys.secret,
            "checksum_algorithm": "sha256",
            "disable_bulk_delete": True,  # not every service has it
            "virtual_hosted_style_request": not endpoint,
        }
        if endpoint:
            config["endpoint"] = endpoint
        if keys.session:
            config["session_token"] = keys.session
        with _clean_environment():
            self._store = S3Store(
                bucket, prefix=prefix or None, client_options=client, retry_config={"max_retries": 0}, **config
            )

    def put(self, name: str, data: bytes) -> None:
        check_name(name)
        if self._stands(name, data):
            return
        try:
            etag = self._upload(name, data)
        except FileExistsError:
            if not self._stands(name, data):
                raise BackendUnavailable(f"{self._where}: {name} was there and is not any more") from None
            return
        if etag not in _etags(data) and self.get(name) != data:
            self.delete(name)
            raise BackendUnavailable(f"{self._where}: {name} came out with other bytes than were sent")

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        data = self._get(name, start, length)
        self._pace.spend(len(data))
        return data

    def size(self, name: str) -> int | None:
        check_name(name)
        head = self._head(name)
        return None if head is None else int(head["size"])

    def list(self, prefix: str) -> Iterator[Found]:
        """obstore's own prefixes are whole components."""
        folder = prefix.rpartition("/")[0]
        with self._named("cannot be listed"):
            for some in obstore.list(self._store, prefix=folder or None):
                for meta in some:
                    if meta["path"].startswith(prefix) and is_name(meta["path"]):
                        yield Found(meta["path"], meta["size"], meta["last_modified"].timestamp())

    def delete(self, name: str) -> None:
        check_name(name)
        with self._named(f"{name} cannot be deleted"):
            self._wholes.pop(name, None)
            try:
                obstore.delete(self._store, name)
            except FileNotFoundError as error:
                self._check_bucket(error)

    def close(self) -> None:
        """Connections end by themselves."""

    # -- steps -------------------------------------------------------------------------------------------------------

    def _stands(self, name: str, data: bytes) -> bool:
        """Whether *name* is there; raises ObjectExists when it is another."""
        head = self._head(name)
        if head is None:
            return False
        same = head["size"] == len(data) and (head["e_tag"] in _etags(data) or self.get(name) == data)
        if not same:
            hint = "It is not replaced. `holdfast vault verify` tells whether it is damaged."
            raise ObjectExists(f"{self._where}: {name} exists with other content", hint=hint)
        return True

    def _upload(self, name: str, data: bytes) -> str | None:
        """The ETag. Raises FileExistsError where the service says that the name is taken."""
        with self._named(f"{name} cannot be written"):
            slowly = self._pace and len(data) > PART_BYTES and self._may_send_parts
            if slowly and (etag := self._upload_slowly(name, data)) is not None:
                return etag
            self._pace.spend(len(data))
            if self._knows_conditions:
                try:
                    return obstore.put(self._store, name, data, mode="create", use_multipart=False)["e_tag"]
                except exceptions.AlreadyExistsError:
                    raise FileExistsError from None
                except (exceptions.BaseError, NotImplementedError) as error:
                    if _answer(error).status not in (501, 405) and not isinstance(error, NotImplementedError):
                        raise
                    self._knows_conditions = False
            return obstore.put(self._store, name, data, mode="overwrite", use_multipart=False)["e_tag"]

    def _upload_slowly(self, name: str, data: bytes) -> str | None:
        """In parts, each when it may go; None where that is refused (a policy that asks for conditional puts)."""
        source: Any = _Paced(data, self._pace)
        try:
            put = obstore.put(self._store, name, source, use_multipart=True, chunk_size=PART_BYTES, max_concurrency=1)
        except exceptions.PermissionDeniedError:
            self._may_send_parts = False
            return None
        return put["e_tag"] or ""

    def _get(self, name: str, start: int, length: int | None) -> bytes:
        with self._named(f"{name} cannot be read"):
            try:
                if start == 0 and length is None:
                    return self._whole(name)
                if length == 0:
                    raise _RangeUnfit
                return self._part(name, start, length)
            except FileNotFoundError as error:
                self._check_bucket(error)
            except _RangeUnfit:
                if self._head(name) is not None:
                    return b""
        raise ObjectMissing(f"object {name} is missing", hint="`holdfast vault verify` names what it held.")

    def _whole(self, name: str) -> bytes:
        got = obstore.get(self._store, name)
        data = bytes(got.bytes())
        if len(data) != got.meta["size"]:
            raise BackendUnavailable(f"{self._where}: {name} came with {len(data)} of {got.meta['size']} bytes")
        return data

    def _part(self, name: str, start: int, length: int | None) -> bytes:
        if self._knows_ranges:
            try:
                if length is None:
                    return bytes(obstore.get(self._store, name, options={"range": {"offset": start}}).bytes())
                return bytes(obstore.get_range(self._store, name, start=start, length=length))
            except exceptions.GenericError as error:
                if _answer(error).status == 416:
                    raise _RangeUnfit from None
                if "non-partial" not in str(error):
                    raise
                self._knows_ranges = False
        data = self._kept_whole(name)
        return data[start:] if length is None else data[start : start + length]

    def _kept_whole(self, name: str) -> bytes:
        """Where there are no ranges: the next part asked for is one of the same pack, mostly."""
        with self._whole_lock:
            data = self._wholes.get(name)
        if data is None:
            data = self._whole(name)
            with self._whole_lock:
                self._wholes[name] = data
                while len(self._wholes) > WHOLES_MAX:
                    self._wholes.pop(next(iter(self._wholes)))
        return data

    def _head(self, name: str) -> Any:
        with self._named(f"{name} cannot be looked at"):
            try:
                return obstore.head(self._store, name)
            except FileNotFoundError as error:
                self._check_bucket(error)
                return None

    def _check_bucket(self, error: FileNotFoundError) -> None:
        if _answer(error).code == "NoSuchBucket":
            hint = "Make the bucket, or look whether name, endpoint and region are right."
            raise ConfigurationError(f"{self._where}: there is no such bucket", hint=hint) from None

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Errors of obstore as those of the port."""
        try:
            yield
        except (exceptions.BaseError, FileNotFoundError) as error:
            answer = _answer(error)
            reason = f"{self._where}: {what}: {answer.text}"
            if answer.code in _FULL or answer.status == 507:
                raise BackendFull(reason, hint="Free space or quota there, then repeat the command.") from None
            if answer.code == "NoSuchBucket":
                hint = "Make the bucket, or look whether name, endpoint and region are right."
                raise ConfigurationError(reason, hint=hint) from None
            if answer.code in _REDIRECTS or answer.status in (301, 307, 308):
                raise ConfigurationError(reason, hint="Give the bucket's region: ...?region=R.") from None
            if answer.code == "RequestTimeTooSkewed":
                raise BackendRefused(reason, hint="Set this machine's clock.") from None
            if answer.status in (401, 403):
                raise BackendRefused(reason, hint="Look at the access keys, and what their account may do.") from None
            if answer.status is not None and 400 <= answer.status < 500 and answer.status not in (404, 408, 409, 429):
                raise BackendRefused(reason, hint="The service does not take this request.") from None
            raise BackendUnavailable(reason) from None


@contextmanager
def _clean_environment() -> Iterator[None]:
    """obstore takes what is not given from ``AWS_...`` variables: a session's token for other keys, say."""
    with _environment:
        kept = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        for name in kept:
            del os.environ[name]
        try:
            yield
        finally:
            os.environ.update(kept)


class _RangeUnfit(Exception):
    """The range begins behind the object's end, or is empty."""


class _Paced(io.RawIOBase):
    """Bytes that may be read only so fast."""

    def __init__(self, data: bytes, pace: Pace) -> None:
        self._data = memoryview(data)
        self._pace = pace
        self._at = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece = bytes(self._data[self._at :] if size < 0 else self._data[self._at : self._at + size])
        self._pace.spend(len(piece))
        self._at += len(piece)
        return piece


class _Answer(NamedTuple):
    """What an error of obstore says of the service's answer. *status*: None when there was none."""

    status: int | None
    code: str
    text: str


def _answer(error: BaseException) -> _Answer:
    told = str(error)
    status, code, message = _STATUS.search(told), _CODE.search(told), _MESSAGE.search(told)
    if status is None:
        text = told.partition("\n")[0].rpartition(" - ")[2]
        causes = _CAUSE.findall(told)
        return _Answer(None, "", f"{text} ({causes[0].lower()})" if causes else text)
    words = [status.group(1) + status.group(2), code.group(1) if code else "", message.group(1) if message else ""]
    return _Answer(int(status.group(1)), words[1], ", ".join(word for word in words if word))


def _etags(data: bytes) -> frozenset[str]:
    """What the ETag is when it is made from the bytes: put at once, or in parts."""
    whole = hashlib.md5(data, usedforsecurity=False).hexdigest()
    etags = {f'"{whole}"', whole}
    if len(data) > PART_BYTES:
        parts = [data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)]
        digests = b"".join(hashlib.md5(part, usedforsecurity=False).digest() for part in parts)
        etags.add(f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"')
    return frozenset(etags)
