"""A store in an SFTP account.

As in a folder: an object is written in ``.tmp`` beside, synced (``fsync@openssh.com``), linked to its name
(``hardlink@openssh.com``), which fails when the name is taken, and its folder synced. Servers without hard links get
the protocol's own rename, which does not replace either (draft-ietf-secsh-filexfer-02, section 6.5). A server without
fsync is believed to have written what it acknowledged.

Version 3 of the protocol has one answer for "exists", "no room" and all else: a plain failure. What it meant is found
by looking.

Objects have mode 0400, so an account that may not remove, rename or set attributes cannot change what it once wrote:
that makes it append-only. In OpenSSH::

    ForceCommand internal-sftp -P remove,rename,posix-rename,rmdir,setstat,fsetstat,lsetstat,symlink

Such an account cannot clean ``.tmp`` either; names there are second names of objects, and cost no room.

The host's key is always checked. One connection, made with the first call and again after it broke; its event loop
runs in a thread of its own.
"""

from __future__ import annotations

import asyncio
import secrets
import stat
import threading
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import asyncssh

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

T = TypeVar("T")

CONNECT_SECONDS_MAX: Final = 20.0
ALIVE_SECONDS: Final = 15
"""Between questions whether the server still lives; after three without an answer the connection is given up."""
CALL_SECONDS_MAX: Final = 120.0
BYTES_PER_SECOND_MIN: Final = 30_000
"""A call may take the time that its bytes need at this rate, besides."""
TEMPORARY_FOLDER: Final = ".tmp"
TEMPORARY_SECONDS_MAX: Final = 24 * 3600.0
VAULT_NAME: Final = "vault.json"
FILE_MODE: Final = 0o400
FOLDER_MODE: Final = 0o700
ROOM_BYTES_MIN: Final = 1024 * 1024
"""A server with less than this and the object's size left failed because it is full."""

_OPEN_NEW: Final = asyncssh.FXF_WRITE | asyncssh.FXF_CREAT | asyncssh.FXF_EXCL
_ABSENT: Final = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath, asyncssh.SFTPNotADirectory)


_Listing = list[Found]


class SftpAccount(NamedTuple):
    """*key*: a private key without passphrase; None: the agent's and the usual files. *known_hosts*: None for
    ``~/.ssh/known_hosts`` and ``/etc/ssh/ssh_known_hosts``."""

    user: str
    host: str
    port: int = 22
    key: Path | None = None
    known_hosts: Path | None = None

    def __str__(self) -> str:
        return f"sftp://{self.user}@{self.host}:{self.port}"


