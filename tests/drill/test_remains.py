"""What a drill takes for a message that still waits on a machine."""

from __future__ import annotations

from pathlib import Path

from holdfast.drill.remains import queued_in


def test_what_postfix_had_not_finished_writing_is_not_in_its_queue(tmp_path: Path) -> None:
    for name, mode in (("ready", 0o700), ("unfinished", 0o600)):
        (tmp_path / "incoming").mkdir(exist_ok=True)
        path = tmp_path / "incoming" / name
        path.write_bytes(b"N\x1dMessage-ID: <" + name.encode() + b"@drill.example>\n")
        path.chmod(mode)
    assert queued_in(tmp_path) == {"ready@drill.example"}
