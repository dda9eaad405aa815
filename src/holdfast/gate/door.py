"""Answers at the doors for commands, the agent's and a relay's: JSON, lines of JSON, and errors of ours as the client
reads them (console.client)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web

from holdfast.errors import HoldfastError, Refused, Unreachable


def error_body(error: HoldfastError) -> dict[str, Any]:
    return {"message": error.message, "hint": error.hint, "exit_status": int(error.exit_status)}


def json_answer(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def error_answer(error: HoldfastError) -> web.Response:
    """409 refused, 503 unreachable, 500 other failures."""
    status = 409 if isinstance(error, Refused) else 503 if isinstance(error, Unreachable) else 500
    return json_answer(error_body(error), status)


async def body_of(request: web.Request) -> dict[str, Any]:
    """Raises HoldfastError."""
    raw = await request.read()
    try:
        return msgspec.json.decode(raw, type=dict[str, Any]) if raw else {}
    except msgspec.DecodeError as error:
        raise HoldfastError(f"the request's body is no JSON object: {error}") from None


async def answer_lines(request: web.Request, values: AsyncIterator[object]) -> web.StreamResponse:
    """As they come; an error is the last line."""
    response = web.StreamResponse(headers={"Content-Type": "application/jsonl"})
    await response.prepare(request)
    try:
        async for value in values:
            await response.write(msgspec.json.encode(value) + b"\n")
    except HoldfastError as error:
        await response.write(msgspec.json.encode({"error": error_body(error)}) + b"\n")
    await response.write_eof()
    return response
