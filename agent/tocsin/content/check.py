"""Everything that is to be said about sources, in one list.

The validator is the evaluator: rules that compile are loaded and their samples
run exactly as on a host.
"""

from dataclasses import dataclass
from enum import StrEnum

from tocsin.content.compilation import Compilation, Sources, compile_sources
from tocsin.errors import ContentError
from tocsin.evaluate.code import Code
from tocsin.evaluate.engine import failed_samples
from tocsin.evaluate.fast import FastMatcher
from tocsin.evaluate.inert import inert_rules
from tocsin.evaluate.release import decode
from tocsin.records.field_table import SCHEMA_DIGEST


class Severity(StrEnum):
    """What a finding means for a release."""

    ERROR = "error"
    """No release can be built."""
    WARNING = "warning"
    """A rule will not do what its author may expect."""
    NOTE = "note"
    """Could be better."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to be said."""

    severity: Severity
    code: str
    file: str
    """Relative to the directory that was checked; with its path where several were."""
    line: int
    """From 1; 0 where none is known."""
    rule_id: str
    message: str


def check(sources: Sources) -> list[Finding]:
    """What is wrong with files and directories of rules, ordered by file and line."""
    compilation = compile_sources(sources, "check")
    findings = [_of_error(error) for error in compilation.errors]
    if compilation.release.rules:
        findings += _evaluated(compilation)
    return sorted(findings, key=lambda found: (found.file, found.line, found.code, found.message))


def build(sources: Sources, name: str) -> bytes:
    """The compiled release of files and directories. Raises ContentError when a rule or a sample is wrong."""
    compilation = compile_sources(sources, name)
    errors = list(compilation.errors)
    raw = compilation.serialized()
    if not errors:
        release = decode(raw, SCHEMA_DIGEST)
        errors = failed_samples(release, FastMatcher(release))
    if not errors:
        return raw
    first = errors[0]
    more = f" (and {len(errors) - 1} more: run `tocsin content check`)" if len(errors) > 1 else ""
    raise ContentError(first.code, first.message + more, file=first.file, line=first.line, rule_id=first.rule_id)


def _of_error(error: ContentError) -> Finding:
    return Finding(Severity.ERROR, str(error.code), error.file, error.line, error.rule_id, error.message)


def _evaluated(compilation: Compilation) -> list[Finding]:
    """What the evaluator says of the rules that compile."""
    try:
        release = decode(compilation.serialized(), SCHEMA_DIGEST)
        matcher = FastMatcher(release)
    except ContentError as error:
        return [_of_error(error)]
    findings = [_of_error(error) for error in failed_samples(release, matcher)]
    files = {rule.id: rule.file for rule in release.rules}

    def about(severity: Severity, code: Code, rule_id: str, message: str) -> Finding:
        return Finding(severity, str(code), files[rule_id], compilation.lines[rule_id], rule_id, message)

    for rule_id, reason in inert_rules(release):
        findings.append(about(Severity.WARNING, Code.INERT, rule_id, f"cannot fire on this version's events: {reason}"))
    tested = {sample.rule_id for sample in release.samples if sample.must_match}
    message = "has no sample that it must match; nothing proves that it fires"
    findings += [about(Severity.NOTE, Code.NO_SAMPLES, one, message) for one in files if one not in tested]
    return findings
