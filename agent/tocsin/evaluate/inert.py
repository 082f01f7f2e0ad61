"""Rules that no event of this host's schema can satisfy, and why. They are loaded all the same.

A condition is looked at with what is known of a type of event: a comparison of
a field that such events never have is false (NULL: true), any other may be
either. A rule is inert when its condition is then false for every type.
"""

from collections.abc import Collection, Iterator, Sequence

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.evaluate import semantics
from tocsin.evaluate.release import Release, Rule


def inert_rules(release: Release) -> list[tuple[str, str]]:
    """Rule id and reason of each rule that cannot fire here."""
    reasons = ((rule.id, inert_reason(rule, release.fields)) for rule in release.rules)
    return [(rule_id, reason) for rule_id, reason in reasons if reason]


def inert_reason(rule: Rule, fields: Sequence[str]) -> str:
    """Why a rule cannot fire here, empty when it can. `fields` are the release's."""
    source = rule.log_source
    types = [t for t in semantics.EVENT_FIELDS if any(source.covers(s) for s in semantics.log_sources(t))]
    if not types:
        given = {"category": source.category, "product": source.product, "service": source.service}
        shown = ", ".join(f"{part} {value}" for part, value in given.items() if value)
        return f"no event of this schema has log source {shown}"
    present = {t: {n for n, name in enumerate(fields, 1) if name in semantics.EVENT_FIELDS[t]} for t in types}
    if any(possible(rule.condition, present[t]) is not False for t in types):
        return ""
    everywhere = set.union(*present.values())
    missing = sorted({fields[n - 1] for n in used_fields(rule.condition) if n not in everywhere})
    if not missing:
        return "no event of this schema has all the fields that it needs together"
    return f"needs {', '.join(missing)}, which no event of this schema has in its log source"


def possible(expression: pb.Expression, present: Collection[int]) -> bool | None:
    """The condition's value where only the fields `present` can have one; None: depends on the event."""
    form = expression.WhichOneof("form")
    if form == "predicate":
        predicate = expression.predicate
        needed = {predicate.field, predicate.other_field} - {0}
        if needed.issubset(present):
            return None
        return predicate.operator == pb.OPERATOR_NULL
    if form == "negated":
        inner = possible(expression.negated, present)
        return None if inner is None else not inner
    values = [possible(part, present) for part in getattr(expression, str(form)).parts]
    decisive = form == "any"  # one true part decides any, one false part decides all
    if decisive in values:
        return decisive
    return None if None in values else not decisive


def used_fields(expression: pb.Expression) -> Iterator[int]:
    """Numbers of the fields that a condition names."""
    form = expression.WhichOneof("form")
    if form == "predicate":
        yield from {expression.predicate.field, expression.predicate.other_field} - {0}
    elif form == "negated":
        yield from used_fields(expression.negated)
    else:
        for part in getattr(expression, str(form)).parts:
            yield from used_fields(part)
