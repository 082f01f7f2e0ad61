"""The engine refuses every unsound release with a code, and turns batches into detections."""

import hashlib
from collections.abc import Callable

import pytest

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.api.event.v1 import batch_pb2
from tocsin.errors import ContentError, WireError
from tocsin.evaluate import engine
from tocsin.evaluate.boundary import MUTE_AFTER, BoundedRule
from tocsin.evaluate.code import Code
from tocsin.evaluate.release import Rule
from tocsin.evaluate.semantics import LogSource
from tocsin.evaluate.view import NamedView, View
from tocsin.records.field_table import SCHEMA_DIGEST
from unit.releases import batch, compare, compiled, exec_event, raw, rule, rule_id  # type: ignore[import-not-found]

ENDSWITH, EQUALS, CONTAINS = pb.OPERATOR_ENDSWITH, pb.OPERATOR_EQUALS, pb.OPERATOR_CONTAINS


def nc_release() -> pb.CompiledRelease:
    release: pb.CompiledRelease = compiled(["Image"], [rule(1, compare(1, ENDSWITH, b"/nc"))])
    return release


def loaded(release: pb.CompiledRelease) -> engine.Engine:
    return engine.load(raw(release), SCHEMA_DIGEST)


def refusal(release: pb.CompiledRelease) -> ContentError:
    with pytest.raises(ContentError) as caught:
        loaded(release)
    return caught.value


def test_a_detection_carries_rule_release_user_and_the_very_bytes_of_the_event() -> None:
    release = nc_release()
    release.rules[0].author, release.rules[0].tags[:] = "A. Author", ["attack.t1059"]
    header = batch_pb2.BatchHeader(
        end_position=77, realtime_offset_ns=-5, users=[batch_pb2.User(uid=1000, name="alice")]
    )
    events = [exec_event(b"/bin/ls"), exec_event(b"/usr/bin/NC", euid=1000)]
    found = batch_pb2.DetectionBatch.FromString(loaded(release).match_batch(batch(*events, header=header)))
    assert found.end_position == 77
    assert list(found.detections) == [
        batch_pb2.Detection(
            rule_id=rule_id(1),
            rule_title="Rule 1",
            rule_author="A. Author",
            level=batch_pb2.LEVEL_HIGH,
            tags=["attack.t1059"],
            release_digest=hashlib.sha256(raw(release)).digest(),
            event=events[1],
            realtime_offset_ns=-5,
            user_name="alice",
        )
    ]


def test_users_stay_known_after_the_batch_that_told_them() -> None:
    release = compiled(["User"], [rule(1, compare(1, EQUALS, b"Alice"))])
    running = loaded(release)
    users = batch_pb2.BatchHeader(users=[batch_pb2.User(uid=1000, name="alice")])
    running.match_batch(batch(header=users))
    found = batch_pb2.DetectionBatch.FromString(running.match_batch(batch(exec_event(euid=1000))))
    assert [d.user_name for d in found.detections] == ["alice"]


def test_named_events_are_answered_by_line() -> None:
    events = pb.NamedEventBatch(
        events=[
            pb.NamedEvent(
                log_source=pb.LogSource(category="process_creation", product=product),
                values=[pb.NamedValue(name="Image", value=b"/bin/nc")],
                line=line,
            )
            for line, product in ((3, "linux"), (4, "windows"))
        ]
    )
    found = pb.NamedMatches.FromString(loaded(nc_release()).match_named(events.SerializeToString()))
    assert [(m.line, m.rule_id, m.rule_title) for m in found.matches] == [(3, rule_id(1), "Rule 1")]


def test_garbage_in_place_of_a_batch_is_a_wire_error() -> None:
    running = loaded(nc_release())
    for call in (running.match_batch, running.match_named):
        with pytest.raises(WireError):
            call(b"\xff\xff\xff")


def change(what: Callable[[pb.CompiledRelease], None]) -> pb.CompiledRelease:
    release = nc_release()
    what(release)
    return release


def predicate(release: pb.CompiledRelease) -> pb.Predicate:
    return release.rules[0].condition.predicate


def nest(release: pb.CompiledRelease, levels: int) -> None:
    for _ in range(levels):
        release.rules[0].condition.CopyFrom(pb.Expression(negated=release.rules[0].condition))


