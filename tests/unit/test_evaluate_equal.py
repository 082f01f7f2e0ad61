"""The fast matcher equals the plain reference matcher on every generated release and event."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.api.event.v1 import event_pb2
from tocsin.errors import WireError
from tocsin.evaluate import semantics
from tocsin.evaluate.fast import FastMatcher
from tocsin.evaluate.match import Matcher, NamedEvent
from tocsin.evaluate.memo import Memo
from tocsin.evaluate.projection import Projection
from tocsin.evaluate.reference import ReferenceMatcher
from tocsin.evaluate.release import Release
from tocsin.evaluate.semantics import LogSource
from tocsin.records import framing
from tocsin.records.field_table import FIELDS
from unit.releases import batch, compare, compiled, decoded, rule  # type: ignore[import-not-found]

NAMES = (
    "CommandLine",
    "DestinationIp",
    "DestinationPort",
    "Hashes",
    "Image",
    "Initiated",
    "ParentImage",
    "ProcessId",
    "Protocol",
    "QueryResults",
    "TargetFilename",
    "User",
)
TEXTS = (
    *(
        b"a",
        b"A",
        b"b",
        b"ab",
        b"AB",
        b"aXb",
        b"k",
        b"K",
        b"\xe2\x84\xaa",
        b"\xc5\xbf",
        b"s",
        b"/",
        b"/bin/sh",
        b"/BIN/SH",
    ),
    *(b"a\0b", b"a b", b"\0", b"", b"\xc3\xa9", b"\xc3", b"\xff", b"*", b"?", b"\n", b"root", b"Root", b"tcp", b"true"),
    *(
        b"0",
        b"-0",
        b"1",
        b"01",
        b"1.0",
        b"10",
        b"-1",
        b"0.5",
        b"443",
        b"443.0",
        b"nan",
        b"1e3",
        b"99999999999999999999",
    ),
    *(
        b"10.0.0.1",
        b"10.0.0.2",
        b"::1",
        b"::ffff:10.0.0.1",
        b"\0\x80\x81a",
        b"\0\xc0\x81",
        b"x" * 100,
        b"y" + b"x" * 99,
    ),
)
REGEXES = (
    *(
        b"a",
        b"(?i)ab",
        b"^a",
        b"b$",
        b"a.b",
        b"(?s)a.b",
        b"(?i)k",
        b"(?i)ask",
        b"a|b",
        b"ab?",
        b"(a|/)b",
        b"[^a]b",
        b"a{2}",
    ),
    *(
        b"(a|b)/",
        b"(?i)(ask|b)k",
        b"x(?:a|b)+",
        b"(?P<n>a|K)b?",
        b"(a|)b",
        rb"\x61b",
        rb"\d+",
        rb"/bin/\w+",
        rb"\/bin\/",
        b"(?m)^b$",
        b"\xef\xbf\xbd",
        b"\xc3\xa9",
        b"(?:a)(b)",
        rb"[\]a]",
        b"a{b",
        b"",
    ),
)
PATHS = (b"/bin/../bin//sh", b"//a", b"/a/.", b"/..", b"/bin/sh/")
NETWORKS = (b"10.0.0.0/8", b"10.0.0.1/32", b"0.0.0.0/0", b"10.0.0.0/31", b"::1/128", b"::/0", b"10.0.0.0/9")
NUMBERS = ("0", "-0", "1", "1.0", "10", "-1", "0.5", "443", "443.0", "100", "99999999999999999999")
SOURCES = (
    pb.LogSource(category="process_creation", product="linux"),
    pb.LogSource(category="network_connection"),
    pb.LogSource(category="file_event"),
    pb.LogSource(category="file_rename"),
    pb.LogSource(category="dns_query", product="linux"),
    pb.LogSource(product="linux"),
    pb.LogSource(product="windows", category="process_creation"),
    pb.LogSource(service="sshd"),
)

PLAIN = (pb.OPERATOR_EQUALS, pb.OPERATOR_CONTAINS, pb.OPERATOR_STARTSWITH, pb.OPERATOR_ENDSWITH)
NUMERIC = tuple(range(pb.OPERATOR_NUMBER_EQUALS, pb.OPERATOR_GREATER_EQUAL + 1))
BETWEEN = tuple(range(pb.OPERATOR_FIELD_EQUALS, pb.OPERATOR_FIELD_ENDSWITH + 1))
PIECES = [t for t in TEXTS if t and t.isascii()] + [b"\xc3\xa9"]
OFTEN = (NAMES.index("CommandLine") + 1, NAMES.index("Image") + 1)
numbers = st.sampled_from((*OFTEN * 5, *range(len(NAMES) + 1)))
named = st.sampled_from((*OFTEN * 5, *range(1, len(NAMES) + 1)))
# One example draws its texts from few, so that rules and events meet.
pools = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3)


def texts_of(pool: list[bytes]) -> st.SearchStrategy[bytes]:
    one = st.sampled_from(pool)
    return st.one_of(
        one,
        one,
        one.map(bytes.swapcase),
        st.tuples(one, one).map(b"".join),
        st.tuples(one, st.sampled_from(TEXTS)).map(b"".join),
        st.tuples(st.sampled_from(TEXTS), one).map(b"".join),
    )


def pieces_of(pool: list[bytes]) -> st.SearchStrategy[pb.WildcardPiece]:
    literal = st.sampled_from([t for t in pool if t in PIECES] or PIECES)
    return st.one_of(
        literal.map(lambda t: pb.WildcardPiece(literal=t)),
        st.just(pb.WildcardPiece(any=True)),
        st.just(pb.WildcardPiece(one=True)),
    )


def predicates_of(pool: list[bytes]) -> st.SearchStrategy[pb.Predicate]:
    plain = st.builds(
        pb.Predicate,
        field=numbers,
        operator=st.sampled_from(PLAIN),
        text=texts_of(pool),
        case_sensitive=st.booleans(),
    )
    wildcard = st.builds(
        pb.Predicate,
        field=numbers,
        operator=st.just(pb.OPERATOR_WILDCARD),
        wildcard=st.lists(pieces_of(pool), min_size=1, max_size=5),
        case_sensitive=st.booleans(),
    )
    between = st.builds(
        pb.Predicate, field=named, operator=st.sampled_from(BETWEEN), other_field=named, case_sensitive=st.booleans()
    )
    return st.one_of(
        *[plain] * 6,
        *[wildcard] * 2,
        between,
        st.builds(pb.Predicate, field=numbers, operator=st.just(pb.OPERATOR_REGEX), text=st.sampled_from(REGEXES)),
        st.builds(pb.Predicate, field=numbers, operator=st.just(pb.OPERATOR_CIDR), text=st.sampled_from(NETWORKS)),
        st.builds(pb.Predicate, field=numbers, operator=st.sampled_from(NUMERIC), number=st.sampled_from(NUMBERS)),
        st.builds(pb.Predicate, field=named, operator=st.sampled_from((pb.OPERATOR_NULL, pb.OPERATOR_EXISTS))),
    )


def nested(inner: st.SearchStrategy[pb.Expression]) -> st.SearchStrategy[pb.Expression]:
    parts = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        inner.map(lambda e: pb.Expression(negated=e)),
        parts.map(lambda several: pb.Expression(all=pb.ExpressionList(parts=several))),
        parts.map(lambda several: pb.Expression(any=pb.ExpressionList(parts=several))),
    )


def releases_of(pool: list[bytes]) -> st.SearchStrategy[Release]:
    leaves = predicates_of(pool).map(lambda p: pb.Expression(predicate=p))
    conditions = leaves | st.recursive(leaves, nested, max_leaves=4)
    sources = st.sampled_from((*SOURCES[:1] * 6, *SOURCES))
    rules = st.lists(st.tuples(conditions, sources), min_size=1, max_size=8)
    return rules.map(
        lambda several: decoded(compiled(NAMES, [rule(n, one, source) for n, (one, source) in enumerate(several, 1)]))
    )


def events_of(pool: list[bytes]) -> st.SearchStrategy[event_pb2.Event]:
    texts = texts_of(pool)
    process = st.none() | st.builds(
        event_pb2.Process,
        pid=st.sampled_from((0, 1, 10, 443)),
        euid=st.sampled_from((0, 1, 10, 4294967295)),
        exe=texts,
        argv=texts,
        cwd=texts,
    )
    connection = st.builds(
        event_pb2.Connection,
        direction=st.sampled_from((0, 1, 2)),
        protocol=st.sampled_from((0, 6, 17, 132)),
        destination_port=st.sampled_from((0, 1, 10, 443, 100)),
        destination_ip=st.sampled_from(
            (b"", b"\n\0\0\1", bytes(15) + b"\1", b"\n\0\0", bytes(10) + b"\xff\xff\n\0\0\1")
        ),
    )
    body = st.none() | st.just(event_pb2.Exec(argc=1))
    executed = st.builds(
        event_pb2.Event, type=st.sampled_from((*(1,) * 9, 2, 3, 7, 0)), process=process, parent=process, exec=body
    )
    connected = st.builds(event_pb2.Event, type=st.sampled_from((1, 4, 5, 6)), process=process, tcp_connect=connection)
    accepted = st.builds(event_pb2.Event, type=st.sampled_from((4, 5)), process=process, tcp_accept=connection)
    return st.one_of(executed, executed, executed, connected, accepted, filed_of(texts), asked)


def filed_of(texts: st.SearchStrategy[bytes]) -> st.SearchStrategy[event_pb2.Event]:
    file = st.builds(event_pb2.File, path=texts | st.sampled_from(PATHS), source=texts)
    return st.one_of(
        st.builds(event_pb2.Event, type=st.sampled_from((20, 23)), file_create=file),
        st.builds(event_pb2.Event, type=st.just(23), file_rename=file),
    )


asked = st.builds(
    event_pb2.Event,
    type=st.just(45),
    dns_query=st.builds(event_pb2.Dns, addresses=st.sampled_from((b"\x04\n\0\0\1", b"\x04\n\0", b""))),
)


def named_events_of(pool: list[bytes]) -> st.SearchStrategy[NamedEvent]:
    source = st.builds(
        LogSource,
        st.sampled_from((*("process_creation",) * 4, "network_connection", "")),
        st.sampled_from((*("linux",) * 4, "windows", "")),
        st.sampled_from(("", "sshd")),
    )
    value = st.tuples(
        st.sampled_from(("Image", "CommandLine", *NAMES, "Other")), st.none() | texts_of(pool) | st.sampled_from(TEXTS)
    )
    return st.builds(NamedEvent, source, st.lists(value, max_size=12).map(tuple))


schema_cases = pools.flatmap(
    lambda pool: st.tuples(releases_of(pool), st.lists(events_of(pool), min_size=1, max_size=6))
)
named_cases = pools.flatmap(
    lambda pool: st.tuples(releases_of(pool), st.lists(named_events_of(pool), min_size=1, max_size=6))
)
schema_events = pools.flatmap(events_of)
users = st.dictionaries(st.sampled_from((0, 1, 10, 4294967295)), st.sampled_from((b"root", b"k", b"x" * 300, b"")))


def matchers(release: Release, names: dict[int, bytes]) -> tuple[ReferenceMatcher, list[FastMatcher]]:
    """The reference, and the fast one with the literals it would choose and with every literal."""
    reference = ReferenceMatcher(release)
    fast = [FastMatcher(release), FastMatcher(release, useless_cost=math.inf)]
    several: list[Matcher] = [reference, *fast]
    for matcher in several:
        matcher.set_users(names)
    return reference, fast


def assert_equal_on_batch(release: Release, names: dict[int, bytes], raw: bytes) -> None:
    reference, fast = matchers(release, names)
    expected = reference.match_batch(raw)
    for matcher in fast:
        assert matcher.match_batch(raw) == expected
        assert matcher.match_batch(raw) == expected, "from memory"
        assert not matcher.faults


@settings(max_examples=600, deadline=None)
@given(schema_cases, users)
def test_on_schema_events(case: tuple[Release, list[event_pb2.Event]], names: dict[int, bytes]) -> None:
    release, events = case
    assert_equal_on_batch(release, names, batch(*events))


@settings(max_examples=600, deadline=None)
@given(named_cases)
def test_on_named_events(case: tuple[Release, list[NamedEvent]]) -> None:
    release, events = case
    reference, fast = matchers(release, {})
    expected = reference.match_named(events)
    for matcher in fast:
        assert matcher.match_named(events) == expected
        assert not matcher.faults


@settings(max_examples=300, deadline=None)
@given(schema_cases, users)
def test_on_merged_messages_and_replaced_bodies(
    case: tuple[Release, list[event_pb2.Event]], names: dict[int, bytes]
) -> None:
    """Serialised messages one behind the other are one message: the last value counts, the last body too."""
    release, events = case
    assert_equal_on_batch(release, names, framing.event_field(b"".join(e.SerializeToString() for e in events)))


@settings(max_examples=200, deadline=None)
@given(st.lists(schema_events, max_size=5), users)
def test_the_projection_shows_what_the_semantics_say(events: list[event_pb2.Event], names: dict[int, bytes]) -> None:
    fields = sorted({field.name for field in FIELDS})
    projection = Projection(fields, tuple(semantics.EVENT_FIELDS), every_field=True)
    projection.set_users(names)
    index = framing.index(batch(*events))
    buffer, ends, _ = projection.project(index, Memo())
    start = 0
    for event, end in zip(events, ends, strict=True):
        assert bytes(buffer[start:end]) == b"".join(
            b"\0\x80"
            + bytes((0x80 | fields.index(name) + 1,))
            + value
            + b"\0\xc0"
            + bytes((0x80 | fields.index(name) + 1,))
            for name, value in semantics.values_of(event, names)
        )
        start = end


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_batch_never_crashes(data: st.DataObject) -> None:
    events = data.draw(st.lists(schema_events, min_size=1, max_size=3))
    damaged = bytearray(batch(*events))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    anything_but = pb.Expression(negated=compare(0, pb.OPERATOR_EQUALS, b"a"))
    release = decoded(compiled(NAMES, [rule(1, anything_but, pb.LogSource(product="linux"))]))
    try:
        FastMatcher(release).match_batch(bytes(damaged))
    except WireError:
        return


def test_a_rule_of_each_category_of_a_body_looks_at_the_same_event() -> None:
    name = compare(NAMES.index("TargetFilename") + 1, pb.OPERATOR_EQUALS, b"/etc/passwd")
    sources = [pb.LogSource(category=c) for c in ("file_event", "file_rename", "file_delete")]
    release = decoded(compiled(NAMES, [rule(n, name, source) for n, source in enumerate(sources, 1)]))
    renamed = event_pb2.Event(type=event_pb2.EVENT_TYPE_FILE_RENAME, file_rename=event_pb2.File(path=b"/etc/passwd"))
    raw = batch(renamed)
    assert [match.rule.log_source.category for match in FastMatcher(release).match_batch(raw)] == [
        "file_event",
        "file_rename",
    ]
    assert_equal_on_batch(release, {}, raw)


def test_a_second_body_replaces_the_first() -> None:
    """protobuf clears a oneof's other member: nothing of the first connect may be left in the third."""
    connect = event_pb2.Event(
        type=event_pb2.EVENT_TYPE_TCP_CONNECT, tcp_connect=event_pb2.Connection(destination_port=443, protocol=6)
    )
    accept = event_pb2.Event(type=event_pb2.EVENT_TYPE_TCP_CONNECT, tcp_accept=event_pb2.Connection(protocol=17))
    again = event_pb2.Event(type=event_pb2.EVENT_TYPE_TCP_CONNECT, tcp_connect=event_pb2.Connection(protocol=6))
    port = pb.Predicate(field=3, operator=pb.OPERATOR_NUMBER_EQUALS, number="0")
    release = decoded(compiled(NAMES, [rule(1, pb.Expression(predicate=port), SOURCES[1])]))
    raw = framing.event_field(b"".join(e.SerializeToString() for e in (connect, accept, again)))
    assert len(FastMatcher(release).match_batch(raw)) == 1
    assert_equal_on_batch(release, {}, raw)
