"""What the documents say about the repository is so."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DECISIONS = sorted((ROOT / "docs/adr").glob("*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
SECTIONS = ["Context", "Decision", "Alternatives", "Consequences"]


def make_targets() -> set[str]:
    names: set[str] = set()
    for line in (ROOT / "Makefile").read_text().splitlines():
        if re.match(r"[a-z][a-z -]*:(?!=)", line):
            names |= set(line.partition(":")[0].split())
    return names


def commands(text: str) -> str:
    """The code of a Markdown text: fenced blocks and spans."""
    fence = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    return "\n".join([*fence.findall(text), *re.findall(r"`([^`\n]+)`", fence.sub("", text))])


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_that_a_document_names_exists(name: str) -> None:
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", commands((ROOT / name).read_text())))
    assert named <= make_targets()


def test_contributing_names_the_targets_that_everybody_needs() -> None:
    assert {"make setup", "make test", "make lint", "make proto"} <= set(
        re.findall(r"\bmake [a-z]+", commands((ROOT / "CONTRIBUTING.md").read_text()))
    )


def test_decisions_are_numbered_one_after_another() -> None:
    assert [path.name[:5] for path in DECISIONS] == [f"{number:04}-" for number in range(len(DECISIONS))]


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.name[:4])
def test_a_decision_has_its_number_a_status_and_every_section(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(f"# {path.name[:4]}: ")
    assert re.search(r"^Status: (template|proposed|accepted|replaced by \d{4})", text, re.MULTILINE)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS


def test_the_changelog_has_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^## \[{re.escape(version)}\] - (unreleased|\d{{4}}-\d\d-\d\d)$", changelog(), re.MULTILINE)


def test_the_changelog_has_each_version_once_and_the_newest_first() -> None:
    versions = [tuple(map(int, v.split("."))) for v in re.findall(r"^## \[([\d.]+)\]", changelog(), re.MULTILINE)]
    assert versions == sorted(set(versions), reverse=True)


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", path.read_text())
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_every_licence_that_the_package_names_has_its_text() -> None:
    for name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license-files"]:
        assert len((ROOT / name).read_text()) > 1000