def set_predicate(**values: object) -> Callable[[pb.CompiledRelease], None]:
    return lambda r: predicate(r).MergeFrom(pb.Predicate(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (Code.FORMAT_UNKNOWN, lambda r: setattr(r, "format", 2)),
        (Code.SCHEMA_MISMATCH, lambda r: setattr(r, "schema_digest", b"x" * 32)),
        (Code.EMPTY_RELEASE, lambda r: r.ClearField("rules")),
        (Code.DUPLICATE_ID, lambda r: r.rules.append(r.rules[0])),
        (Code.MALFORMED, lambda r: r.rules.append(rule(0, r.rules[0].condition))),
        (Code.MISSING_ID, lambda r: setattr(r.rules[0], "id", "nc")),
        (Code.MISSING_ID, lambda r: setattr(r.rules[0], "id", r.rules[0].id.replace("0", "\u0660"))),
        (Code.MISSING_TITLE, lambda r: r.rules[0].ClearField("title")),
        (Code.UNSAFE_TEXT, lambda r: setattr(r.rules[0], "title", "abc\u202edef")),
        (Code.UNSAFE_TEXT, lambda r: setattr(r.rules[0], "title", "a\0b")),
        (Code.UNSAFE_TEXT, lambda r: setattr(r.rules[0], "author", "x" * 2000)),
        (Code.UNKNOWN_LEVEL, lambda r: r.rules[0].ClearField("level")),
        (Code.UNKNOWN_LEVEL, lambda r: setattr(r.rules[0], "level", 99)),
        (Code.UNKNOWN_OPERATOR, lambda r: predicate(r).ClearField("operator")),
        (Code.UNKNOWN_OPERATOR, lambda r: setattr(predicate(r), "operator", 99)),
        (Code.UNKNOWN_FIELD, lambda r: setattr(predicate(r), "field", 2)),
        (Code.UNKNOWN_FIELD, set_predicate(operator=pb.OPERATOR_FIELD_EQUALS)),
        (Code.UNKNOWN_FIELD, lambda r: predicate(r).CopyFrom(pb.Predicate(operator=pb.OPERATOR_NULL))),
        (Code.MALFORMED, lambda r: r.rules[0].ClearField("condition")),
        (Code.MALFORMED, lambda r: r.rules[0].condition.all.SetInParent()),
        (Code.MALFORMED, set_predicate(operator=pb.OPERATOR_WILDCARD, wildcard=[pb.WildcardPiece()])),
        (Code.MALFORMED, set_predicate(operator=pb.OPERATOR_WILDCARD, wildcard=[pb.WildcardPiece(literal=b"\xff")])),
        (Code.TEXT_TOO_LONG, set_predicate(operator=pb.OPERATOR_WILDCARD)),
        (Code.TEXT_TOO_LONG, set_predicate(text=b"x" * 4097)),
        (Code.TOO_DEEP, lambda r: nest(r, 40)),
        (Code.INVALID_NUMBER, set_predicate(operator=pb.OPERATOR_LESS, number="NaN")),
        (Code.INVALID_NUMBER, set_predicate(operator=pb.OPERATOR_LESS, number="1e5")),
        (Code.INVALID_NETWORK, set_predicate(operator=pb.OPERATOR_CIDR, text=b"10.0.0.0/99")),
        (Code.INVALID_REGEX, set_predicate(operator=pb.OPERATOR_REGEX, text=b"(?=a)")),
        (Code.INVALID_REGEX, set_predicate(operator=pb.OPERATOR_REGEX, text=b"\\pN{1000}")),
        (Code.REGEX_TOO_BIG, set_predicate(operator=pb.OPERATOR_REGEX, text=b"x{1000}y" * 11)),
        (Code.MALFORMED, lambda r: r.fields.append("Image")),
        (Code.TOO_MANY_FIELDS, lambda r: r.fields.extend(f"f{n}" for n in range(9000))),
        (Code.SAMPLE_RULE_UNKNOWN, lambda r: r.samples.add(rule_id=rule_id(9))),
        (Code.INVALID_SAMPLE, lambda r: r.samples.add(rule_id=rule_id(1))),
    ],
)
def test_refuses_with_the_code(code: Code, what: Callable[[pb.CompiledRelease], None]) -> None:
    assert refusal(change(what)).code in (code, Code.REGEX_TOO_BIG if code is Code.INVALID_REGEX else code)


