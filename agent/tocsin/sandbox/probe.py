"""Enters a profile in a process made for it and prints the report as JSON: for `tocsin doctor`.

python -P -m tocsin.sandbox.probe evaluator UID MEMORY_BYTES
"""

import json
import sys
from collections.abc import Sequence

from tocsin.errors import KernelError
from tocsin.sandbox.profiles import enter_evaluator


def main(argv: Sequence[str]) -> int:
    """1 when a required step cannot be taken."""
    _, uid, memory_bytes = argv
    try:
        report = enter_evaluator(int(uid), int(memory_bytes))
    except KernelError as error:
        print(json.dumps([["sandbox", "missing", str(error)]]))
        return 1
    print(json.dumps([[step.name, step.outcome.value, step.detail] for step in report.steps]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
