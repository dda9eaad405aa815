"""Some of what ``make chaos`` does a million times."""

from __future__ import annotations

import os

import pytest

from tests.gate import fuzz_codecs


@pytest.mark.parametrize("codec", fuzz_codecs.CODECS)
def test_hostile_peers_get_no_further_than_they_may(codec: str) -> None:
    count = int(os.environ.get(fuzz_codecs.COUNT_VARIABLE, "5000"))
    ends = fuzz_codecs.run(codec, seed=1, count=count)
    assert len(ends) > 1, "all sessions ended alike: nothing was tried"
