"""What each log server says of itself: its part of the metadata, and how far it holds each stream.

A stream's leader counts another server as "current" by what that one acknowledged before it went away: one that came
back with an empty disk is "current" until the next append, and for up to ten seconds. The server itself does not err
about what it has. One request, answered by all (``/jsz`` of https://docs.nats.io/running-a-nats-service/nats_admin/monitoring).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from holdfast.changes.names import Sequence
from holdfast.errors import HoldfastError
from holdfast.log.connection import Connection
from holdfast.log.stream import StreamInfo
from holdfast.log.wire import Message

PING: Final = "$SYS.REQ.SERVER.PING.JSZ"


class ServerView(NamedTuple):
    meta: Mapping[str, Any]
    """Its account of the metadata's Raft group (``meta_cluster``); empty: it is in none."""
    ends: Mapping[str, Sequence]
    """By stream: the last record that this server holds."""


ServerViews = Mapping[str, ServerView]
"""By server name."""


async def server_views(connection: Connection, count: int, seconds: float) -> ServerViews:
    """Of *count* servers, or of those that answer within *seconds*: none where external servers do not export it."""
    views: dict[str, ServerView] = {}

    def is_last(message: Message) -> bool:
        if not message.status:
            answer = json.loads(message.payload)
            views[answer["server"]["name"]] = _view(answer.get("data") or {})
        return bool(message.status) or len(views) >= count

    with contextlib.suppress(HoldfastError):  # fewer than all answered, or none may: that is what the caller is told
        await connection.request_many(PING, b'{"streams": true}', seconds, is_last)
    return views


def lacking(stream: str, info: StreamInfo, views: ServerViews) -> tuple[str, ...] | None:
    """Servers of *stream* that are not known to hold all its records: down, or being filled. None: nobody said.

    *views* must have been asked for after *info*.
    """
    if not views:
        return None
    names = [replica.server for replica in info.replicas] + ([info.leader] if info.leader else [])
    last = info.state.last
    return tuple(sorted(name for name in names if name not in views or views[name].ends.get(stream, -1) < last))


def _view(data: Mapping[str, Any]) -> ServerView:
    ends = {
        stream["name"]: Sequence(stream["state"]["last_seq"])
        for account in data.get("account_details") or ()
        for stream in account.get("stream_detail") or ()
    }
    return ServerView(data.get("meta_cluster") or {}, ends)
