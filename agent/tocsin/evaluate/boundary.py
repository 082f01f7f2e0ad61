"""The error boundary of one rule: what goes wrong in it stays in it."""

from typing import Final

from tocsin.evaluate.predicate import Condition
from tocsin.evaluate.release import Rule
from tocsin.evaluate.view import View

MUTE_AFTER: Final = 10
"""Faults after which a rule is not asked any more."""


class BoundedRule:
    """A rule and its condition. A raising condition is false, counted, and muted when it goes on."""

    __slots__ = ("_condition", "faults", "last_fault", "rule")

    def __init__(self, rule: Rule, condition: Condition) -> None:
        self.rule = rule
        self._condition = condition
        self.faults = 0
        self.last_fault = ""

    @property
    def muted(self) -> bool:
        """Whether the rule is not asked any more."""
        return self.faults >= MUTE_AFTER

    def matches(self, view: View) -> bool:
        """Whether the event satisfies the rule."""
        if self.faults >= MUTE_AFTER:
            return False
        try:
            return self._condition(view)
        except Exception as error:  # noqa: BLE001 - one rule's fault must not stop the others
            self.faults += 1
            self.last_fault = f"{type(error).__name__}: {error}"
            return False
