"""`holdfast decide`: what is known is said, and what is not, too."""

from __future__ import annotations

from pathlib import Path

import msgspec

from holdfast.node.beats import Beat
from holdfast.node.desk import desk
from holdfast.node.desk_facts import DeskFacts, Waiting, accounts_in, started_in, waiting_of
from holdfast.node.history import Event

from .two_nodes import TwoNodes, run, wait_until

TOOK = [Event(1.0, "takeover done", "", {"seconds": seconds}) for seconds in (0.9, 0.7, 5.0)]


def test_messages_that_wait_on_the_primary_are_named_by_their_copies(tmp_path: Path) -> None:
    envelope = '{"sender":"ben%40example.org","recipients":["anna%40example.test"]}\n'
    text = "Holdfast-Delivery: x\r\nMessage-ID: <one@example.org>\r\n\r\nhello\r\n"
    (tmp_path / "main.4Zabc12.d1").write_text(envelope + text)
    (tmp_path / "main.4Zabc13.d2").write_text("not ours")
    (tmp_path / "backup.4Zabc12.d1").write_text(envelope + text)
    (tmp_path / "_taken.main.4Zabc12").touch()
    one, two = waiting_of("main", tmp_path)
    assert one == Waiting("one@example.org", "ben@example.org", ("anna@example.test",))
    assert two == Waiting("main.4Zabc13.d2", "", ())
    assert accounts_in(tmp_path) == -1


def test_a_machines_starts_are_measured_where_the_agent_started_with_it() -> None:
    events = [Event(1.0, "agent started", "", {"machine_up_seconds": up}) for up in (40.0, 90_000.0, 50.0)]
    assert started_in([*events, Event(2.0, "agent stopped")]) == (40.0, 50.0)


def test_the_desk_tells_what_each_choice_would_cost(tmp_path: Path) -> None:
    async def scenario(nodes: TwoNodes) -> None:
        await wait_until(lambda: nodes.backup.node.readiness.last.checked_at > 0, lambda: "not checked")
        status = await nodes.backup.status()
        last = Beat("main", "primary", "", "1", serving=True)
        quiet = desk(status, last, 0.2, [])
        assert "nothing has to be decided" in quiet.situation
        gone = desk(status, last, 42.0, TOOK)
        now, wait = gone.choices
        assert gone.situation == "The primary, main, is not heard for 42 s."
        assert (now.name, now.seconds, wait.seconds) == ("take over now", 0.9, -1.0)
        assert "nothing that was captured" in now.lost
        assert "never compared" in "\n".join(now.risks)
        assert quiet.choices[0].seconds == -1.0
        late = desk(status, Beat("main", "primary", "", "1", waiting_bytes=5000, waiting_seconds=12.0), 42.0, [])
        assert "5,000 bytes" in late.choices[0].lost
        assert "12 s old" in late.choices[0].lost
        assert "not known" in desk(status, None, None, []).choices[0].lost
        facts = DeskFacts(1234, (Waiting("a@b", "", ("anna@example.test",)),), (40.0, 44.0, 90.0), 0.6)
        known = desk(status, last, 42.0, [], facts).choices
        assert known[0].users.startswith("1,234 accounts are served again")
        assert known[1].users.startswith("1,234 accounts are not served meanwhile")
        assert "the 1 messages in its queue have copies here" in known[0].lost
        assert known[0].waiting[0].message_id == "a@b"
        assert "started in 0.6 s in the last rehearsal" in known[0].time
        assert "44 s from power to agent, the median of 3" in known[1].time
        seeding = msgspec.structs.replace(status, role="seeding", reason="no copy yet")
        assert desk(seeding, last, 42.0, []).choices[0].risks == ("this machine is seeding: no copy yet",)

    run(tmp_path, scenario)
