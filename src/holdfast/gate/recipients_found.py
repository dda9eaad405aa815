"""What the Postfix of this machine takes mail for, by asking it (postconf(1), postmap(1))."""

from __future__ import annotations

import logging
import pwd
import re
from collections.abc import Iterable
from typing import Final

from holdfast.errors import HoldfastError
from holdfast.gate import straight_found
from holdfast.gate.recipients import Recipients
from holdfast.gate.serve import Place
from holdfast.mail.port import Commands

COMMAND_SECONDS_MAX: Final = 120.0
LISTED_KINDS: Final = frozenset({"hash", "btree", "lmdb", "cdb", "dbm", "sdbm", "texthash", "inline"})
"""Table types whose keys are the addresses themselves and can be listed (DATABASE_README)."""
PARAMETERS: Final = (
    "myhostname",
    "mydestination",
    "local_recipient_maps",
    "virtual_mailbox_domains",
    "virtual_mailbox_maps",
    "virtual_alias_domains",
    "virtual_alias_maps",
    "relay_domains",
    "relay_recipient_maps",
    "recipient_delimiter",
    "message_size_limit",
)
_MAP: Final = re.compile(r"^(?:proxy:)?([a-z]+):(.*)$")
_log = logging.getLogger("holdfast.gate")
_HERE: Final = re.compile(r"localhost(\..*)?")


