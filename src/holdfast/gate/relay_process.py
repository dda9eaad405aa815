"""What of the gates' process serves relays: all of it on a relay, a part of it on the primary."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import AsyncExitStack
from pathlib import Path

from holdfast.errors import HoldfastError
from holdfast.gate.accept import ShadowMilter
from holdfast.gate.agent import Agent
from holdfast.gate.barrier import SharedBarrier
from holdfast.gate.control import RelayControl
from holdfast.gate.ledger_stream import SHAPE as LEDGER_SHAPE
from holdfast.gate.ledger_stream import Collector, SentNotes
from holdfast.gate.options import GateOptions
from holdfast.gate.recipients import STREAM_BYTES as RECIPIENTS_BYTES
from holdfast.gate.recipients_found import RecipientsFound
from holdfast.gate.relay import Relay
from holdfast.gate.relays import RelaysOfPrimary
from holdfast.gate.serve import Place
from holdfast.gate.shadow_stream import StreamShadows
from holdfast.gate.side import SideStreams
from holdfast.gate.straight import StraightDoor
from holdfast.gate.tasks import in_background
from holdfast.ledger.book import Book
from holdfast.log.side import LEDGER, RECIPIENTS, SHADOWS, SideShape
from holdfast.mail.commands import SystemCommands


async def serve_relay(options: GateOptions, stop: asyncio.Event) -> None:
    """Of a machine that takes mail and holds none."""
    assert options.relay is not None
    assert options.log is not None
    async with AsyncExitStack() as stack:
        sides = SideStreams(options.log, options.machine)
        stack.push_async_callback(sides.close)
        agent = Agent(Path(options.agent_socket))
        stack.push_async_callback(agent.close)
        notes = SentNotes(options.machine, sides.stream(LEDGER), time.time)
        shadows, lists = sides.stream(SHADOWS), sides.stream(RECIPIENTS)
        if options.straight_fd:
            places = tuple(map(Place.parse, options.relay.straight_to))
            door = StraightDoor(places, Path(options.log.tls))
            stack.push_async_callback(door.stop)
            await door.start(socket.socket(fileno=options.straight_fd))
        relay = Relay(options, shadows, lists, agent, SystemCommands(), notes=notes)
        in_background(notes.run(), stack)
        control = RelayControl(relay)
        stack.push_async_callback(control.stop)
        await relay.start(socket.socket(fileno=options.milter_fd), socket.socket(fileno=options.policy_fd), stack)
        await control.start(Path(options.relay.control))
        print("ready", flush=True)
        await stop.wait()


async def serve_relays(
    options: GateOptions, milter: ShadowMilter, book: Book, barrier: SharedBarrier, stack: AsyncExitStack
) -> None:
    """Of the primary, for the relays: in the background, because the log may be away and deliveries go on."""
    assert options.relays is not None
    assert options.log is not None
    try:
        sides = SideStreams(options.log, options.machine)
    except HoldfastError as error:
        logging.error("the relays are not served: %s", error)  # users are
        return
    stack.push_async_callback(sides.close)
    agent = Agent(Path(options.agent_socket))
    stack.push_async_callback(agent.close)
    relays = RelaysOfPrimary(
        names=frozenset(options.relays.names),
        adopt_seconds=options.relays.adopt_seconds,
        agent=agent,
        milter=milter,
        shadows=StreamShadows(sides.stream(SHADOWS), options.machine, Path(options.relays.spool)),
        lists=sides.stream(RECIPIENTS),
        find=RecipientsFound(
            SystemCommands(),
            options.machine,
            gate=Place.parse(options.relays.lmtp) if options.relays.lmtp else None,
            milter=Place.parse(options.relays.milter) if options.relays.milter else None,
        ),
    )
    shapes = (
        SideShape(SHADOWS, options.relays.hold_bytes),
        SideShape(RECIPIENTS, RECIPIENTS_BYTES, refuses_when_full=False),
        LEDGER_SHAPE,
    )
    collector = Collector(sides.stream(LEDGER), book, barrier)

    async def run() -> None:
        for shape in shapes:
            await sides.ensure_in_time(shape)
        await asyncio.gather(relays.publish_lists(), relays.adopt_from_the_gone(), collector.run())

    in_background(run(), stack)
