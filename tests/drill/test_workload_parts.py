"""Messages, plans and journals: reproducible, checked, and readable after a crash."""

from __future__ import annotations

import contextlib
import json
from email import policy
from email.parser import BytesParser
from pathlib import Path

import msgspec
import pytest

from holdfast.drill.checkers.facts import Attempt, Begin, DavDelete, Outcome, Result, Trouble
from holdfast.drill.workload import journal, messages
from holdfast.drill.workload import plan as plans
from holdfast.drill.workload.deliver import orders
from holdfast.drill.workload.journal import BadJournal, Journal
from holdfast.drill.workload.net import AnswerLost, Declined, Endpoint, NotSent
from holdfast.drill.workload.plan import Deliveries, Login, Plan, Service
from holdfast.errors import ConfigurationError


def make(number: int, seed: int = 3) -> messages.Mail:
    return messages.make(seed, number, stream="smtp", sender="a@example.org", recipient="b@example.org")


MADE = [make(number) for number in range(400)]


def test_the_same_seed_and_number_give_the_same_message() -> None:
    assert make(17) == MADE[17]
    assert make(17, seed=4).content != MADE[17].content


def test_every_shape_and_size_occurs() -> None:
    assert {mail.shape for mail in MADE} == set(messages.SHAPES)
    sizes = sorted(len(mail.content) for mail in MADE)
    assert sizes[0] < 2_000
    assert sizes[len(sizes) // 2] < 20_000
    assert 2_000_000 < sizes[-1] < 7_500_000


def test_messages_are_within_the_rules_of_smtp() -> None:
    for mail in MADE:
        assert mail.content.endswith(b"\r\n")
        assert b"\n" not in mail.content.replace(b"\r\n", b"")
        assert max(len(line) for line in mail.content.split(b"\r\n")) <= messages.LINE_OCTETS_MAX
    assert any(len(line) == 998 for mail in MADE for line in mail.content.split(b"\r\n"))
    assert any(byte > 127 for mail in MADE if mail.shape == "eight_bit" for byte in mail.content)


def test_a_mail_library_reads_them_as_meant() -> None:
    for mail in MADE[:60]:
        read = BytesParser(policy=policy.default).parsebytes(mail.content)
        assert read["Message-ID"] == f"<{mail.message_id}>"
        assert messages.message_id_of(mail.content.partition(b"\r\n\r\n")[0]) == mail.message_id
        assert messages.body_digest(b"Received: x\r\n" + mail.content) == mail.body_digest
        assert read.is_multipart() is (mail.shape in ("html", "attachment"))


def plan(**fields: object) -> Plan:
    service = Service(Endpoint("192.0.2.1", 25), Endpoint("192.0.2.1", 143))
    accounts = tuple(Login(f"user{index}@example.org", "x") for index in range(50))
    return msgspec.structs.replace(Plan(service, accounts, seed=5), **fields)


def test_orders_come_from_the_seed_and_reach_every_account() -> None:
    made = orders(plan(deliveries=Deliveries(messages=1000)))
    assert made == orders(plan(deliveries=Deliveries(messages=1000)))
    assert made != orders(plan(deliveries=Deliveries(messages=1000), seed=6))
    assert {name for order in made for name in order.recipients} == {account.name for account in plan().accounts}
    several = [order for order in made if len(order.recipients) > 1]
    assert several
    assert all(len(set(order.recipients)) == len(order.recipients) for order in several)


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(plans.to_json(plan()))
    assert plans.load(path) == plan()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sped": 1}, "sped"),
        ({"deliveries": {"messages": "many"}}, "$.deliveries.messages"),
        ({"deliveries": {"messages": -1}}, "$.deliveries.messages"),
        ({"accounts": []}, "accounts"),
    ],
)
def test_a_wrong_plan_names_file_and_key(tmp_path: Path, change: dict[str, object], word: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**json.loads(plans.to_json(plan())), **change}))
    with pytest.raises(ConfigurationError) as caught:
        plans.load(path)
    assert word in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_journal_tells_attempts_and_outcomes_in_order(tmp_path: Path) -> None:
    written = Journal(tmp_path / "j")
    written.begin(5, "{}")
    outcomes = {
        Result.ACKNOWLEDGED: None,
        Result.REFUSED: Declined("550", "no"),
        Result.NOT_DONE: NotSent("cut"),
        Result.UNKNOWN: AnswerLost("silence"),
    }
    for error in outcomes.values():
        seen = pytest.raises(type(error)) if error else contextlib.nullcontext()
        with seen, written.operation("w", "a", DavDelete("/x")) as answered:
            answered.etag = "e"
            if error is not None:
                raise error
    written.trouble("w", "gone")
    written.close()
    begin, *records, trouble = journal.read(tmp_path / "j")
    assert isinstance(begin, Begin)
    assert isinstance(trouble, Trouble)
    assert [record.result for record in records if isinstance(record, Outcome)] == list(outcomes)
    assert [record.op for record in records if isinstance(record, Attempt)] == [1, 2, 3, 4]
    times = [record.mono_ns for record in records]
    assert times == sorted(times)


def test_a_last_line_cut_in_half_is_left_out_and_damage_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written = Journal(path)
    written.begin(5, "{}")
    written.trouble("w", "gone")
    written.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert len(journal.read(path)) == 1
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(BadJournal, match="line 1"):
        journal.read(path)
