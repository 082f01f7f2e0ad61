"""Sigma becomes comparisons of a release, or an error with code, file and line; nothing is left out silently."""

import textwrap
from pathlib import Path

import pytest

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.content.check import Severity, build, check
from tocsin.content.compilation import compile_sources
from tocsin.errors import ContentError
from tocsin.evaluate import engine
from tocsin.evaluate.code import Code
from tocsin.evaluate.fast import FastMatcher
from tocsin.evaluate.match import NamedEvent
from tocsin.evaluate.release import decode
from tocsin.evaluate.semantics import LogSource
from tocsin.records.field_table import SCHEMA_DIGEST

ID = "5f1abf38-291e-4a4c-bd77-6f0a0b1c2d3e"
HEAD = f"title: T\nid: {ID}\nlogsource: {{category: process_creation, product: linux}}\nlevel: high\n"


def sigma(detection: str, head: str = HEAD) -> str:
    return head + "detection:\n" + textwrap.indent(textwrap.dedent(detection).strip("\n"), "  ") + "\n"


def matches(tmp_path: Path, detection: str, **fields: bytes | list[bytes] | None) -> bool:
    """Whether a rule with this detection matches an event with these fields."""
    (tmp_path / "r.yml").write_text(sigma(detection))
    matcher = FastMatcher(decode(build(tmp_path, "t"), SCHEMA_DIGEST))
    values = [(name, one) for name, value in fields.items() for one in (value if isinstance(value, list) else [value])]
    return bool(matcher.match_named([NamedEvent(LogSource("process_creation", "linux"), tuple(values))]))


@pytest.mark.parametrize(
    ("selection", "yes", "no"),
    [
        ("F: abc", [b"abc", b"ABC"], [b"abcd", b"xabc", b"", None]),
        ("F|cased: aBc", [b"aBc"], [b"abc"]),
        ("F|contains: bc", [b"abcd", b"BC"], [b"b c"]),
        ("F|startswith: ab", [b"ab", b"ABc"], [b"xab"]),
        ("F|endswith: bc", [b"bc", b"aBC"], [b"bcx"]),
        ("F|contains|cased: bC", [b"abCd"], [b"abcd"]),
        ("F|contains|all: [a, b]", [b"xbxa"], [b"a", b"b"]),
        ("F: [a, b]", [b"a", b"B", [b"x", b"b"]], [b"ab", [b"x", b"y"]]),
        ("F: 'a*c'", [b"ac", b"axxC"], [b"acx"]),
        ("F: 'a?c'", [b"abc", "aéc".encode(), b"a\xffc"], [b"ac", b"abbc"]),
        (r"F: 'a\*c'", [b"a*c"], [b"abc"]),
        (r"F: 'C:\\Win\x'", [rb"c:\win\x"], [rb"c:\\win\x"]),
        ("F: '*'", [b"", b"x"], [None]),
        ("F: null", [None, b""], [b"x"]),
        ("F: ''", [b""], [b"x", None]),
        ("F: 443", [b"443", b"443.0"], [b"4430", b"x", None]),
        ("F: true", [b"true", b"True"], [b"false", b"1"]),
        ("F|lt: 10", [b"9.5", b"-3"], [b"10", b"x", b"nan"]),
        ("F|lte: 10", [b"10"], [b"10.1"]),
        ("F|gt: 10", [b"11", b"99999999999999999999"], [b"10"]),
        ("F|gte: 10", [b"10"], [b"9"]),
        ("F|neq: abc", [b"x", None], [b"abc"]),
        ("F|re: 'a.c$'", [b"xabc"], [b"ABC", b"abcx"]),
        ("F|re|i: 'a.c'", [b"xABCx"], [b"ac"]),
        ("F|re|m: '^b'", [b"a\nb"], [b"ab"]),
        ("F|re|s: 'a.b'", [b"a\nb"], [b"a\n\nb"]),
        ("F|re: 'a.b'", [b"axb"], [b"a\nb"]),
        ("F|cidr: 10.0.0.0/8", [b"10.1.2.3"], [b"11.0.0.1", b"x", b"::1"]),
        ("F|cidr: 'fe80::/10'", [b"fe80::1"], [b"10.0.0.1"]),
        ("F|exists: true", [b"", b"x"], [None]),
        ("F|exists: false", [None], [b"x"]),
        ("F|windash|contains: ' -x'", [b"a -x", b"a /x", "a \u2013x".encode()], [b"a x"]),
        ("F|base64: foo", [b"Zm9v"], [b"foo"]),
        ("F|base64offset|contains: foobar", [b"xxZm9vYmFyxx", b"Zvb2Jhc", b"mb29iYX"], [b"foobar"]),
        ("F|wide|base64offset|contains: ping", [b"cABpAG4AZw"], [b"ping"]),
        ("F|fieldref: G", [b"gee"], [b"x", None]),
        ("F|fieldref|startswith: G", [b"geezer"], [b"xgee"]),
        ("F|fieldref|endswith: G", [b"ogee"], [b"geex"]),
        ("F|fieldref|contains: G", [b"ogeex"], [b"ge"]),
    ],
)
def test_a_selection_matches_what_sigma_says(
    tmp_path: Path, selection: str, yes: list[bytes | None], no: list[bytes | None]
) -> None:
    detection = f"sel:\n  {selection}\ncondition: sel"
    for value in yes:
        assert matches(tmp_path, detection, F=value, G=b"GEE"), value
    for value in no:
        assert not matches(tmp_path, detection, F=value, G=b"GEE"), value


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("a", "a"),
        ("not a", "bc-"),
        ("a or b", "ab"),
        ("a and b", ""),
        ("a or b and not c", "ab"),
        ("(a or b) and not b", "a"),
        ("1 of s_*", "bc"),
        ("all of s_*", ""),
        ("any of them", "abc"),
        ("1 of them", "abc"),
        ("not 1 of them", "-"),
        ("not all of them", "abc-"),
        ("[a, s_b]", "ab"),
    ],
)
def test_each_form_of_condition(tmp_path: Path, condition: str, expected: str) -> None:
    text = condition.replace(" b", " s_b").replace("b ", "s_b ").replace(" c", " s_c")
    detection = f"a: {{F: a}}\ns_b: {{F: b}}\ns_c: {{F: c}}\ncondition: {text}".replace("s_s_", "s_")
    assert "".join(v for v in "abc-" if matches(tmp_path, detection, F=v.encode())) == expected


