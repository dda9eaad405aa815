"""A bad line between us and real servers: cut, stalled, throttled, answers lost. What was put is there, whole, once."""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Iterator

import pytest

from holdfast.errors import ConfigurationError, HoldfastError
from holdfast.vault.backends.s3 import S3Backend, S3Keys
from holdfast.vault.backends.sftp import SftpAccount, SftpBackend
from holdfast.vault.pace import Pace
from holdfast.vault.patient import Patience, PatientBackend, Transfer
from holdfast.vault.port import Backend, BackendRefused, BackendUnavailable, ObjectExists
from tests.vault.backends import servers
from tests.vault.backends.line import SLOW_DOWN, BadLine, Fault

SILENCE_SECONDS = 0.6
SFTP_SECONDS = 2.5
"""A whole call, connecting included."""
DATA = random.Random(3).randbytes(150_000)


class Line:
    """A store behind a bad line, and the same store beside it."""

    def __init__(self, line: BadLine, bad: Backend, good: Backend) -> None:
        self.line = line
        self.good = good
        self.troubles: list[str] = []
        patience = Patience(attempts_max=5, pause_seconds=0.01)
        self.bad = PatientBackend(bad, patience, progress=self._heard, wait=lambda s: time.sleep(s / 10))

    def _heard(self, moved: Transfer) -> None:
        if moved.trouble:
            self.troubles.append(moved.trouble)


def _s3(server: servers.S3Server, line: BadLine) -> Line:
    prefix, keys = secrets.token_hex(4), S3Keys(*server.keys)
    bad = S3Backend(
        servers.BUCKET, prefix, keys, endpoint=f"http://127.0.0.1:{line.port}", silence_seconds_max=SILENCE_SECONDS
    )
    return Line(line, bad, S3Backend(servers.BUCKET, prefix, keys, endpoint=server.endpoint))


def _sftp(server: servers.SftpServer, line: BadLine) -> Line:
    known = server.folder / f"known-{line.port}"
    known.write_text(server.known_hosts.read_text().replace(f":{server.port} ", f":{line.port} "))
    folder = f"{server.folder}/{secrets.token_hex(4)}"
    bad = SftpBackend(
        SftpAccount("root", "127.0.0.1", line.port, server.key, known),
        folder,
        create=True,
        call_seconds_max=SFTP_SECONDS,
        bytes_per_second_min=1e6,
    )
    good = SftpBackend(
        SftpAccount("root", "127.0.0.1", server.port, server.key, server.known_hosts), folder, create=True
    )
    return Line(line, bad, good)


@pytest.fixture(params=["moto", "rclone", "sshd"])
def behind(request: pytest.FixtureRequest) -> Iterator[Line]:
    server = request.getfixturevalue(request.param)
    line = BadLine(server.port)
    made = _sftp(server, line) if isinstance(server, servers.SftpServer) else _s3(server, line)
    yield made
    made.bad.close()
    made.good.close()
    line.close()


def whole(behind: Line, name: str) -> None:
    assert behind.good.get(name) == DATA
    with pytest.raises(ObjectExists):
        behind.good.put(name, b"other")


def test_cut_anywhere_in_a_put(behind: Line) -> None:
    cuts = [0, 200, 3000, 20_000, len(DATA), len(DATA) + 2500, len(DATA) + 4500]
    for number, after in enumerate(cuts):
        behind.line.arm(Fault("cut", after))
        behind.bad.put(f"packs/{number:02}", DATA)
        behind.line.arm()
        whole(behind, f"packs/{number:02}")
    assert behind.line.struck >= len(cuts) - 2
    assert len([*behind.good.list("")]) == len(cuts)


