"""What the README tells people to type and where it sends them is so."""

import re
import shlex
from pathlib import Path

import pytest

from tocsin.cli import main
from tocsin.content.check import check

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def verbs() -> set[str]:
    return {*main.VERBS, *(f"content {verb}" for verb in main.CONTENT)}


def command_lines() -> list[str]:
    """Every `tocsin …` in a span or after a prompt, without prompt, path, sudo and comment."""
    spans = re.findall(r"`(tocsin [^`\n]+)`", README)
    typed = [line.removeprefix("$ ") for block in blocks(README, "console") for line in block.splitlines()]
    lines = [line.removeprefix("sudo ").removeprefix(".venv/bin/") for line in typed]
    return spans + [line.partition("#")[0].strip() for line in lines if line.startswith("tocsin ")]


def test_the_table_has_every_verb_and_no_other() -> None:
    table = re.findall(r"^\| `tocsin ([^`]+)` \|", section("The command"), re.MULTILINE)
    assert set(table) == verbs() - {"content"}
    assert len(table) == len(set(table))


@pytest.mark.parametrize(
    "line", sorted({line for line in command_lines() if line.removeprefix("tocsin ") not in verbs()})
)
def test_the_command_accepts_what_people_are_told_to_type(line: str) -> None:
    assert callable(main.parse(shlex.split(line)[1:]).run)


def test_every_verb_that_is_named_exists() -> None:
    assert {line.split()[1] for line in command_lines()} <= set(main.VERBS)


def test_exit_codes_are_those_of_the_command() -> None:
    table = re.findall(r"^\| (\d) \| (.+) \|$", section("The command"), re.MULTILINE)
    assert [f"  {code}  {words}" for code, words in table] == main.EPILOG.splitlines()[1:]


def test_every_path_in_the_map_of_the_tree_exists() -> None:
    (tree,) = blocks(section("Where things are"), "")
    folder, missing = "", []
    for line in tree.splitlines():
        name = line.split()[0]
        path = folder + name if line.startswith(" ") else name
        folder = folder if line.startswith(" ") else name
        if not (ROOT / path).is_dir():
            missing.append(path)
    assert missing == []


def test_the_map_shows_every_package_of_the_agent() -> None:
    (tree,) = blocks(section("Where things are"), "")
    shown = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    packages = {path.parent.name for path in (ROOT / "agent/tocsin").glob("*/__init__.py")}
    assert packages - {"api"} == shown


def test_the_rule_of_five_minutes_is_without_findings(tmp_path: Path) -> None:
    named = re.findall(r"`mine/(\S+?\.yml)`", README)
    texts = blocks(README, "yaml")
    assert len(named) == len(texts) == 2
    for name, text in zip(named, texts, strict=True):
        (tmp_path / name).write_text(text)
    assert check(tmp_path) == []