def test_lists_of_maps_are_alternatives_and_maps_are_joined(tmp_path: Path) -> None:
    detection = "sel:\n  - F: a\n    G: g\n  - F: b\ncondition: sel"
    assert matches(tmp_path, detection, F=b"a", G=b"g")
    assert not matches(tmp_path, detection, F=b"a", G=b"x")
    assert matches(tmp_path, detection, F=b"b", G=b"x")


def test_keywords_are_searched_in_every_field(tmp_path: Path) -> None:
    detection = "keywords:\n  - rm -rf\n  - 'a*z'\ncondition: keywords"
    assert matches(tmp_path, detection, Whatever=b"sudo RM -rf /")
    assert matches(tmp_path, detection, Other=b"xxa__zxx")
    assert not matches(tmp_path, detection, A=b"rm", B=b"-rf")


def test_all_keywords_may_stand_in_different_fields(tmp_path: Path) -> None:
    detection = "keywords:\n  '|all':\n    - one\n    - two\ncondition: keywords"
    assert matches(tmp_path, detection, A=b"one", B=b"two")
    assert not matches(tmp_path, detection, A=b"one")


LOOKAHEAD = sigma("sel: {Image|re: 'a(?=b)'}\ncondition: sel")
CORRELATION = (
    f"title: C\nid: {ID}\ncorrelation: {{type: event_count, rules: [x], timespan: 1m, condition: {{gte: 3}}}}\n"
)


