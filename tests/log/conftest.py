"""One event loop for the session: the servers' keepers live in it, so clusters are started once, not once a test."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, Protocol, TypeVar

import pytest

from tests.log.harness import NAMES, Servers

T = TypeVar("T")


class Run(Protocol):
    """Run a coroutine to its end in the session's loop."""

    def __call__(self, main: Coroutine[Any, Any, T], /) -> T: ...


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    with asyncio.Runner() as runner:

        def to_the_end(main: Coroutine[Any, Any, T], /) -> T:
            return runner.run(main)

        yield to_the_end


@pytest.fixture(scope="session")
def single(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """One server, one replica."""
    servers = Servers(tmp_path_factory.mktemp("single"), NAMES[:1])
    run(servers.start())
    yield servers
    run(servers.stop())


@pytest.fixture(scope="session")
def three(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Three servers, three replicas."""
    servers = Servers(tmp_path_factory.mktemp("three"), NAMES)
    run(servers.start())
    yield servers
    run(servers.stop())
