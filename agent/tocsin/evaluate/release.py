"""A compiled release: from untrusted bytes to values that matchers may rely on.

Everything is checked here, once: format, schema, limits, uniqueness, sound
conditions. Whatever is wrong is a ContentError; no other exception leaves.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import DecodeError

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.api.event.v1 import batch_pb2
from tocsin.errors import ContentError
from tocsin.evaluate.code import Code
from tocsin.evaluate.conditions import ConditionCheck
from tocsin.evaluate.semantics import LogSource

FORMAT: Final = 1
MAX_RELEASE_BYTES: Final = 64 << 20
MAX_RULES: Final = 50_000
MAX_FIELDS: Final = 8_000
"""Also what the markers of the scan buffer can tell apart."""
MAX_SAMPLES: Final = 200_000
MAX_WORDS_CHARS: Final = 1024
"""Of a title, an author, a tag, a field name, a file."""
UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
UNSAFE_CATEGORIES: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Control, format (bidi overrides), surrogate, private: what makes shown text lie."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, checked."""

    id: str
    title: str
    author: str
    level: int
    """tocsin.api.event.v1.Level, never UNSPECIFIED."""
    tags: tuple[str, ...]
    log_source: LogSource
    file: str
    condition: pb.Expression


@dataclass(frozen=True, slots=True)
class Release:
    """A release, checked."""

    digest: bytes
    """SHA-256 of its bytes."""
    name: str
    fields: tuple[str, ...]
    """Names of the fields that conditions count from 1."""
    rules: tuple[Rule, ...]
    """Ordered by id."""
    samples: tuple[pb.Sample, ...]


def decode(raw: bytes, schema_digest: bytes) -> Release:
    """A release from its bytes. Raises ContentError with the code and the rule."""
    message = _parse(raw)
    if not message.complete:
        raise ContentError(Code.MALFORMED, f"the release ends after {len(raw)} bytes without its end mark: cut short")
    if message.format != FORMAT:
        raise ContentError(Code.FORMAT_UNKNOWN, f"release format {message.format}, this version reads {FORMAT}")
    if message.schema_digest != schema_digest:
        raise ContentError(
            Code.SCHEMA_MISMATCH,
            f"compiled against event schema {message.schema_digest.hex() or 'none'}, this host has "
            f"{schema_digest.hex()}: compile it with the tocsin version of this host",
        )
    _check_sizes(message)
    _check_fields(message)
    _check_rules(message)
    _check_samples(message)
    rules = tuple(_rule(rule) for rule in message.rules)
    return Release(hashlib.sha256(raw).digest(), message.name, tuple(message.fields), rules, tuple(message.samples))


def _parse(raw: bytes) -> pb.CompiledRelease:
    if len(raw) > MAX_RELEASE_BYTES:
        raise ContentError(Code.TOO_LARGE, f"a release of {len(raw)} bytes; at most {MAX_RELEASE_BYTES}")
    if not raw:
        raise ContentError(Code.MALFORMED, "an empty file is no release")
    try:
        message = pb.CompiledRelease.FromString(raw)
        message.DiscardUnknownFields()
        canonical = message.SerializeToString(deterministic=True)
    except (DecodeError, ValueError, RecursionError) as error:
        raise ContentError(Code.MALFORMED, f"not a compiled release, damaged, or nested too deep: {error}") from error
    if canonical != raw:  # unknown fields, garbage at the end, or another encoder
        raise ContentError(
            Code.MALFORMED,
            f"{len(raw)} bytes of which a canonical release has {len(canonical)}: damaged, or made by a newer version",
        )
    return message


def _check_sizes(message: pb.CompiledRelease) -> None:
    for code, what, count, limit in (
        (Code.TOO_MANY_RULES, "rules", len(message.rules), MAX_RULES),
        (Code.TOO_MANY_FIELDS, "fields", len(message.fields), MAX_FIELDS),
        (Code.TOO_MANY_SAMPLES, "samples", len(message.samples), MAX_SAMPLES),
    ):
        if count > limit:
            raise ContentError(code, f"{count} {what}; at most {limit}: split the release")
    if not message.rules:
        raise ContentError(Code.EMPTY_RELEASE, "a release without rules would detect nothing")
    _check_words("name of the release", message.name, pb.Rule())


def _check_fields(message: pb.CompiledRelease) -> None:
    for name in message.fields:
        _check_words("field name", name, pb.Rule())
    if len(set(message.fields)) != len(message.fields) or "" in message.fields:
        raise ContentError(Code.MALFORMED, "field names are empty or stand twice")


def _check_rules(message: pb.CompiledRelease) -> None:
    check = ConditionCheck(len(message.fields))
    previous = ""
    for rule in message.rules:
        check_rule(rule, check)
        if rule.id == previous:
            raise _refused(rule, Code.DUPLICATE_ID, f"two rules have id {rule.id}")
        if rule.id < previous:
            raise _refused(rule, Code.MALFORMED, f"rule {rule.id} stands behind {previous}: not ordered by id")
        previous = rule.id


def check_rule(rule: pb.Rule, check: ConditionCheck) -> None:
    """Raises ContentError when a rule, taken alone, is not sound."""
    if not UUID.fullmatch(rule.id):
        raise _refused(rule, Code.MISSING_ID, f"rule id {rule.id!r} is no lower-case UUID")
    if not rule.title:
        raise _refused(rule, Code.MISSING_TITLE, f"rule {rule.id} has no title")
    if rule.level == batch_pb2.LEVEL_UNSPECIFIED or rule.level not in batch_pb2.Level.values():
        raise _refused(rule, Code.UNKNOWN_LEVEL, f"rule {rule.id}: level {rule.level}")
    source = rule.log_source
    for text in (rule.title, rule.author, rule.file, *rule.tags, source.category, source.product, source.service):
        _check_words("text", text, rule)
    check.check(rule)


def _refused(rule: pb.Rule, code: Code, message: str) -> ContentError:
    return ContentError(code, message, file=rule.file, rule_id=rule.id)


def _check_words(what: str, text: str, rule: pb.Rule) -> None:
    problem = unsafe_text(text)
    if problem:
        raise ContentError(Code.UNSAFE_TEXT, f"{what} {text[:80]!r} {problem}", file=rule.file, rule_id=rule.id)


def unsafe_text(text: str) -> str:
    """Why a text must not be shown to people as it is; empty where it may be."""
    if len(text) > MAX_WORDS_CHARS:
        return f"has {len(text)} characters; at most {MAX_WORDS_CHARS}"
    if text.isascii() and text.isprintable():
        return ""
    bad = next((c for c in text if unicodedata.category(c) in UNSAFE_CATEGORIES), "")
    return f"holds the control character U+{ord(bad):04X}" if bad else ""


def _check_samples(message: pb.CompiledRelease) -> None:
    ids = {rule.id for rule in message.rules}
    for sample in message.samples:
        _check_words("origin", sample.origin, pb.Rule())
        if sample.rule_id not in ids:
            raise ContentError(
                Code.SAMPLE_RULE_UNKNOWN, f"{sample.origin}: sample of {sample.rule_id!r}, which is no rule here"
            )
        if not sample.event.values:
            raise ContentError(Code.INVALID_SAMPLE, f"{sample.origin}: a sample without fields", rule_id=sample.rule_id)


def _rule(rule: pb.Rule) -> Rule:
    source = LogSource(rule.log_source.category, rule.log_source.product, rule.log_source.service)
    return Rule(rule.id, rule.title, rule.author, rule.level, tuple(rule.tags), source, rule.file, rule.condition)