@pytest.mark.parametrize(
    ("code", "line", "text"),
    [
        (Code.YAML_SYNTAX, 3, "title: T\nid: [\n"),
        (Code.YAML_NESTING, 1, "[" * 30_000),
        (Code.YAML_NESTING, 30, "".join(" " * n + "a:\n" for n in range(1100)).replace("a:", "a:", 1)),
        (Code.YAML_FEATURE, 1, "a: &x [1]\nb: *x\n"),
        (Code.YAML_FEATURE, 1, "a: !!python/object/apply:os.system [id]\n"),
        (Code.YAML_FEATURE, 2, "a: 1\n<<: {b: 1}\n"),
        (Code.YAML_FEATURE, 2, "a: 1\n---\nb: 2\n"),
        (Code.DUPLICATE_KEY, 2, "title: a\ntitle: b\n"),
        (Code.NOT_A_RULE, 1, ""),
        (Code.NOT_A_RULE, 1, "just text"),
        (Code.NOT_A_RULE, 1, "- a list\n"),
        (Code.UNSUPPORTED, 3, CORRELATION),
        (Code.MISSING_ID, 1, sigma("sel: {A: b}\ncondition: sel", HEAD.replace(f"id: {ID}\n", ""))),
        (Code.INVALID_RULE, 2, sigma("sel: {A: b}\ncondition: sel", HEAD.replace(ID, "not-a-uuid"))),
        (Code.MISSING_TITLE, 1, sigma("sel: {A: b}\ncondition: sel", HEAD.replace("title: T\n", ""))),
        (Code.UNSAFE_TEXT, 5, sigma("sel: {A: b}\ncondition: sel", HEAD.replace("title: T", 'title: "a\\u202eb"'))),
        (Code.INVALID_RULE, 4, sigma("sel: {A: b}\ncondition: sel", HEAD.replace("high", "huge"))),
        (Code.INVALID_RULE, 1, "title: T\nid: x\nlogsource: {category: x}\n"),
        (Code.INVALID_CONDITION, 5, sigma("sel: {A: b}")),
        (Code.INVALID_CONDITION, 7, sigma("sel: {A: b}\ncondition: other")),
        (Code.INVALID_CONDITION, 7, sigma("sel: {A: b}\ncondition: sel | count() > 3")),
        (Code.INVALID_CONDITION, 7, sigma("sel: {A: b}\ncondition: " + "(" * 3000 + "sel" + ")" * 3000)),
        (Code.INVALID_VALUE, 7, sigma("sel:\n  A|nonsense: b\ncondition: sel")),
        (Code.INVALID_VALUE, 8, sigma("sel:\n  A: b\n  B|cidr: 10.0.0.0/99\ncondition: sel")),
        (Code.INVALID_REGEX, 6, LOOKAHEAD),
        (Code.AMBIGUOUS_SCALAR, 7, sigma("sel:\n  A: no\ncondition: sel")),
        (Code.AMBIGUOUS_SCALAR, 8, sigma("sel:\n  A:\n    - 0777\ncondition: sel")),
        (Code.AMBIGUOUS_SCALAR, 7, sigma("sel:\n  A: 12:30:45\ncondition: sel")),
        (Code.AMBIGUOUS_SCALAR, 7, sigma("sel:\n  A: .nan\ncondition: sel")),
        (Code.AMBIGUOUS_SCALAR, 7, sigma("sel:\n  A: 2024-01-01\ncondition: sel")),
        (Code.YAML_SYNTAX, 7, sigma("sel:\n  A: " + "9" * 5000 + "\ncondition: sel")),
        (Code.UNSUPPORTED, 7, sigma("sel:\n  A|hour: 3\ncondition: sel")),
        (Code.UNSUPPORTED, 7, sigma("sel:\n  A|expand: '%users%'\ncondition: sel")),
        (Code.UNSUPPORTED, 7, sigma("sel: {A: b}\ntimeframe: 5m\ncondition: sel")),
        (Code.TEXT_TOO_LONG, 5, sigma("sel:\n  A: " + "x" * 5000 + "\ncondition: sel")),
        (Code.INVALID_VALUE, 7, sigma("sel:\n  A: 99999999999999999\ncondition: sel")),
    ],
)
def test_what_cannot_be_said_is_an_error_at_its_line(tmp_path: Path, code: Code, line: int, text: str) -> None:
    (tmp_path / "bad.yml").write_text(text)
    errors = [finding for finding in check(tmp_path) if finding.severity is Severity.ERROR]
    assert [(e.code, e.file) for e in errors][:1] == [(code, "bad.yml")], errors
    if code is not Code.YAML_NESTING:
        assert errors[0].line == line, errors


