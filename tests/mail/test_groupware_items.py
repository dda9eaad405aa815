"""Events and contacts: what finding them needs, of any file."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.mail.groupware_items import Collection, Item, collection, item, owner_of

EVENT = b"""BEGIN:VCALENDAR\r
VERSION:2.0\r
BEGIN:VTIMEZONE\r
TZID:Europe/Berlin\r
END:VTIMEZONE\r
BEGIN:VEVENT\r
UID:event-1\r
SUMMARY;LANGUAGE=de:Besprechung\\, gro\xc3\x9f\r
 e Runde\r
LOCATION:Raum 7\r
DTSTART;TZID="Europe/Berlin":20261117T090000\r
END:VEVENT\r
END:VCALENDAR\r
"""
CARD = b"BEGIN:VCARD\nUID:card-1\nFN:Anna M\xc3\xbcller\nitem1.EMAIL;TYPE=work:anna@example.org\nEND:VCARD\n"


def test_an_event_and_a_contact() -> None:
    assert item(EVENT) == Item("event", "event-1", "Besprechung, große Runde", "20261117T090000", "Raum 7")
    assert item(CARD) == Item("contact", "card-1", "Anna Müller", "", "anna@example.org")
    assert item(b"BEGIN:VCALENDAR\nEND:VCALENDAR\n") is None


def test_collections() -> None:
    assert collection(b'{"tag": "VCALENDAR", "D:displayname": "Team"}', b"abc") == Collection("Team", "calendar")
    assert collection(b"broken", b"abc") == Collection("abc", "")
    assert owner_of(b"collection-root/alice@example.org/abc") == "alice@example.org"
    assert owner_of(b"collection-root") == ""


@given(st.binary(max_size=300))
def test_any_bytes_are_an_item_or_none(data: bytes) -> None:
    item(data)
    item(b"BEGIN:VEVENT\n" + data + b"\nEND:VEVENT\n")
    collection(data, data)