@pytest.mark.parametrize(("must_match", "code"), [(True, Code.SAMPLE_NOT_MATCHED), (False, Code.SAMPLE_MATCHED)])
def test_a_sample_that_does_not_do_what_it_says_refuses_the_release(must_match: bool, code: Code) -> None:
    release = nc_release()
    image = b"/bin/ls" if must_match else b"/bin/nc"
    source = pb.LogSource(category="process_creation", product="linux")
    event = pb.NamedEvent(log_source=source, values=[pb.NamedValue(name="Image", value=image)])
    release.samples.add(rule_id=rule_id(1), must_match=must_match, origin="nc.samples.yml:3", event=event)
    error = refusal(release)
    assert (error.code, error.file, error.line, error.rule_id) == (code, "nc.samples.yml", 3, rule_id(1))


def test_every_truncation_of_a_release_is_refused() -> None:
    whole = raw(nc_release())
    for size in range(len(whole)):
        with pytest.raises(ContentError):
            engine.load(whole[:size], SCHEMA_DIGEST)


def test_no_flipped_bit_gives_anything_but_a_content_error() -> None:
    whole = raw(nc_release())
    for position in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        try:
            engine.load(bytes(damaged), SCHEMA_DIGEST)
        except ContentError:
            continue


@pytest.mark.parametrize("garbage", [b"", bytes(100), b"\xff" * 100, raw(nc_release()) + b"\x00", b"x"])
def test_garbage_is_refused_as_malformed(garbage: bytes) -> None:
    with pytest.raises(ContentError) as caught:
        engine.load(garbage, SCHEMA_DIGEST)
    assert caught.value.code == Code.MALFORMED


def test_protobuf_nested_beyond_its_parser_is_refused() -> None:
    release = nc_release()
    inner = release.rules[0].condition
    for _ in range(200):
        inner = inner.negated
    inner.predicate.field = 1
    assert refusal(release).code == Code.MALFORMED


def test_rules_that_cannot_fire_here_are_loaded_and_say_why() -> None:
    null_or_hash = pb.Expression(any=pb.ExpressionList(parts=[compare(1, EQUALS, b"x"), compare(1, pb.OPERATOR_NULL)]))
    release = compiled(
        ["Hashes", "Image"],
        [
            rule(1, compare(2, EQUALS, b"x")),
            rule(2, compare(1, EQUALS, b"x")),
            rule(3, compare(2, EQUALS, b"x"), pb.LogSource(product="linux", service="auditd")),
            rule(4, null_or_hash),
            rule(5, compare(2, EQUALS, b"x"), pb.LogSource(product="windows", category="process_creation")),
        ],
    )
    inert = dict(loaded(release).inert)
    assert sorted(inert) == [rule_id(2), rule_id(3), rule_id(5)]
    assert "Hashes" in inert[rule_id(2)]
    assert "service auditd" in inert[rule_id(3)]


def test_a_raising_rule_is_false_and_muted_after_some_faults() -> None:
    def broken(_view: View) -> bool:
        raise ZeroDivisionError("by a bug")

    described = Rule(rule_id(1), "t", "", 1, (), LogSource(), "", pb.Expression())
    bounded = BoundedRule(described, broken)
    assert not any(bounded.matches(NamedView({}, ("",))) for _ in range(MUTE_AFTER + 5))
    assert (bounded.faults, bounded.muted) == (MUTE_AFTER, True)
    assert "ZeroDivisionError" in bounded.last_fault


@pytest.mark.parametrize(
    ("value", "matches"),
    [(b"443", True), (b"443.0", True), (b"0443", False), (b"4430", False), (b"1443", False), (b"4.43e2", False)],
)
def test_numbers_are_compared_as_numbers(value: bytes, matches: bool) -> None:
    condition = compare(1, pb.OPERATOR_NUMBER_EQUALS, number="443")
    release = compiled(["DestinationPort"], [rule(1, condition, pb.LogSource())])
    event = pb.NamedEvent(values=[pb.NamedValue(name="DestinationPort", value=value)])
    found = loaded(release).match_named(pb.NamedEventBatch(events=[event]).SerializeToString())
    assert bool(pb.NamedMatches.FromString(found).matches) is matches
