"""CalDAV and CardDAV through http.client (RFC 4791, RFC 6352), exact about what an error means."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import urllib.parse
from xml.etree import ElementTree

from msgspec import Struct

from holdfast.drill.workload.net import AnswerLost, Declined, Endpoint, NotSent, Patience, tls_context

PROPFIND = """<?xml version="1.0"?>
<d:propfind xmlns:d="DAV:" xmlns:cs="http://calendarserver.org/ns/"><d:prop>
<d:resourcetype/><d:displayname/><d:getetag/><cs:getctag/></d:prop></d:propfind>"""

MAKE_CALENDAR = """<?xml version="1.0"?>
<c:mkcalendar xmlns:d="DAV:" xmlns:c="urn:ietf:params:xml:ns:caldav"><d:set><d:prop>
<d:displayname>{name}</d:displayname></d:prop></d:set></c:mkcalendar>"""

MAKE_ADDRESS_BOOK = """<?xml version="1.0"?>
<d:mkcol xmlns:d="DAV:" xmlns:c="urn:ietf:params:xml:ns:carddav"><d:set><d:prop>
<d:resourcetype><d:collection/><c:addressbook/></d:resourcetype>
<d:displayname>{name}</d:displayname></d:prop></d:set></d:mkcol>"""


class Found(Struct, frozen=True):
    """One entry of a PROPFIND: *kind* is ``collection``, ``calendar``, ``addressbook`` or empty (an item)."""

    href: str
    kind: str
    etag: str
    properties: dict[str, str]


class DavClient:
    """Basic authentication, on a connection made anew whenever the server closed it (Radicale does after each answer).

    Paths are unquoted Unicode.
    """

    def __init__(self, endpoint: Endpoint, patience: Patience, user: str, password: str) -> None:
        self._endpoint = endpoint
        self._token = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        context: ssl.SSLContext | None = tls_context(patience.ca_file) if endpoint.tls == "implicit" else None
        self._connection: http.client.HTTPConnection
        if context is not None:
            self._connection = http.client.HTTPSConnection(
                endpoint.host, endpoint.port, timeout=patience.connect_seconds, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(
                endpoint.host, endpoint.port, timeout=patience.connect_seconds
            )
        self._answer_seconds = patience.answer_seconds

    def make_collection(self, href: str, *, calendar: bool, name: str) -> None:
        body = (MAKE_CALENDAR if calendar else MAKE_ADDRESS_BOOK).format(name=name)
        self._ask("MKCALENDAR" if calendar else "MKCOL", href, body, {"Content-Type": "application/xml"})

    def put(self, href: str, content: str) -> str:
        """The ETag the server gave the item."""
        kind = "text/vcard" if href.endswith(".vcf") else "text/calendar"
        headers, _ = self._ask("PUT", href, content, {"Content-Type": f"{kind}; charset=utf-8"})
        return headers.get("ETag", "")

    def get(self, href: str) -> str:
        return self._ask("GET", href)[1].decode("utf-8", "replace")

    def delete(self, href: str) -> None:
        self._ask("DELETE", href)

    def children(self, href: str) -> list[Found]:
        """What is directly in the collection *href*, itself left out."""
        _, body = self._ask("PROPFIND", href, PROPFIND, {"Depth": "1", "Content-Type": "application/xml"})
        return [entry for entry in parse_multistatus(body) if entry.href.rstrip("/") != href.rstrip("/")]

    def close(self) -> None:
        self._connection.close()

    def _connect(self) -> None:
        try:
            self._connection.connect()
        except OSError as error:
            raise NotSent(f"{self._endpoint}: cannot connect: {error}", retry=True) from error
        connected: socket.socket = self._connection.sock
        connected.settimeout(self._answer_seconds)

    def _ask(
        self, method: str, href: str, body: str = "", headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPMessage, bytes]:
        if self._connection.sock is None:
            self._connect()
        sent = {"Authorization": self._token, **(headers or {})}
        try:
            self._connection.request(method, urllib.parse.quote(href), body.encode() or None, sent)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise NotSent(f"{self._endpoint}: {method}: cut while sending: {error}", retry=True) from error
        try:
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise AnswerLost(f"{self._endpoint}: {method}: no answer: {error}", retry=True) from error
        if response.status >= 300:
            detail = f"{method} {href}: {content[:120].decode('utf-8', 'replace')}"
            raise Declined(str(response.status), detail, temporary=response.status in (408, 429, 502, 503, 504))
        return response.headers, content


def parse_multistatus(body: bytes) -> list[Found]:
    """The entries of a 207 answer (RFC 4918 section 13). The server is our own: its XML is trusted."""
    dav = "{DAV:}"
    found: list[Found] = []
    for response in ElementTree.fromstring(body).iter(f"{dav}response"):
        href = urllib.parse.unquote(response.findtext(f"{dav}href", ""))
        types = response.find(f".//{dav}resourcetype")
        names = [child.tag.rpartition("}")[2] for child in types] if types is not None else []
        special = [name for name in names if name in ("calendar", "addressbook")]
        kind = special[0] if special else ("collection" if "collection" in names else "")
        properties = {
            name: text
            for tag, name in ((f"{dav}displayname", "name"), ("{http://calendarserver.org/ns/}getctag", "tag"))
            if (text := response.findtext(f".//{tag}", ""))
        }
        found.append(Found(href, kind, response.findtext(f".//{dav}getetag", ""), properties))
    return found
