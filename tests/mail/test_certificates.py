"""A certificate that has ended, or does not fit its key, is named before a program has to start with it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from holdfast.mail import certificates, doveconf
from holdfast.mail.certificates import Pair, wrong

NOW = datetime(2026, 11, 22, tzinfo=UTC)
DAY = timedelta(days=1)


def make(folder: Path, name: str, begins: datetime, ends: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.test")])
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(begins).not_valid_after(ends)
    public, private = folder / f"{name}.pem", folder / f"{name}.key"
    public.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Pair(str(public), str(private), "x")


def test_certificates_that_have_ended_or_soon_will_or_do_not_begin_yet_are_named(tmp_path: Path) -> None:
    past = make(tmp_path, "past", NOW - 400 * DAY, NOW - 3 * DAY)
    soon = make(tmp_path, "soon", NOW - 400 * DAY, NOW + 3 * DAY)
    early = make(tmp_path, "early", NOW + DAY, NOW + 400 * DAY)
    good = make(tmp_path, "good", NOW - DAY, NOW + 90 * DAY)
    assert [line.rsplit("/", 1)[1] for line in wrong([past, soon, early, good, good], NOW)] == [
        "past.pem ended on 2026-11-19",
        "soon.pem ends on 2026-11-25",
        "early.pem is valid from 2026-11-23 on: is this machine's clock right?",
    ]


def test_a_key_that_does_not_fit_is_named_and_one_file_may_hold_both(tmp_path: Path) -> None:
    one = make(tmp_path, "one", NOW - DAY, NOW + 90 * DAY)
    two = make(tmp_path, "two", NOW - DAY, NOW + 90 * DAY)
    (said,) = wrong([one._replace(key=two.key)], NOW)
    assert "two.key does not fit the certificate" in said
    both = tmp_path / "both.pem"
    both.write_bytes(Path(one.key).read_bytes() + Path(one.certificate).read_bytes())
    assert wrong([Pair(str(both), str(both), "x")], NOW) == []
    (tmp_path / "junk.key").write_text("no key")
    (said,) = wrong([one._replace(key=str(tmp_path / "junk.key"))], NOW)
    assert "holds no private key" in said
    (said,) = wrong([Pair(str(tmp_path / "junk.key"), one.key, "x")], NOW)
    assert "holds no certificate" in said
    assert wrong([Pair("/nowhere", "/nowhere", "x")], NOW) == []


def test_pairs_are_found_as_configured() -> None:
    postfix = {
        "smtpd_tls_cert_file": "/a.pem",
        "smtpd_tls_key_file": "$smtpd_tls_cert_file",
        "smtpd_tls_eccert_file": "/e.pem",
        "smtpd_tls_eckey_file": "/e.key",
        "submission/inet/smtpd_tls_chain_files": "/c.pem, /d.pem",
        "smtp_tls_CAfile": "/ca.pem",
    }
    assert [(pair.certificate, pair.key) for pair in certificates.of_postfix(postfix)] == [
        ("/a.pem", "/a.pem"),
        ("/e.pem", "/e.key"),
        ("/c.pem", "/c.pem"),
        ("/d.pem", "/d.pem"),
    ]
    old = doveconf.parse("ssl_cert = </a.pem\nssl_key = </a.key\nlocal_name x {\n  ssl_cert = </b.pem\n}\n")
    new = doveconf.parse("ssl_server_cert_file = /a.pem\nssl_server_key_file = /a.key\n")
    assert [(p.certificate, p.key) for p in certificates.of_dovecot(old)] == [
        ("/a.pem", "/a.key"),
        ("/b.pem", "/b.pem"),
    ]
    assert [(p.certificate, p.key) for p in certificates.of_dovecot(new)] == [("/a.pem", "/a.key")]
