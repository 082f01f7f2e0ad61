"""Samples stand beside their rule and run in the shipped matcher."""

from pathlib import Path

import pytest

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.content.check import build, check
from tocsin.evaluate.code import Code

ID = "5f1abf38-291e-4a4c-bd77-6f0a0b1c2d3e"
RULE = f"""title: T
id: {ID}
logsource: {{category: process_creation, product: linux}}
detection:
  sel:
    Image|endswith: /nc
  condition: sel
"""


def codes(tmp_path: Path, samples: str) -> list[tuple[str, str, int]]:
    (tmp_path / "x.yml").write_text(RULE)
    (tmp_path / "x.samples.yml").write_text(samples)
    return [(finding.code, finding.file, finding.line) for finding in check(tmp_path)]


def test_samples_become_part_of_the_release(tmp_path: Path) -> None:
    text = (
        f"rule: {ID}\nmust_match:\n  - Image: [/usr/bin/nc, /bin/nc]\n    Pid: 7\n    Root: true\n    Tty: null\n"
        "must_not_match:\n  - Image: /bin/ls\n"
    )
    assert codes(tmp_path, text) == []
    release = pb.CompiledRelease.FromString(build(tmp_path, "n"))
    assert [(s.rule_id, s.must_match, s.origin) for s in release.samples] == [
        (ID, True, "x.samples.yml:3"),
        (ID, False, "x.samples.yml:8"),
    ]
    values = [(v.name, v.value if v.HasField("value") else None) for v in release.samples[0].event.values]
    assert values == [
        ("Image", b"/usr/bin/nc"),
        ("Image", b"/bin/nc"),
        ("Pid", b"7"),
        ("Root", b"true"),
        ("Tty", None),
    ]
    assert release.samples[0].event.log_source == release.rules[0].log_source


@pytest.mark.parametrize(
    ("samples", "code", "line"),
    [
        (f"rule: {ID}\nmust_match:\n  - Image: /bin/ls\n", Code.SAMPLE_NOT_MATCHED, 3),
        (f"rule: {ID}\nmust_match:\n  - Image: /nc\nmust_not_match:\n  - Image: /x/NC\n", Code.SAMPLE_MATCHED, 5),
        ("rule: other\nmust_match:\n  - Image: /bin/nc\n", Code.SAMPLE_RULE_UNKNOWN, 1),
        (f"rule: {ID}\nmust_match:\n  - Image: /nc\nmust_macth: []\n", Code.INVALID_SAMPLE, 4),
        (f"rule: {ID}\nmust_match:\n  - Image: {{a: b}}\n", Code.INVALID_SAMPLE, 3),
        (f"rule: {ID}\nmust_match:\n  - just text\n", Code.INVALID_SAMPLE, 3),
        (f"rule: {ID}\nmust_match: text\n", Code.INVALID_SAMPLE, 2),
        (f"rule: {ID}\n", Code.INVALID_SAMPLE, 1),
        (f"rule: {ID}\nmust_match:\n  - Image: /nc\n    A: 0777\n", Code.AMBIGUOUS_SCALAR, 4),
        ("- a\n", Code.INVALID_SAMPLE, 1),
    ],
)
def test_a_wrong_sample_is_an_error_at_its_line(tmp_path: Path, samples: str, code: Code, line: int) -> None:
    assert (code, "x.samples.yml", line) in codes(tmp_path, samples)


def test_samples_without_a_rule_beside_them_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.yml").write_text(RULE)
    (tmp_path / "y.samples.yml").write_text(f"rule: {ID}\nmust_match:\n  - Image: /nc\n")
    assert (Code.SAMPLE_RULE_UNKNOWN, "y.samples.yml") in [(f.code, f.file) for f in check(tmp_path)]
