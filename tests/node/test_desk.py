"""`holdfast decide`: what is known is said, and what is not, too."""

from __future__ import annotations

from pathlib import Path

import msgspec

from holdfast.node.beats import Beat
from holdfast.node.desk import desk
from holdfast.node.history import Event

from .two_nodes import TwoNodes, run, wait_until

TOOK = [Event(1.0, "takeover done", "", {"seconds": seconds}) for seconds in (0.9, 0.7, 5.0)]


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
        seeding = msgspec.structs.replace(status, role="seeding", reason="no copy yet")
        assert desk(seeding, last, 42.0, []).choices[0].risks == ("this machine is seeding: no copy yet",)

    run(tmp_path, scenario)
