"""Real Postfix, Dovecot and Radicale on a machine of the lab, spoken to from another machine."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from holdfast.drill.lab import mailhost, probes
from holdfast.drill.lab.lab import Lab, Machine
from holdfast.drill.lab.mail_files import MailFormat
from holdfast.drill.lab.mailhost import MailSettings
from holdfast.drill.lab.spec import LabError
from holdfast.drill.lab.tools import wait_until

from .conftest import small

pytestmark = pytest.mark.system

FORMATS: dict[str, MailFormat] = {"main": "maildir", "backup": "mdbox", "third": "sdbox"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three servers, one for each format, and a client."""
    made = Lab.up(small("main:primary", "backup:standby", "third:standby", "client:client", accounts=4))
    try:
        for name, kind in FORMATS.items():
            mailhost.configure(made.machine(name), MailSettings(format=kind))
            mailhost.start(made.machine(name))
        yield made
    finally:
        Lab.down(made.name)


@pytest.fixture
def client(lab: Lab) -> Machine:
    return lab.machine("client")


def subjects(lab: Lab, client: Machine, host: str, number: int) -> list[str]:
    """Of the messages in the INBOX of account *number*, over IMAP."""
    state = lab.state
    session = probes.open_imap(client, host, state.users()[number], mailhost.site_certificate(lab), state.service_name)
    try:
        _, count = session.select("INBOX", readonly=True)
        if count == [b"0"]:
            return []
        _, rows = session.fetch("1:*", "(BODY[HEADER.FIELDS (SUBJECT)])")
        texts = [row[1].decode() for row in rows if isinstance(row, tuple)]
        return [found[1].strip() for text in texts if (found := re.search(r"Subject: (.*)", text))]
    finally:
        session.shutdown()


@pytest.mark.parametrize("server", FORMATS)
def test_a_message_sent_by_smtp_is_in_the_mailbox(lab: Lab, client: Machine, server: str) -> None:
    machine = lab.machine(server)
    address = lab.accounts[0].address
    probes.send(client, machine.state.ipv4, [address], f"Subject: to {server}\r\n\r\nHello\r\n".encode())
    wait_until(lambda: f"to {server}" in subjects(lab, client, machine.state.ipv6, 0), 10, "delivery")
    home = machine.path(f"/var/vmail/{address.partition('@')[2]}/{address.partition('@')[0]}")
    assert (home / {"maildir": "Maildir", "mdbox": "mdbox", "sdbox": "sdbox"}[FORMATS[server]]).is_dir()
    assert home.stat().st_uid == 5000


def test_a_user_submits_mail_with_a_password(lab: Lab, client: Machine) -> None:
    state = lab.state
    sender, receiver = state.users()[:2]
    trusted = mailhost.site_certificate(lab)
    host = state.machines["main"].ipv4
    probes.submit(client, host, sender, [receiver.address], b"Subject: mine\r\n\r\nx\r\n", trusted, state.service_name)
    wait_until(lambda: "mine" in subjects(lab, client, host, 1), 10, "delivery")


def test_who_does_not_exist_is_refused_at_the_door(lab: Lab, client: Machine) -> None:
    with pytest.raises(LabError, match="550"):
        probes.send(client, lab.machine("main").state.ipv4, ["nobody@example.test"], b"Subject: no\r\n\r\nx\r\n")


def test_every_port_answers_over_both_protocols(lab: Lab, client: Machine) -> None:
    main = lab.machine("main").state
    for host in (main.ipv4, main.ipv6):
        assert probes.greeting(client, host, 25).startswith("220 main.example.test ESMTP")
        assert probes.greeting(client, host, 587).startswith("220 main.example.test ESMTP")
        assert probes.greeting(client, host, 24).startswith("220 ")
        assert probes.greeting(client, host, 143).startswith("* OK")
        assert "IMPLEMENTATION" in probes.greeting(client, host, 4190)
        probes.imap(client, host, lab.accounts[0], mailhost.site_certificate(lab), lab.state.service_name)
        probes.caldav(client, host, lab.accounts[0])