class SftpBackend:
    """Objects below *root* (absolute, or below the account's own folder) of *account*.

    With *create* the folder is made, and may be written to before it holds a vault (see ``folder``).
    """

    def __init__(
        self,
        account: SftpAccount,
        root: str,
        *,
        create: bool = False,
        pace: Pace = UNLIMITED,
        call_seconds_max: float = CALL_SECONDS_MAX,
        bytes_per_second_min: float = BYTES_PER_SECOND_MIN,
    ) -> None:
        self._account = account
        self._root = root.removeprefix("~/")
        self._may_be_new = create
        self._vault_seen = False
        self._pace = pace
        self._call_seconds_max = call_seconds_max
        self._bytes_per_second_min = bytes_per_second_min
        self._where = f"{account}/{root.lstrip('/')}"
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: asyncssh.SSHClientConnection | None = None
        self._client: asyncssh.SFTPClient | None = None
        self._connecting: asyncio.Lock | None = None
        self._swept = False
        self._folders: set[str] = set()

    def put(self, name: str, data: bytes) -> None:
        check_name(name)
        self._pace.spend(len(data))
        self._run(self._put(name, data), f"cannot write {name}", len(data))
        if name == VAULT_NAME:
            self._may_be_new = False

    def get(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        data = self._run(self._get(name, start, length), f"cannot read {name}", length or 0)
        self._pace.spend(len(data))
        return data

    def size(self, name: str) -> int | None:
        check_name(name)
        return self._run(self._size(name), f"cannot look at {name}")

    def list(self, prefix: str) -> Iterator[Found]:
        return iter(self._run(self._list(prefix), "cannot list the folder"))

    def delete(self, name: str) -> None:
        check_name(name)
        self._run(self._delete(name), f"cannot delete {name}")

    def close(self) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is None:
            return
        asyncio.run_coroutine_threadsafe(self._disconnect(), loop).result(CONNECT_SECONDS_MAX)
        loop.call_soon_threadsafe(loop.stop)

    # -- the connection ----------------------------------------------------------------------------------------------

    def _run(self, call: Coroutine[Any, Any, T], what: str, size: int = 0) -> T:
        """In the loop's thread, from any thread; errors as those of the port."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_serve, args=(self._loop,), name="vault-sftp", daemon=True).start()
            loop = self._loop
        seconds = self._call_seconds_max + size / self._bytes_per_second_min
        future = asyncio.run_coroutine_threadsafe(self._within(call, seconds, size), loop)
        reason = f"{self._where}: {what}"
        try:
            return future.result()
        except TimeoutError:
            raise BackendUnavailable(f"{reason}: no answer within {seconds:.0f} s") from None
        except asyncssh.SFTPPermissionDenied as error:
            raise BackendRefused(f"{reason}: {error.reason}", hint="Look what the account may do there.") from None
        except (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded) as error:
            raise _full(f"{reason}: {error.reason}") from None
        except (asyncssh.Error, OSError) as error:
            raise BackendUnavailable(f"{reason}: {_text(error)}") from None

    async def _within(self, call: Coroutine[Any, Any, T], seconds: float, size: int) -> T:
        """After anything but a refusal by the server itself the connection is made anew: who knows what it is worth."""
        task = asyncio.ensure_future(call)
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            await self._disconnect()  # what the call does to clean up fails at once, too
            task.cancel()
            await asyncio.wait({task})
            raise TimeoutError
        try:
            return task.result()
        except asyncssh.SFTPFailure:
            if await self._full(size):
                raise _full(f"{self._where}: no room is left there") from None
            raise
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, OSError, asyncssh.DisconnectError):
            await self._disconnect()
            raise

    async def _full(self, size: int) -> bool:
        if not size:
            return False
        try:
            room = await (await self._sftp()).statvfs(self._root)
        except asyncssh.SFTPError:
            return False  # a server that cannot tell
        return room.bavail * room.frsize < size + ROOM_BYTES_MIN or room.favail == 0 < room.files

    async def _sftp(self) -> asyncssh.SFTPClient:
        if self._connecting is None:
            self._connecting = asyncio.Lock()
        async with self._connecting:
            if self._client is None:
                await self._connect()
            assert self._client is not None
            return self._client

    async def _connect(self) -> None:
        account = self._account
        options: dict[str, Any] = {"known_hosts": _known_hosts(account)}
        if account.key is not None:
            options |= {"client_keys": [_key(account.key)], "agent_path": None}
        hint = ""
        try:
            self._connection = await asyncssh.connect(
                account.host,
                account.port,
                username=account.user,
                config=None,
                preferred_auth="publickey",
                connect_timeout=CONNECT_SECONDS_MAX,
                login_timeout=CONNECT_SECONDS_MAX,
                keepalive_interval=ALIVE_SECONDS,
                **options,
            )
            self._client = await self._connection.start_sftp_client()
        except asyncssh.HostKeyNotVerifiable as error:
            hint = "Compare the host's key with its administrator's, and add it to known_hosts (ssh-keyscan)."
            raise BackendRefused(
                f"{account}: its host key is not known or changed ({error.reason})", hint=hint
            ) from None
        except asyncssh.PermissionDenied as error:
            hint = "Look whether the account has this key's public half, and name the key: ...?key=FILE."
            raise BackendRefused(f"{account}: it does not let us in ({error.reason})", hint=hint) from None
        except asyncssh.ChannelOpenError as error:
            raise BackendRefused(f"{account}: it offers no SFTP ({error.reason})", hint="") from None
        if self._may_be_new and not self._vault_seen:
            await self._make_folders(self._client, self._root)

    async def _disconnect(self) -> None:
        connection, self._connection, self._client = self._connection, None, None
        self._folders.clear()
        if connection is not None:
            connection.abort()
            with suppress(asyncssh.Error, OSError):
                await connection.wait_closed()

    # -- calls -------------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    async def _put(self, name: str, data: bytes) -> None:
        sftp = await self._sftp()
        await self._check_vault(sftp, writing=True)
        if await self._stands(sftp, name, data):
            return
        folder = self._path(name).rpartition("/")[0]
        for wanted in (folder, self._path(TEMPORARY_FOLDER)):
            if wanted not in self._folders:
                await self._make_folders(sftp, wanted)
                self._folders.add(wanted)
        temporary = self._path(f"{TEMPORARY_FOLDER}/{secrets.token_hex(12)}")
        try:
            modified_at = await _write(sftp, temporary, data)
            await self._sweep(sftp, modified_at)
            if not await _named(sftp, temporary, self._path(name)) and not await self._stands(sftp, name, data):
                raise BackendUnavailable(f"{self._where}: {name} was written and cannot be given its name")
        finally:
            with suppress(asyncssh.SFTPError):  # renamed, or an append-only account
                await sftp.remove(temporary)
        await _sync_folder(sftp, folder)

    async def _stands(self, sftp: asyncssh.SFTPClient, name: str, data: bytes) -> bool:
        """Whether *name* is there; raises ObjectExists when it is another."""
        size = await self._size(name)
        if size is None:
            return False
        if size != len(data) or await self._get(name, 0, None) != data:
            hint = "It is not replaced. `holdfast vault verify` tells whether it is damaged."
            raise ObjectExists(f"{self._where}: {name} exists with other content", hint=hint)
        return True

    async def _get(self, name: str, start: int, length: int | None) -> bytes:
        sftp = await self._sftp()
        try:
            async with sftp.open(self._path(name), "rb") as file:
                size = (await file.stat()).size or 0
                wanted = max(size - start, 0) if length is None else max(min(length, size - start), 0)
                data: bytes = await file.read(wanted, start) if wanted else b""
        except _ABSENT:
            await self._check_vault(sftp)
            raise ObjectMissing(
                f"object {name} is missing", hint="`holdfast vault verify` names what it held."
            ) from None
        if len(data) != wanted:
            raise BackendUnavailable(f"{self._where}: {name} came with {len(data)} of {wanted} bytes")
        return data

    async def _size(self, name: str) -> int | None:
        sftp = await self._sftp()
        try:
            found = await sftp.stat(self._path(name))
        except _ABSENT:
            await self._check_vault(sftp)
            return None
        return found.size if found.permissions is None or stat.S_ISREG(found.permissions) else None

    async def _list(self, prefix: str) -> _Listing:
        sftp = await self._sftp()
        await self._check_vault(sftp)
        found: _Listing = []
        await self._collect(sftp, "", prefix, found)
        return found

    async def _collect(self, sftp: asyncssh.SFTPClient, path: str, prefix: str, found: _Listing) -> None:
        below = []
        with suppress(*_ABSENT):
            async for entry in sftp.scandir(f"{self._root}/{path}".rstrip("/")):
                last = entry.filename if isinstance(entry.filename, str) else entry.filename.decode("utf-8", "replace")
                mode = entry.attrs.permissions or 0
                if last.startswith("."):
                    continue
                if stat.S_ISDIR(mode):
                    below.append(f"{path}{last}/")
                elif (path + last).startswith(prefix) and is_name(path + last) and not stat.S_ISLNK(mode):
                    found.append(Found(path + last, entry.attrs.size or 0, float(entry.attrs.mtime or 0)))
        for folder in below:
            if folder.startswith(prefix) or prefix.startswith(folder):
                await self._collect(sftp, folder, prefix, found)

    async def _delete(self, name: str) -> None:
        sftp = await self._sftp()
        await self._check_vault(sftp, writing=True)
        path = self._path(name)
        try:
            await sftp.remove(path)
        except _ABSENT:
            return
        await _sync_folder(sftp, path.rpartition("/")[0])

    # -- steps -------------------------------------------------------------------------------------------------------

    async def _check_vault(self, sftp: asyncssh.SFTPClient, *, writing: bool = False) -> None:
        """The server may have lost its disk: nothing is written into a bare mount point, nothing taken for deleted."""
        try:
            await sftp.stat(self._path(VAULT_NAME))
        except _ABSENT:
            if self._vault_seen or (writing and not self._may_be_new):
                hint = "Look whether its filesystem is mounted there. A new vault: `holdfast vault init`."
                raise BackendUnavailable(f"{self._where} holds no vault", hint=hint) from None
        else:
            self._vault_seen = True

    async def _make_folders(self, sftp: asyncssh.SFTPClient, path: str) -> None:
        """*path* and what is missing above it."""
        try:
            await sftp.stat(path)
            return
        except _ABSENT:
            above = path.rpartition("/")[0]
            if above:
                await self._make_folders(sftp, above)
        with suppress(asyncssh.SFTPFailure):  # another writer made it
            await sftp.mkdir(path, asyncssh.SFTPAttrs(permissions=FOLDER_MODE))
        await _sync_folder(sftp, above or ("/" if path.startswith("/") else "."))

    async def _sweep(self, sftp: asyncssh.SFTPClient, now_seconds: float) -> None:
        """Once: files that killed writers left. Both times are the store's."""
        if self._swept:
            return
        self._swept = True
        folder = self._path(TEMPORARY_FOLDER)
        with suppress(asyncssh.SFTPError):
            for entry in await sftp.readdir(folder):
                old = now_seconds - float(entry.attrs.mtime or now_seconds) > TEMPORARY_SECONDS_MAX
                if old and stat.S_ISREG(entry.attrs.permissions or 0):
                    await sftp.remove(f"{folder}/{entry.filename!s}")


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Until :meth:`SftpBackend.close`."""
    try:
        loop.run_forever()
    finally:
        loop.close()


async def _write(sftp: asyncssh.SFTPClient, path: str, data: bytes) -> float:
    """A new file, on the server's disk; returns the store's time."""
    async with sftp.open(path, _OPEN_NEW, asyncssh.SFTPAttrs(permissions=FILE_MODE), encoding=None) as file:
        await file.write(data)
        with suppress(asyncssh.SFTPOpUnsupported):
            await file.fsync()
        status = await file.stat()
    if status.size != len(data):
        raise BackendUnavailable(f"{path}: {status.size} of {len(data)} bytes arrived")
    return float(status.mtime or 0)


async def _named(sftp: asyncssh.SFTPClient, temporary: str, path: str) -> bool:
    """Give the file its name; False when that failed, which may mean that it is taken."""
    try:
        await sftp.link(temporary, path)
        return True
    except (asyncssh.SFTPOpUnsupported, asyncssh.SFTPPermissionDenied, asyncssh.SFTPFailure):
        if await sftp.exists(path):
            return False
    try:
        await sftp.rename(temporary, path)
    except (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists):
        return False
    return True


async def _sync_folder(sftp: asyncssh.SFTPClient, folder: str) -> None:
    """OpenSSH syncs a folder that was opened like a file; others refuse."""
    with suppress(asyncssh.SFTPError):
        async with sftp.open(folder, asyncssh.FXF_READ, encoding=None) as file:
            await file.fsync()


def _known_hosts(account: SftpAccount) -> list[str]:
    """Never empty of meaning: without a file no host is trusted."""
    if account.known_hosts is not None:
        if not account.known_hosts.is_file():
            raise ConfigurationError(
                f"{account.known_hosts} is not there", hint="Make it with ssh-keyscan, and check it."
            )
        return [str(account.known_hosts)]
    usual = (Path("~/.ssh/known_hosts").expanduser(), Path("/etc/ssh/ssh_known_hosts"))
    found = [str(path) for path in usual if path.is_file()]
    if not found:
        hint = "Connect once by hand (sftp) and compare the key, or name a file: ...?known_hosts=FILE."
        raise ConfigurationError(f"{account}: no file of known host keys", hint=hint)
    return found


def _key(path: Path) -> asyncssh.SSHKey:
    try:
        return asyncssh.read_private_key(str(path))
    except (OSError, asyncssh.KeyImportError) as error:
        hint = "Give a private key of OpenSSH without passphrase, readable by this user."
        raise ConfigurationError(f"{path}: cannot be used as a key ({error})", hint=hint) from None


def _full(reason: str) -> BackendFull:
    return BackendFull(reason, hint="Free space or quota there, then repeat the command.")


def _text(error: Exception) -> str:
    return getattr(error, "reason", "") or str(error) or type(error).__name__
