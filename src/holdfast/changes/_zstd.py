"""zstd of the standard library (Python 3.14), or its backport."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError, compress
else:
    from backports.zstd import ZstdDecompressor, ZstdError, compress

__all__ = ["ZstdDecompressor", "ZstdError", "compress", "decompress"]


def decompress(data: bytes, bytes_max: int) -> bytes:
    """One whole zstd frame; ZstdError when it is cut short, damaged, or its content has more than *bytes_max*."""
    decompressor = ZstdDecompressor()
    plain = decompressor.decompress(data, max_length=bytes_max)
    if not decompressor.eof:
        raise ZstdError(f"incomplete, or more than {bytes_max} bytes")
    if decompressor.unused_data:
        raise ZstdError("bytes after the end")
    return plain
