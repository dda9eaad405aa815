"""Arbitrary bytes given to the frame reader: whatever they are, it opens them or raises FrameDamaged, and nothing else.

As a program: ``python -m tests.changes.fuzz_frame [SEED]``, with ``HOLDFAST_FUZZ_FRAMES`` inputs (1,000,000 when not
set). A failing input is printed with its seed and number, which make it again.
"""

from __future__ import annotations

import os
import random
import sys
from collections import Counter
from typing import Final

from holdfast.changes import _zstd
from holdfast.changes.change import (
    Change,
    Extent,
    Link,
    Meta,
    Mkdir,
    Patch,
    Put,
    Remove,
    Rename,
    Rmdir,
    SetMeta,
    Symlink,
)
from holdfast.changes.digest import content_digests
from holdfast.changes.frame import (
    FORMAT_VERSION,
    MAGIC,
    FrameDamaged,
    FrameKind,
    FrameWriter,
    Promotion,
    SegmentKey,
    chain_start,
    open_frame,
    pack_changes,
    pack_promotion,
    seal,
)
from holdfast.changes.names import Epoch, Incarnation, MachineName, SegmentName

COUNT_VARIABLE: Final = "HOLDFAST_FUZZ_FRAMES"
KEY: Final = SegmentKey(bytes(range(32)))
WRITER: Final = FrameWriter(SegmentName("mail"), MachineName("main"), Epoch(3), KEY)
CHAIN: Final = chain_start(Incarnation("0f" * 16))
META: Final = Meta(0o600, "vmail", "#12", 1_700_000_000_123_456_789, ((b"user.a", b"\xff"),))
CONTENT: Final = b"Received: from mx.example.org\r\n" * 20
ALL_KINDS: Final[tuple[Change, ...]] = (
    Mkdir("store", b"a", META),
    Put("store", b"a/f", len(CONTENT), META, content_digests(CONTENT), (Extent(0, CONTENT),)),
    Patch("store", b"a/f", len(CONTENT), META, content_digests(CONTENT), (Extent(3, CONTENT[3:]),), 0, False),
    Rename("store", b"a/f", b"a/\xff\n"),
    Link("store", b"a/\xff\n", b"l"),
    SetMeta("store", b"", META),
    Symlink("store", b"s", b"/nowhere", META),
    Remove("store", b"l"),
    Rmdir("store", b"d"),
)


def sealed(packed: bytes, kind: FrameKind = FrameKind.CHANGES) -> bytes:
    """A sound envelope around any body."""
    return seal(WRITER, CHAIN, kind, packed, captured_at_ns=1_700_000_000_000_000_000)


SEEDS: Final = (
    sealed(pack_changes(ALL_KINDS)),
    sealed(pack_changes(())),
    sealed(pack_promotion(Promotion(MachineName("backup"), "test", False)), FrameKind.PROMOTION),
)
BODIES: Final = (pack_changes(ALL_KINDS), pack_promotion(Promotion(MachineName("backup"), "test", False)))


def mutated(chance: random.Random, data: bytes) -> bytes:
    """*data* with a few flips, cuts, doublings, or numbers at their edges."""
    out = bytearray(data)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(out) + 1)
        match chance.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << chance.randrange(8)
            case 1:
                out[at:at] = chance.randbytes(chance.randrange(8))
            case 2:
                del out[at : at + chance.randrange(1, 9)]
            case 3:
                del out[at:]
            case 4:
                out[at : at + 1] = chance.choice((b"\x00", b"\xff", b"\x7f", b"\x80", b"\xdf", b"\xc7\xff\x01"))
            case _:
                out += out[at : at + chance.randrange(64)]
    return bytes(out)


def an_input(chance: random.Random) -> bytes:
    """Noise; noise behind a sound beginning; a damaged frame; or a sound seal around a damaged body."""
    match chance.randrange(5):
        case 0:
            return chance.randbytes(chance.randrange(200))
        case 1:
            header = chance.randbytes(chance.randrange(160))
            return MAGIC + bytes((FORMAT_VERSION,)) + len(header).to_bytes(2, "big") + header + chance.randbytes(40)
        case 2 | 3:
            return mutated(chance, chance.choice(SEEDS))
        case _:
            body = mutated(chance, chance.choice(BODIES)) if chance.randrange(2) else resealed_noise(chance)
            return sealed(body, chance.choice((FrameKind.CHANGES, FrameKind.PROMOTION)))


def resealed_noise(chance: random.Random) -> bytes:
    """A body that decompresses, and holds noise or a damaged message."""
    plain = _zstd.decompress(chance.choice(BODIES), 1 << 20)
    return _zstd.compress(mutated(chance, plain) if chance.randrange(4) else chance.randbytes(60), 1)


def run(seed: int, count: int) -> Counter[str]:
    """*count* inputs; how each ended. Raises AssertionError, with the input, at the first wrong exception."""
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    for number in range(count):
        frame = an_input(chance)
        try:
            open_frame(frame, KEY)
            ends["opened"] += 1
        except FrameDamaged:
            ends["damaged"] += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}, input {number}: {error!r} for {frame.hex()}") from error
    return ends


def main() -> None:
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    count = int(os.environ.get(COUNT_VARIABLE, "1000000"))
    print(f"seed {seed}: {dict(run(seed, count))}")


if __name__ == "__main__":
    main()
