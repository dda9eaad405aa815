"""For which recipients the primary's Postfix does nothing but hand a message to the LMTP gate. Pure.

Those a relay may hand to the gate itself. Whatever else Postfix was told to do with mail (look into it, rewrite it,
copy it, send it elsewhere) must go on being done: one such setting, and nobody is on the list. What its
restrictions look at (the client's address, its greeting) they would only see of the relay, so they are not counted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from holdfast.gate.serve import Place

ALTERING: Final = (
    "content_filter",
    "smtpd_proxy_filter",
    "receive_override_options",
    "header_checks",
    "body_checks",
    "milter_header_checks",
    "lmtp_header_checks",
    "lmtp_mime_header_checks",
    "lmtp_nested_header_checks",
    "lmtp_body_checks",
    "lmtp_generic_maps",
    "always_bcc",
    "sender_bcc_maps",
    "recipient_bcc_maps",
    "canonical_maps",
    "sender_canonical_maps",
    "recipient_canonical_maps",
    "masquerade_domains",
    "relocated_maps",
    "transport_maps",
)
"""postconf(5): each does something with a message, or sends it elsewhere. Those that default to another of these
(mime_header_checks to header_checks) say so when they are printed with ``-x``."""
DEFAULTED: Final = {"mime_header_checks": "header_checks", "nested_header_checks": "header_checks"}
PARAMETERS: Final = (*ALTERING, *DEFAULTED, "virtual_transport", "smtpd_milters", "queue_directory")
SERVICES: Final = ("smtp/inet", "25/inet", "cleanup/unix", "lmtp/unix")
"""Those of master.cf through which such a message goes."""


def obstacle(values: Mapping[str, str], overrides: Collection[str], gate: Place, milter: Place) -> str:
    """Why nobody's mail may go straight; empty: nothing speaks against it. *values*: PARAMETERS, as ``postconf -x``
    prints them; *overrides*: the lines of ``postconf -P``."""
    for name in (*ALTERING, *DEFAULTED):
        if values.get(name, ""):
            return f"{name} = {values[name]}"
    for line in overrides:
        name, _, value = (part.strip() for part in line.partition("="))
        service, _, parameter = name.rpartition("/")
        if service in SERVICES and parameter in (*ALTERING, *DEFAULTED, "smtpd_milters", "virtual_transport") and value:
            return f"{name} = {value}"
    queue = values["queue_directory"]
    if place_of(values["virtual_transport"].removeprefix("lmtp:"), queue) not in _names(gate):
        return f"virtual_transport = {values['virtual_transport']}, which is not the gate"
    if place_of(values["smtpd_milters"], queue) not in _names(milter):
        return f"smtpd_milters = {values['smtpd_milters']}, and not the shadow milter alone"
    return ""


def straight(mailboxes: Collection[str], aliases: Collection[str], delimiter: str) -> tuple[str, ...]:
    """Of *mailboxes* (``user@domain``) those that no alias rewrites. *aliases*: the keys of ``virtual_alias_maps``
    (virtual(5), "TABLE SEARCH ORDER"): a user's address, extension or not; a user alone; ``@domain``."""
    rewritten = {_plain(key, delimiter) for key in aliases}
    return tuple(
        sorted(
            name
            for name in mailboxes
            if not name.startswith("@")
            and not {name, name.rpartition("@")[0], "@" + name.rpartition("@")[2]} & rewritten
        )
    )


def _plain(key: str, delimiter: str) -> str:
    """*key* without its extension."""
    user, at, domain = key.rpartition("@") if "@" in key else (key, "", "")
    for mark in delimiter:
        user = user[:1] + user[1:].partition(mark)[0]
    return f"{user}{at}{domain}"


def place_of(text: str, queue: str) -> Place | None:
    """Postfix's way to name a socket: ``unix:private/name``, ``unix:/path``, ``inet:[host]:port``, ``inet:host:port``.
    None: it is none, or there are several."""
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest and " " not in rest and "," not in rest:
        return Place(rest if rest.startswith("/") else f"{queue}/{rest}")
    host, _, port = rest.rpartition(":")
    return Place("", host.strip("[]"), int(port)) if kind == "inet" and host and port.isdigit() else None


def _names(place: Place) -> tuple[Place, ...]:
    """By which a program of this machine may call it."""
    if place.host not in ("0.0.0.0", "::"):
        return (place,)
    return tuple(place._replace(host=host) for host in ("127.0.0.1", "::1", "localhost"))