def test_the_answer_is_lost_after_success(behind: Line) -> None:
    for number, after in enumerate((10, len(DATA) // 2, len(DATA) + 100, len(DATA) + 3000)):
        behind.line.arm(Fault("swallow", after))
        behind.bad.put(f"packs/{number:02}", DATA)
        behind.line.arm()
        whole(behind, f"packs/{number:02}")
    behind.line.arm(Fault("swallow", 10))
    assert behind.bad.get("packs/00") == DATA
    behind.line.arm(Fault("swallow", 10))
    behind.bad.delete("packs/00")
    assert behind.good.size("packs/00") is None


def test_a_server_that_falls_silent_is_left(behind: Line) -> None:
    behind.line.arm(Fault("stall", 30_000))
    behind.bad.put("packs/00", DATA)
    whole(behind, "packs/00")
    assert behind.troubles
    behind.line.arm(Fault("stall", 0))
    assert [found.name for found in behind.bad.list("packs/")] == ["packs/00"]


def test_a_line_that_stays_bad_is_told_in_bounded_time(behind: Line) -> None:
    behind.line.arm(*[Fault("cut", 100)] * 50)
    began = time.monotonic()
    with pytest.raises(BackendUnavailable) as refused:
        behind.bad.put("packs/00", DATA)
    assert refused.value.retry
    assert time.monotonic() - began < 10
    assert len(behind.troubles) == 4


def test_throttling_is_waited_out(moto: servers.S3Server) -> None:
    line = BadLine(moto.port)
    behind = _s3(moto, line)
    line.arm(*[Fault("answer", 0, SLOW_DOWN)] * 3)
    behind.bad.put("packs/00", DATA)
    whole(behind, "packs/00")
    assert ["503 Service Unavailable" in trouble for trouble in behind.troubles] == [True] * 3
    line.close()


def _refused(call: object) -> HoldfastError:
    assert callable(call)
    with pytest.raises(HoldfastError) as refused:
        call()
    assert refused.value.hint
    return refused.value


def test_s3_says_what_is_wrong(moto: servers.S3Server) -> None:
    def bucket(name: str, keys: S3Keys) -> S3Backend:
        return S3Backend(name, "", keys, endpoint=moto.endpoint)

    wrong = bucket(servers.BUCKET, S3Keys(moto.keys[0], "wrong"))
    assert isinstance(_refused(lambda: wrong.put("packs/00", DATA)), BackendRefused)
    assert "SignatureDoesNotMatch" in str(_refused(lambda: [*wrong.list("packs/")]))
    none = bucket("there-is-no-such-bucket", S3Keys(*moto.keys))
    assert isinstance(_refused(lambda: none.put("packs/00", DATA)), ConfigurationError)
    assert isinstance(_refused(lambda: none.get("packs/00")), ConfigurationError)
    assert isinstance(_refused(lambda: [*none.list("packs/")]), ConfigurationError)
    nobody = S3Backend("bucket", "", S3Keys("a", "b"), endpoint=f"http://127.0.0.1:{servers.free_port()}")
    assert "connect" in str(_refused(lambda: nobody.get("packs/00")))


def test_the_environment_does_not_say_what_the_location_does_not(
    moto: servers.S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = {"ENDPOINT_URL": "http://127.0.0.1:1", "SESSION_TOKEN": "x", "SKIP_SIGNATURE": "true", "REGION": "x"}
    for name, value in strange.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store = S3Backend(servers.BUCKET, secrets.token_hex(4), S3Keys(*moto.keys), endpoint=moto.endpoint)
    store.put("packs/00", DATA)
    assert os.environ["AWS_SESSION_TOKEN"] == "x"


def test_a_service_without_ranges_is_asked_once_for_each_object(rclone: servers.S3Server) -> None:
    line = BadLine(rclone.port)
    behind = _s3(rclone, line)
    for number in range(3):
        behind.good.put(f"packs/{number:02}", DATA)
    parts = [(f"packs/{number:02}", at) for number in range(3) for at in range(0, len(DATA), 10_000)]
    assert all(behind.bad.get(name, at, 10_000) == DATA[at : at + 10_000] for name, at in parts)
    assert line.down_bytes < 5 * len(DATA)
    behind.bad.delete("packs/00")
    behind.good.put("packs/00", b"other")
    assert behind.bad.get("packs/00", 1, 3) == b"the"
    line.close()


def test_an_s3_account_that_may_not_delete(moto: servers.S3Server) -> None:
    assert moto.add_only is not None
    store = S3Backend(servers.BUCKET, secrets.token_hex(4), S3Keys(*moto.add_only), endpoint=moto.endpoint)
    store.put("packs/00", DATA)
    assert isinstance(_refused(lambda: store.delete("packs/00")), BackendRefused)
    assert store.get("packs/00") == DATA


def test_an_sftp_account_that_may_not_delete(sshd: servers.SftpServer) -> None:
    account = SftpAccount(servers.APPEND_ONLY_USER, "127.0.0.1", sshd.port, sshd.key, sshd.known_hosts)
    store = SftpBackend(account, f"{sshd.add_only}/{secrets.token_hex(4)}", create=True)
    store.put("packs/00", DATA)
    assert isinstance(_refused(lambda: store.delete("packs/00")), BackendRefused)
    assert store.get("packs/00") == DATA
    store.close()


def test_sftp_checks_the_hosts_key(sshd: servers.SftpServer) -> None:
    other = sshd.folder / "other-hosts"
    client = (sshd.folder / "client.pub").read_text().split()
    other.write_text(f"[127.0.0.1]:{sshd.port} {client[0]} {client[1]}\n")
    empty = sshd.folder / "no-hosts"
    empty.write_text("")
    for known in (other, empty):
        store = SftpBackend(SftpAccount("root", "127.0.0.1", sshd.port, sshd.key, known), str(sshd.folder))
        error = _refused(lambda store=store: store.put("packs/00", DATA))
        assert isinstance(error, BackendRefused)
        assert "host key" in error.message
        store.close()
    missing = SftpAccount("root", "127.0.0.1", sshd.port, sshd.key, sshd.folder / "none")
    store = SftpBackend(missing, str(sshd.folder))
    assert isinstance(_refused(lambda: store.get("packs/00")), ConfigurationError)
    store.close()


def test_sftp_says_what_is_wrong(sshd: servers.SftpServer) -> None:
    def store(key: str, port: int = sshd.port, folder: str = str(sshd.folder)) -> SftpBackend:
        return SftpBackend(SftpAccount("root", "127.0.0.1", port, sshd.folder / key, sshd.known_hosts), folder)

    wrong, none, down = store("host"), store("none"), store("client", servers.free_port())
    assert "does not let us in" in _refused(lambda: wrong.get("packs/00")).message
    assert "cannot be used as a key" in _refused(lambda: none.get("packs/00")).message
    assert isinstance(_refused(lambda: down.get("packs/00")), BackendUnavailable)
    bare = store("client")
    assert "holds no vault" in _refused(lambda: bare.put("packs/00", DATA)).message
    assert not (sshd.folder / "packs").exists()
    for some in (wrong, none, down, bare):
        some.close()


@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_a_bandwidth_limit_sends_in_parts(kind: str, request: pytest.FixtureRequest) -> None:
    server: servers.S3Server = request.getfixturevalue(kind)
    now, largest = [0.0], [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds
        largest[0] = max(largest[0], seconds)

    pace = Pace(1_000_000, clock_seconds=lambda: now[0], wait=wait)
    store = S3Backend(servers.BUCKET, secrets.token_hex(4), S3Keys(*server.keys), endpoint=server.endpoint, pace=pace)
    data = random.Random(4).randbytes(12_000_000)
    store.put("packs/00", data)
    assert 5 < now[0] < 13
    assert largest[0] < 6, "no more than a part goes at once"
    store.put("packs/00", data)
    assert store.get("packs/00") == data