def test_calendars_need_the_password_and_keep_what_is_put(lab: Lab, client: Machine) -> None:
    host, account = lab.machine("main").state.ipv4, lab.accounts[0]
    assert probes.dav(client, host, type(account)(account.address, "wrong"), "PROPFIND", "/")[0] == 401
    calendar = f"/{account.address}/work/"
    assert probes.dav(client, host, account, "MKCALENDAR", calendar)[0] == 201
    event = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//t//\r\nBEGIN:VEVENT\r\nUID:1\r\nDTSTAMP:20260101T000000Z\r\n"
    event += "DTSTART:20260101T100000Z\r\nSUMMARY:Meeting\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n"
    assert (
        probes.dav(client, host, account, "PUT", f"{calendar}1.ics", event, ["Content-Type: text/calendar"])[0] == 201
    )
    assert "SUMMARY:Meeting" in probes.dav(client, host, account, "GET", f"{calendar}1.ics")[1]
    found = (
        lab.machine("main").run(["find", "/var/lib/radicale/collections", "-name", "1.ics", "-user", "vmail"]).stdout
    )
    assert found.strip()


def test_the_service_address_answers_on_the_machine_that_holds_it(lab: Lab, client: Machine) -> None:
    for name in ("main", "backup"):
        mailhost.hold_service_address(lab.machine(name))
        client.run(["ip", "neighbour", "flush", "all"])  # nobody announces the address here
        assert probes.greeting(client, lab.state.service_ipv4, 25).startswith(f"220 {name}.example.test")
        mailhost.release_service_address(lab.machine(name))


def test_what_was_delivered_survives_a_power_cut_and_services_start_at_once(lab: Lab, client: Machine) -> None:
    third = lab.machine("third")
    probes.send(client, third.state.ipv4, [lab.accounts[2].address], b"Subject: durable\r\n\r\nx\r\n")
    wait_until(lambda: "durable" in subjects(lab, client, third.state.ipv4, 2), 10, "delivery")
    third.run(["touch", "/var/lib/dovecot/instances.lock"])  # as if the power went while Dovecot held it
    third.sync()
    third.kill()
    third.start()
    took = mailhost.start(third)
    assert took["dovecot"] < 5, "a lock file left behind by the power cut holds Dovecot up for ten seconds"
    assert "durable" in subjects(lab, client, third.state.ipv4, 2)


def test_stopped_services_are_gone(lab: Lab, client: Machine) -> None:
    third = lab.machine("third")
    mailhost.start(third)
    mailhost.stop(third)
    for port in (24, 25, 143, 993, 4190, 5232):
        with pytest.raises(LabError):
            probes.greeting(client, third.state.ipv4, port)


def test_dovecots_own_replicator_keeps_two_servers_equal() -> None:
    lab = Lab.up(small("main:primary", "backup:standby", "client:client"))
    try:
        main, backup, client = (lab.machine(name) for name in ("main", "backup", "client"))
        for machine in (main, backup):
            mailhost.configure(machine, MailSettings(services=("dovecot", "postfix")))
        mailhost.replicator(main, backup)
        mailhost.start(main, ["postfix"])
        probes.send(client, main.state.ipv4, [lab.accounts[0].address], b"Subject: copied\r\n\r\nx\r\n")
        wait_until(lambda: "copied" in subjects(lab, client, backup.state.ipv4, 0), 20, "replication")
    finally:
        Lab.down(lab.name)


def test_a_wrong_password_is_refused(lab: Lab, client: Machine) -> None:
    """The last one: Dovecot makes whoever guessed wrong wait, and all their later logins too."""
    state = lab.state
    known = state.users()[0]
    wrong = type(known)(known.address, "wrong")
    trusted = mailhost.site_certificate(lab)
    with pytest.raises(LabError, match="AUTHENTICATIONFAILED"):
        probes.imap(client, state.machines["main"].ipv4, wrong, trusted, state.service_name)
