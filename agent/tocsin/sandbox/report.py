"""What the sandbox of a process is made of, step by step, as it came out on this kernel.

Nothing is silent: a step that the kernel lacks, or that this process may not
take, stands in the report with its reason. A step that a profile requires
raises KernelError instead.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from tocsin.errors import KernelError


class Outcome(Enum):
    """How a step came out."""

    DONE = "done"
    PARTIAL = "partial"
    """In force, but weaker than asked for."""
    MISSING = "missing"
    """The kernel or a library lacks it, or this process may not take it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step."""

    name: str
    outcome: Outcome
    detail: str
    """What is in force, with numbers; else why it is not, and what to do."""

    def __str__(self) -> str:
        mark = "" if self.outcome is Outcome.DONE else f" ({self.outcome.value})"
        return f"{self.name}{mark}: {self.detail}"


@dataclass(frozen=True, slots=True)
class SandboxReport:
    """Every step of a profile, in the order in which they were taken."""

    profile: str
    steps: tuple[Step, ...]

    @property
    def complete(self) -> bool:
        """Whether every step is fully in force."""
        return all(step.outcome is Outcome.DONE for step in self.steps)

    def __str__(self) -> str:
        return f"{self.profile} sandbox: " + "; ".join(str(step) for step in self.steps)


class UnavailableError(KernelError):
    """The kernel, a library or this process's privileges lack what a step needs."""


class Recorder:
    """Takes steps and keeps what became of each."""

    def __init__(self, profile: str) -> None:
        self._profile = profile
        self._steps: list[Step] = []

    def take(self, name: str, action: Callable[[], Step | str], *, required: bool = False) -> None:
        """Takes a step. UnavailableError is recorded, or raised as KernelError when the step is required."""
        try:
            result = action()
        except UnavailableError as error:
            if required:
                raise KernelError(f"{self._profile} sandbox: {name}: {error}") from error
            result = Step(name, Outcome.MISSING, str(error))
        self._steps.append(result if isinstance(result, Step) else Step(name, Outcome.DONE, result))

    def report(self) -> SandboxReport:
        """What became of the steps so far."""
        return SandboxReport(self._profile, tuple(self._steps))
