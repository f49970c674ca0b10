# SPDX-License-Identifier: Apache-2.0
"""Everything that this process keeps for later calls, given back at once."""

from __future__ import annotations

import gc
import sys


def release() -> None:
    """Empty all caches: loaded models, engines, coding tables, fingerprints, recorded programs, map memory.

    What is still in use stays until it is not. Models that the caller holds work on, and what was derived from their
    weights is computed again. May be called at any time, by any thread.
    """
    from mlic_fast import registry

    registry.forget_files()
    codec = sys.modules.get("mlic_fast.codec")
    if codec is None:  # nothing was loaded
        return
    codec.forget_models()
    from mlic_fast import coding
    from mlic_fast.engine.map_memory import shared_map_memory

    coding.forget_all()
    gc.collect()  # modules refer to each other in circles
    shared_map_memory().release()
