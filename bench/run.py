"""`make bench`: one table of figures a section, everything measured side by side in this run.

    make bench                          every section but soak
    make bench ARGS="--write"           and puts the tables into docs/BENCH.md
    make bench ARGS="--quick ladder"    shorter, only some
    make bench ARGS="--json"            for programs
    make storms, make soak              these sections only

A section that cannot be measured here says why and what to do; it is no failure,
for figures depend on the machine and are never asserted. Exit code 2: no such section.
"""

import argparse
import importlib
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = {
    "matcher": "the fast matcher against the plain reference matcher",
    "pipeline": "from the ring through the evaluator to a gRPC subscriber: CPU time an event",
    "ladder": "storms with nobody watching, with ever more of the agent, and with auditd",
    "programs": "nanoseconds a run of each eBPF program in each storm",
    "storms": "50 000 execs, unlinks and connects: every one received, or counted as lost",
    "soak": "memory of the agent during SOAK_MINUTES (30) of process churn; only when it is named",
}
UNASKED = [name for name in SECTIONS if name != "soak"]


def main() -> int:
    """Measures the sections that are asked for."""
    about = "\n".join(f"  {name:<10}{words}" for name, words in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="bench/run.py",
        description="Measures Tocsin side by side in one run.",
        epilog=f"sections:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("section", nargs="*", choices=[*SECTIONS, []], help="default: all of them but soak")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: coarser figures")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/BENCH.md")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    sys.path.insert(0, str(ROOT))  # so that the sections are found as bench.<section> from anywhere
    results = measure(arguments.section or UNASKED, arguments)
    if arguments.json:
        print(json.dumps(results, indent=2))
    return 0


def _end(number: int, _: FrameType | None) -> None:
    """In order: agents are ended, and the kernel's audit rules put back."""
    sys.exit(128 + number)


def measure(sections: list[str], options: argparse.Namespace) -> list[dict[str, object]]:
    """Measures one section after another; shows, and if it is asked for writes, each at once."""
    figures = importlib.import_module("bench.figures")
    document = importlib.import_module("bench.document")
    console = Console(stderr=options.json, highlight=False, width=None if sys.stdout.isatty() else 140)
    results: list[dict[str, object]] = []
    for name in sections:
        section = importlib.import_module(f"bench.{name}")
        try:
            found = section.measure(quick=options.quick)
        except figures.LeftOutError as reason:
            console.print(f"LEFT OUT: {name}: {reason}\n", style="bold yellow", markup=False)
            results.append({"section": name, "left_out": str(reason)})
            continue
        results.append(figures.as_json(name, found))
        if not options.json:
            figures.show(found, console)
        if options.write:
            document.write(name, found, quick=options.quick)
    return results


if __name__ == "__main__":
    sys.exit(main())
