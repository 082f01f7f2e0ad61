"""A gRPC subscriber in a process of its own: counts what was written for the measurement, as it comes.

    subscriber.py SOCKET COUNTS-FD MARK RULE-ID

Counts lie in shared memory, four 64-bit numbers: events with the mark,
detections of the rule with the mark, all messages, lost events.
"""

import mmap
import struct
import sys
from pathlib import Path

from tocsin.api.control.v1 import control_service_pb2 as control
from tocsin.cli.agent import connected
from tocsin.stream import wire

COUNTS = struct.Struct("<4Q")


def main() -> None:
    """Counts until it is killed."""
    socket, fd, mark, rule = Path(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3]), sys.argv[4].encode()
    memory = mmap.mmap(fd, COUNTS.size)
    events = detections = messages = lost = 0
    with connected(socket) as agent:
        for serialised in agent.subscribe(control.SubscribeRequest(events=True, detections=True), None):
            number, part = wire.part(serialised)
            messages += 1
            if number == control.SubscribeResponse.BATCH_FIELD_NUMBER:
                events += part.count(mark)
            elif number == control.SubscribeResponse.DETECTIONS_FIELD_NUMBER:
                detections += min(part.count(mark), part.count(rule))
                lost += sum(loss.count for loss in control.SubscribeResponse.FromString(serialised).detections.losses)
            elif number == control.SubscribeResponse.LOSS_FIELD_NUMBER:
                lost += control.SubscribeResponse.FromString(serialised).loss.count
            COUNTS.pack_into(memory, 0, events, detections, messages, lost)


if __name__ == "__main__":
    main()
