"""The command line: finds the verb, runs it, turns every error into one line and an exit code.

Only the module of the verb that is asked for is imported. A verb's module has
`configure(parser)`, which adds its arguments, and `run(arguments)`, which gives
the exit code.
"""

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NoReturn

from tocsin.errors import ConfigError, ContentError, KernelError, PeerError, SpoolError, TocsinError, WireError


class Exit(IntEnum):
    """What the command tells the shell."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    NOT_REACHABLE = 3
    PRIVILEGE = 4


EPILOG: Final = """\
exit codes:
  0  done
  1  refused, or there are findings: the content, the recording or the agent's health is not in order
  2  a wrong argument, setting or path
  3  the agent is not reachable
  4  a privilege or a kernel feature is missing
"""


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb and where it is implemented."""

    module: str
    help: str
    verbs: "dict[str, Verb] | None" = None
    """Those below it."""


CONTENT: Final = {
    "check": Verb("tocsin.cli.content_check", "find what is wrong with detection content"),
    "build": Verb("tocsin.cli.content_build", "compile detection content to a release"),
    "load": Verb("tocsin.cli.content_load", "compile detection content and load it into the running agent"),
}
VERBS: Final = {
    "run": Verb("tocsin.cli.run", "run the agent"),
    "tail": Verb("tocsin.cli.tail", "show events and detections as they happen"),
    "status": Verb("tocsin.cli.status", "show how the agent does"),
    "doctor": Verb("tocsin.cli.doctor", "check what this host offers and what it lacks"),
    "record": Verb("tocsin.cli.record", "record the agent's events in a file"),
    "replay": Verb("tocsin.cli.replay", "run detection content on recorded events"),
    "content": Verb("", "check, build and load detection content", CONTENT),
    "version": Verb("tocsin.cli.version", "show the version"),
}
EXIT_OF_ERROR: Final = (
    (ContentError, Exit.REFUSED),
    (ConfigError, Exit.USAGE),
    (PermissionError, Exit.PRIVILEGE),
    (KernelError, Exit.PRIVILEGE),
    (PeerError, Exit.NOT_REACHABLE),
    (SpoolError, Exit.REFUSED),
    (WireError, Exit.REFUSED),
    (TocsinError, Exit.REFUSED),
    (OSError, Exit.USAGE),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; its exit code."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        with contextlib.suppress(KeyboardInterrupt):
            return int(arguments.run(arguments))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has enough: say nothing at exit
        return Exit.OK
    except (TocsinError, OSError) as error:
        return fail(str(error), next(code for kind, code in EXIT_OF_ERROR if isinstance(error, kind)))
    return 128 + signal.SIGINT


def fail(words: str, code: Exit) -> int:
    """One line on standard error; the exit code."""
    sys.stdout.flush()
    print(f"tocsin: {words}", file=sys.stderr)
    return code


class Parser(argparse.ArgumentParser):
    """Says what is wrong on one line."""

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2."""
        self.exit(Exit.USAGE, f"{self.prog}: {message} (see `{self.prog} --help`)\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the verb, with `run` set to what runs it."""
    parser = Parser(
        prog="tocsin",
        description="A Linux security sensor whose detection content cannot hurt the host.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add(parser, VERBS, argv)
    return parser.parse_args(argv)


def _add(parser: argparse.ArgumentParser, verbs: dict[str, Verb], argv: Sequence[str]) -> None:
    """Adds the verbs; the arguments of one only when it stands on the command line."""
    commands = parser.add_subparsers(metavar="VERB", required=True, title="verbs")
    for name, verb in verbs.items():
        sub = commands.add_parser(
            name,
            help=verb.help,
            description=f"{verb.help[0].upper()}{verb.help[1:]}.",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name not in argv:
            continue
        if verb.verbs is not None:
            _add(sub, verb.verbs, argv)
            continue
        module = importlib.import_module(verb.module)
        module.configure(sub)
        sub.set_defaults(run=module.run)


if __name__ == "__main__":
    sys.exit(main())
