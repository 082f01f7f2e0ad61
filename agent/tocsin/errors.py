"""The errors of Tocsin, in one tree, by who must act on them.

A message says what was got, what was expected, where, and what to do.
"""


class TocsinError(Exception):
    """Anything that Tocsin refuses or cannot do."""


class KernelError(TocsinError):
    """The kernel, its privileges or the eBPF objects: the host's operator acts."""


class WireError(TocsinError):
    """Bytes that are not what the protocol says: the sender's author acts."""


class ContentError(TocsinError):
    """Detection content: its author acts.

    `code` is stable for programs; `file`, `line` and `rule_id` are empty or 0
    where they are not known.
    """

    def __init__(self, code: str, message: str, *, file: str = "", line: int = 0, rule_id: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.file = file
        self.line = line
        self.rule_id = rule_id

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        return f"{where}{self.message} [{self.code}]"


class SpoolError(TocsinError):
    """Files that hold events: the host's operator acts."""


class PeerError(TocsinError):
    """The other side of a connection, local or remote."""


class ConfigError(TocsinError):
    """Settings, arguments, paths: whoever gave them acts."""
