"""How many examples a property test takes: a few in ``make test``, ten times as many, and others, in ``make chaos``."""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "HOLDFAST_EXAMPLES"
USUAL: Final = 40
"""What the variable counts in: with 400, every test that asks here takes ten times its own number."""


def examples(number: int) -> int:
    """*number* in ``make test``."""
    return max(1, number * int(os.environ.get(VARIABLE, USUAL)) // USUAL)
