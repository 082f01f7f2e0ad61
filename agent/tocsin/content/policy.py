"""pySigma's settings: its regular expressions are those of the evaluator, its rules reach nothing outside."""

from typing import Final, cast

from sigma.policy import SigmaPolicy
from sigma.policy.regex_engine import RegexEngine, RegexPattern

from tocsin.evaluate import semantics


class EvaluatorRegexEngine(RegexEngine):  # type: ignore[misc]
    """RE2 with the evaluator's options. pySigma checks expressions with it and picks detections by name."""

    def compile(self, pattern: str, _flags: int = 0) -> RegexPattern:
        """A compiled expression; flags change nothing about its validity. Raises ValueError."""
        return cast("RegexPattern", semantics.regex(pattern.encode()))

    @property
    def error(self) -> type[Exception]:
        """What `compile` raises."""
        return ValueError


POLICY: Final = SigmaPolicy(regex_engine=EvaluatorRegexEngine())