@pytest.mark.parametrize(
    ("code", "raw"),
    [
        (Code.NOT_UTF8, b"title: \xff\n"),
        (Code.NOT_UTF8, "title: x".encode("utf-16")),
        (Code.NOT_UTF8, b"\xef\xbb\xbftitle: x\n"),
        (Code.YAML_SYNTAX, b"title: a\0b\n"),
        (Code.TOO_LARGE, b"#" * (1 << 20) + b"\n"),
    ],
)
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, code: Code, raw: bytes) -> None:
    (tmp_path / "bad.yml").write_bytes(raw)
    assert [finding.code for finding in check(tmp_path)] == [code]


def test_all_errors_of_a_directory_are_told_and_build_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("a: [\n")
    (tmp_path / "b.yml").write_text(sigma("sel:\n  A|x: b\n  B|y: c\ncondition: sel"))
    (tmp_path / "good.yml").write_text(sigma("sel: {A: b}\ncondition: sel"))
    assert [(f.code, f.file, f.line) for f in check(tmp_path) if f.severity is Severity.ERROR] == [
        (Code.YAML_SYNTAX, "a.yml", 2),
        (Code.INVALID_VALUE, "b.yml", 7),
        (Code.INVALID_VALUE, "b.yml", 8),
    ]
    with pytest.raises(ContentError, match=r"a\.yml:2: .*and 2 more"):
        build(tmp_path, "t")


def test_the_same_id_twice_names_both_files(tmp_path: Path) -> None:
    for name in ("a.yml", "b.yml"):
        (tmp_path / name).write_text(sigma("sel: {A: b}\ncondition: sel"))
    errors = [f for f in check(tmp_path) if f.severity is Severity.ERROR]
    assert [(f.code, f.file, f.line) for f in errors] == [(Code.DUPLICATE_ID, "b.yml", 2)]
    assert "a.yml:2" in errors[0].message


def test_an_empty_directory_and_a_missing_file_are_errors(tmp_path: Path) -> None:
    assert [f.code for f in check(tmp_path)] == [Code.EMPTY_DIRECTORY]
    assert [f.code for f in check(tmp_path / "none.yml")] == [Code.UNREADABLE]


def test_the_order_of_files_does_not_change_the_bytes(tmp_path: Path) -> None:
    other = HEAD.replace(ID, ID.replace("5", "4", 1))
    for folder, names in (("one", ("a.yml", "b.yml")), ("two", ("b.yml", "a.yml"))):
        (tmp_path / folder).mkdir()
        for name in names:
            head = HEAD if name == "a.yml" else other
            (tmp_path / folder / name).write_text(sigma("sel: {Zed: z, Abc: a}\ncondition: sel", head))
    first, second = (build(tmp_path / folder, "n") for folder in ("one", "two"))
    assert first == second
    release = pb.CompiledRelease.FromString(first)
    assert list(release.fields) == ["Abc", "Zed"]
    assert [rule.file for rule in release.rules] == ["b.yml", "a.yml"]


def test_a_single_file_is_a_release_too(tmp_path: Path) -> None:
    (tmp_path / "r.yml").write_text(sigma("sel: {Image|endswith: /nc}\ncondition: sel"))
    loaded = engine.load(build(tmp_path / "r.yml", "one 1.0"), SCHEMA_DIGEST)
    assert (loaded.name, [rule.id for rule in loaded.rules]) == ("one 1.0", [ID])


def test_rules_that_are_right_are_compiled_beside_wrong_ones(tmp_path: Path) -> None:
    (tmp_path / "bad.yml").write_text("a: [")
    (tmp_path / "good.yml").write_text(sigma("sel: {Hashes: x}\ncondition: sel"))
    compilation = compile_sources(tmp_path, "n")
    assert [rule.id for rule in compilation.release.rules] == [ID]
    assert {(f.code, f.severity) for f in check(tmp_path)} == {
        (Code.YAML_SYNTAX, Severity.ERROR),
        (Code.INERT, Severity.WARNING),
        (Code.NO_SAMPLES, Severity.NOTE),
    }
