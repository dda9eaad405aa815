"""``holdfast vault``: the group. Each command has a module of its own, imported when it is used."""

from __future__ import annotations

from typing import ClassVar, Final

import click

from holdfast.console.late import Late, LateGroup

_HERE: Final = "holdfast.console."


class _VaultGroup(LateGroup):
    late: ClassVar = {
        "init": Late(_HERE + "vault_init", "init", "Make a vault: a place for backups, and the keys that open it."),
        "backup": Late(_HERE + "vault_backup", "backup", "Add a snapshot of this site's trees, or of any folder."),
        "list": Late(_HERE + "vault_list", "list_snapshots", "The snapshots: when, what, how much, what is missing."),
        "show": Late(_HERE + "vault_show", "show", "A snapshot, a directory in it, or a file's contents."),
        "find": Late(_HERE + "vault_find", "find", "Messages, events and contacts in all snapshots, deleted ones too."),
        "diff": Late(_HERE + "vault_diff", "diff", "What changed between two snapshots."),
        "verify": Late(_HERE + "vault_verify", "verify", "Is what the snapshots list really there?"),
        "prune": Late(_HERE + "vault_prune", "prune", "Drop old snapshots by rules; plan, show, execute."),
        "copy": Late(_HERE + "vault_copy", "copy", "The same vault at a second place; needs no key."),
        "pin": Late(_HERE + "vault_keep", "pin", "Keep one snapshot, whatever the rules of a prune say."),
        "hold": Late(_HERE + "vault_keep", "hold", "Keep an account's mail in every snapshot: a legal hold."),
        "release": Late(_HERE + "vault_keep", "release", "Take a pin or a hold back."),
        "connect": Late(_HERE + "vault_connect", "connect", "Remember a vault that is there already, and its keys."),
        "forget": Late(_HERE + "vault_connect", "forget", "Do not remember a vault any more; its keys stay."),
        "keys": Late(_HERE + "vault_keys", "keys", "Who can read; the page for the safe; a test of that page."),
    }


@click.group(cls=_VaultGroup)
def vault() -> None:
    """Backups: encrypted, deduplicated, of this site or of any folder; no server is needed.

    \b
    Example (a mail folder and a disk):
      holdfast vault init /mnt/disk/backups
      holdfast vault backup ~/Maildir
      holdfast vault list
      holdfast restore --to /tmp/restored

    With one vault known on this machine, no command needs to be told which. Otherwise --vault NAME, or
    --vault LOCATION: /path, s3://bucket/prefix?endpoint=URL&region=R, sftp://user@host/path?key=FILE.

    \b
    Exit status: 0 done, 3 done with gaps, damage or differences named,
                 4 refused as unsafe or not permitted, 5 the store does not
                 answer, 6 which vault?, 8 no space, 9 another command is at
                 work, 10 no key or a wrong one, 11 a newer format, 12 damaged
    """
