"""The texts said to be necessary for an RE2 expression stand in everything that it matches."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.evaluate import semantics
from tocsin.evaluate.regex import necessary_texts


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (b"abc", [([b"abc"], True)]),
        (b"(?i)bin/x", [([b"bin/x"], False)]),
        (b"(?i)ask", [([b"a"], False)]),
        (b"ab?c", [([b"a"], True), ([b"c"], True)]),
        (b"-(W|R) ", [([b"-R ", b"-W "], True)]),
        (rb"/mail/tmp/[a-z]{3}\.tar\.gz", [([b"/mail/tmp/"], True), ([b".tar.gz"], True)]),
        (b"(?:(a)|(b))c", [([b"c"], True)]),
        (b"a|b", []),
        (b"a(?i)b", []),
        (rb"\Qa|b\E", []),
        (rb"\x61", []),
        (b"(" * 900 + b"a" + b")" * 900 + b"zz", [([b"zz"], True)]),
    ],
)
def test_texts_of(pattern: bytes, texts: list[tuple[list[bytes], bool]]) -> None:
    assert list(necessary_texts(pattern)) == texts


PARTS = ("a", "b", "k", "S", "(a|b)", "(?:ab|k)", "[ab]", "[^a]", ".", "\\w", "\\.", "^", "$", "(a(b|k)*)", "(?P<n>s)")
QUANTIFIERS = ("", "", "", "?", "*", "+", "{2}", "{0,1}", "+?")
parts = st.tuples(st.sampled_from(PARTS), st.sampled_from(QUANTIFIERS)).map("".join)
patterns = st.tuples(st.sampled_from(("", "", "(?i)", "(?s)")), st.lists(parts, min_size=1, max_size=5).map("".join))
subjects = st.text(st.sampled_from("abkKsS.x\u212a\u017f"), max_size=8)


@settings(max_examples=500, deadline=None)
@given(patterns.map("".join), st.lists(subjects, max_size=10))
def test_every_match_holds_one_of_each_set(pattern: str, texts: list[str]) -> None:
    try:
        regex = semantics.regex(pattern.encode())
    except ValueError:
        return
    for text in texts:
        raw = text.encode()
        if regex.search(raw) is None:
            continue
        for several, sensitive in necessary_texts(pattern.encode()):
            subject = raw if sensitive else raw.lower()
            assert any((one if sensitive else one.lower()) in subject for one in several)