class RecipientsFound:
    """Asks one Postfix; *configuration* chooses another than the machine's."""

    def __init__(
        self,
        commands: Commands,
        machine: str,
        configuration: str = "",
        *,
        gate: Place | None = None,
        milter: Place | None = None,
    ) -> None:
        """*gate*, *milter*: where those of this machine listen, when relays may hand mail to the gate itself."""
        self._commands, self._machine = commands, machine
        self._gate, self._milter = gate, milter
        self._said = ""
        self._listed: dict[tuple[str, str], set[str]] = {}
        """Program and table to the table's keys, while a list is made: several parameters name the same tables."""
        self._options = ["-c", configuration] if configuration else []

    async def __call__(self, now: float) -> Recipients:
        """Raises HoldfastError: then the list that there is stays."""
        self._listed.clear()
        values = _values(await self._run(["postconf", *self._options, "-x", *PARAMETERS]))
        domains, recipients, unlisted = set[str](), set[str](), set[str]()
        for names, maps in (
            ("virtual_mailbox_domains", ("virtual_mailbox_maps", "virtual_alias_maps")),
            ("virtual_alias_domains", ("virtual_alias_maps",)),
            ("relay_domains", ("relay_recipient_maps", "virtual_alias_maps")),
        ):
            found = await self._domains(_words(values[names]))
            if not found:
                continue
            domains |= found
            keys = await self._keys(word for name in maps for word in _words(values[name]))
            if keys is None or (names == "relay_domains" and not values["relay_recipient_maps"]):
                unlisted |= found
                continue
            recipients |= {key for key in keys if key.rpartition("@")[2] in found}
        local = await self._local_domains(values)
        if local:
            domains |= local
            users = await self._local_users(_words(values["local_recipient_maps"]))
            if users is None:
                unlisted |= local
            else:
                recipients |= {f"{user}@{domain}" for user in users for domain in local}
        return Recipients(
            machine=self._machine,
            at=round(now, 3),
            domains=tuple(sorted(domains)),
            recipients=tuple(sorted(r for r in recipients if r.rpartition("@")[2] not in unlisted)),
            unlisted=tuple(sorted(unlisted)),
            delimiter=values["recipient_delimiter"],
            message_bytes_max=int(values["message_size_limit"] or 0),
            straight=await self._straight(values) if self._gate and self._milter else (),
        )

    async def _straight(self, known: dict[str, str]) -> tuple[str, ...]:
        """Those whose mail this Postfix only hands to the gate. Raises HoldfastError."""
        assert self._gate is not None
        assert self._milter is not None
        values = _values(await self._run(["postconf", *self._options, "-x", *straight_found.PARAMETERS]))
        overrides = (await self._run(["postconf", *self._options, "-P"])).splitlines()
        why = straight_found.obstacle(values, overrides, self._gate, self._milter)
        mailboxes = await self._keys(_words(known["virtual_mailbox_maps"]))
        aliases = await self._keys(_words(known["virtual_alias_maps"]))
        if not why and (mailboxes is None or aliases is None):
            why = "mailboxes or aliases cannot be listed"
        if why != self._said:
            self._said = why
            if why:
                _log.warning("relays hand nothing straight to the gate, all goes through Postfix: %s", why)
        if why or mailboxes is None or aliases is None:
            return ()
        domains = await self._domains(_words(known["virtual_mailbox_domains"]))
        here = [name for name in mailboxes if name.rpartition("@")[2] in domains]
        return straight_found.straight(here, aliases, known["recipient_delimiter"])

    async def _local_domains(self, values: dict[str, str]) -> set[str]:
        """Of ``mydestination``, what is a domain and not only this machine's own name."""
        found = await self._domains(_words(values["mydestination"]))
        return {name for name in found if name != values["myhostname"].lower() and not _HERE.fullmatch(name)}

    async def _local_users(self, maps: list[str]) -> set[str] | None:
        users: set[str] = set()
        for word in maps:
            if word in ("proxy:unix:passwd.byname", "unix:passwd.byname"):
                users |= {entry.pw_name.lower() for entry in pwd.getpwall()}
                continue
            keys = await self._keys([word], aliases=True)
            if keys is None:
                return None
            users |= {key for key in keys if "@" not in key and not key.startswith("yp_")}  # postalias adds those
        return users if maps else None

    async def _domains(self, words: list[str]) -> set[str]:
        """A list of names, files and tables, as postconf(5) describes for mydestination."""
        found: set[str] = set()
        for word in words:
            if word.startswith("/"):
                with open(word, encoding="utf-8", errors="replace") as lines:
                    found |= {line.split()[0].lower() for line in lines if line.strip() and line[0] != "#"}
            elif _MAP.match(word):
                keys = await self._keys([word])
                if keys is None:
                    raise HoldfastError(
                        f"the domains in {word} cannot be listed",
                        hint="Name them in main.cf, or in a table of type hash, for relays to know them.",
                    )
                # virtual_alias_domains is $virtual_alias_maps unless set: those keys are mostly addresses.
                found |= {key for key in keys if "@" not in key and "." in key}
            elif not word.startswith("!"):
                found.add(word.lower())
        return found

    async def _keys(self, words: Iterable[str], *, aliases: bool = False) -> set[str] | None:
        """All keys of these tables; None when one of them cannot be listed."""
        found: set[str] = set()
        for word in words:
            match = _MAP.match(word)
            if match is None or match[1] not in LISTED_KINDS:
                return None
            program = "postalias" if aliases else "postmap"
            table = f"{match[1]}:{match[2]}"
            if (program, table) not in self._listed:
                output = await self._run([program, *self._options, "-s", table])
                self._listed[program, table] = {
                    line.partition("\t")[0].strip().rstrip(":").lower() for line in output.splitlines() if line.strip()
                }
            found |= self._listed[program, table]
        return found

    async def _run(self, argv: list[str]) -> str:
        result = await self._commands.run(argv, timeout_seconds=COMMAND_SECONDS_MAX)
        if not result.ok:
            hint = "Run: postfix check. Relays go on with the last list."
            raise HoldfastError(f"the recipients cannot be listed: {result.words}", hint=hint, retry=True)
        return result.output


def _values(output: str) -> dict[str, str]:
    """What postconf(1) prints."""
    return {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in output.splitlines())}


def _words(value: str) -> list[str]:
    return [word for word in re.split(r"[\s,]+", value) if word]
