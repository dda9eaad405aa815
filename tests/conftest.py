"""For all tests: property tests take the same examples every time.

A failure must be the same failure again, on every machine. ``HOLDFAST_EXAMPLES`` (``make chaos``) looks for new ones:
other examples each time, and as many as it says where a test asks for it.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("same", derandomize=True)
if "HOLDFAST_EXAMPLES" not in os.environ:
    settings.load_profile("same")
