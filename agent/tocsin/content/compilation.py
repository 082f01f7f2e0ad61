"""Files and directories of Sigma as one release.

The same sources give the same bytes: fields by name, rules by id, samples by
rule and place. Everything that is wrong is collected, file after file; a
release is made of the rules that are right, and whoever publishes it refuses
when there was an error.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tocsin.api.content.v1 import release_pb2 as pb
from tocsin.content import document as yaml_document
from tocsin.content.rule import RuleCompiler, RuleErrors
from tocsin.content.sample import SUFFIXES, samples
from tocsin.errors import ContentError
from tocsin.evaluate.code import Code
from tocsin.evaluate.release import FORMAT
from tocsin.records.field_table import SCHEMA_DIGEST

RULE_SUFFIXES: Final = (".yml", ".yaml")


@dataclass(slots=True)
class Compilation:
    """What came out of the sources."""

    release: pb.CompiledRelease
    errors: list[ContentError] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    """Line of each rule's id in its file, by rule id."""

    def serialized(self) -> bytes:
        """The release's bytes; its digest is their SHA-256."""
        return self.release.SerializeToString(deterministic=True)


Sources = Path | Sequence[Path]
"""A file or a directory, or several; of several, messages name each file with the path that it was found under."""


def compile_sources(sources: Sources, name: str) -> Compilation:
    """Compiles files and everything below directories. Never raises for what is in the sources."""
    out = Compilation(pb.CompiledRelease(format=FORMAT, schema_digest=SCHEMA_DIGEST, name=name, complete=True))
    files, out.errors = all_files(sources)
    compiler = RuleCompiler()
    rules: dict[str, pb.Rule] = {}
    found_samples: list[pb.Sample] = []
    for file, source in files.items():
        if file.endswith(SUFFIXES):
            continue
        rule = _compile_rule(compiler, source, file, rules, out)
        for suffix in SUFFIXES:
            beside = file.rpartition(".")[0] + suffix
            if beside in files:
                found_samples += _compile_samples(files[beside], beside, rule, out)
    out.errors += orphans(files)
    _fill(out.release, compiler.fields, rules, found_samples)
    return out


def all_files(sources: Sources) -> tuple[dict[str, Path], list[ContentError]]:
    """Name in messages -> path of every source; and what cannot be read."""
    if isinstance(sources, Path):
        return source_files(sources)
    if len(sources) == 1:
        return source_files(sources[0])
    files: dict[str, Path] = {}
    errors: list[ContentError] = []
    for path in sources:
        found, unreadable = source_files(path)
        folder = path if path.is_dir() else path.parent
        files |= {(folder / name).as_posix(): source for name, source in found.items()}
        errors += unreadable
    return files, errors


def source_files(path: Path) -> tuple[dict[str, Path], list[ContentError]]:
    """Name in messages -> path of every source, ordered by name; and what cannot be read."""
    if not path.is_dir():
        beside = [path.with_name(path.name.rpartition(".")[0] + suffix) for suffix in SUFFIXES]
        return {path.name: path} | {p.name: p for p in beside if p.exists()}, []
    errors: list[ContentError] = []

    def unreadable(error: OSError) -> None:
        errors.append(ContentError(Code.UNREADABLE, f"cannot be read: {error.strerror}", file=str(error.filename)))

    files = {}
    for folder, folders, names in os.walk(path, onerror=unreadable):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        for name in names:
            if name.endswith(RULE_SUFFIXES) and not name.startswith("."):
                source = Path(folder) / name
                files[source.relative_to(path).as_posix()] = source
    if not any(not file.endswith(SUFFIXES) for file in files) and not errors:
        errors.append(
            ContentError(Code.EMPTY_DIRECTORY, "holds no rule: expected files *.yml or *.yaml", file=str(path))
        )
    return dict(sorted(files.items())), errors


def orphans(files: Iterable[str]) -> list[ContentError]:
    """An error for each samples file without a rule beside it."""
    known = set(files)
    errors = []
    for file in files:
        suffix = next((s for s in SUFFIXES if file.endswith(s)), None)
        if suffix and not any(file.removesuffix(suffix) + rule in known for rule in RULE_SUFFIXES):
            expected = file.removesuffix(suffix) + ".yml"
            errors.append(ContentError(Code.SAMPLE_RULE_UNKNOWN, f"there is no rule {expected} beside it", file=file))
    return errors


def _compile_rule(
    compiler: RuleCompiler, source: Path, file: str, rules: dict[str, pb.Rule], out: Compilation
) -> pb.Rule | None:
    try:
        document = yaml_document.read(source, file)
        rule = compiler.compile(document)
    except ContentError as error:
        out.errors.append(error)
        return None
    except RuleErrors as several:
        out.errors += several.errors
        return None
    if rule.id in rules:
        first = rules[rule.id]
        message = f"the id {rule.id} is that of {first.file}:{out.lines[rule.id]} ({first.title}); give it a new one"
        out.errors.append(document.error(Code.DUPLICATE_ID, message, "id", rule_id=rule.id))
        return None
    rules[rule.id] = rule
    out.lines[rule.id] = document.line("id")
    return rule


def _compile_samples(source: Path, file: str, rule: pb.Rule | None, out: Compilation) -> list[pb.Sample]:
    try:
        document = yaml_document.read(source, file)
    except ContentError as error:
        out.errors.append(error)
        return []
    if rule is None:  # its own errors are reported
        return []
    found, errors = samples(document, rule)
    out.errors += errors
    return found


def _fill(
    release: pb.CompiledRelease, fields: Mapping[str, int], rules: Mapping[str, pb.Rule], found: Iterable[pb.Sample]
) -> None:
    """Puts everything in its canonical order and numbers the fields by name."""
    used: set[int] = set()
    for rule in rules.values():
        _renumber(rule.condition, lambda number: used.add(number) or number)  # type: ignore[func-returns-value]
    names = sorted(name for name, number in fields.items() if number in used)
    final = {fields[name]: number for number, name in enumerate(names, 1)} | {0: 0}
    for rule in rules.values():
        _renumber(rule.condition, final.__getitem__)
    release.fields.extend(names)
    release.rules.extend(rules[rule_id] for rule_id in sorted(rules))
    release.samples.extend(sorted(found, key=lambda sample: sample.rule_id))  # stable: the order of the file stays


def _renumber(expression: pb.Expression, number: Callable[[int], int]) -> None:
    form = expression.WhichOneof("form")
    if form == "predicate":
        expression.predicate.field = number(expression.predicate.field)
        expression.predicate.other_field = number(expression.predicate.other_field)
    elif form == "negated":
        _renumber(expression.negated, number)
    else:
        for part in getattr(expression, str(form)).parts:
            _renumber(part, number)
