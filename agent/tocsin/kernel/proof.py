"""Whether a source really sees: something is done, and it has to count it.

Programs that load and attach may still never run (a security module that is
not active, a helper that does nothing on this CPU).
"""

import os
import time
from typing import Final

from tocsin.api.event.v1.event_pb2 import EVENT_TYPE_EXIT, EVENT_TYPE_FORK
from tocsin.errors import KernelError
from tocsin.kernel.source import EventSource

TIMEOUT_S: Final = 3.0
POLL_S: Final = 0.01


def prove(source: EventSource, wanted: frozenset[int]) -> None:
    """Makes a process that ends at once, and waits until the source has counted that. Raises KernelError.

    `wanted`: the types that the source tells; where it tells neither start nor end of processes nothing is proved.
    """
    awaited = wanted & {EVENT_TYPE_FORK, EVENT_TYPE_EXIT}
    if not awaited:
        return
    before = _generated(source)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    deadline_s = time.monotonic() + TIMEOUT_S
    while any(_generated(source).get(kind, 0) <= before.get(kind, 0) for kind in awaited):
        if time.monotonic() > deadline_s:
            raise KernelError(
                f"the programs are attached, yet did not see a process that began and ended within {TIMEOUT_S:.0f} s: "
                "something keeps them from running; see `tocsin doctor`"
            )
        time.sleep(POLL_S)


def _generated(source: EventSource) -> dict[int, int]:
    return {counter.event_type: counter.generated for counter in source.counters().types}
