"""Generates from proto/ everything that describes an event: there is no second list.

    python proto/generate.py            writes the files in place
    python proto/generate.py --check    exits 1 and names each file that is stale

Written: the Python messages and stubs under agent/tocsin/api, the C header of
the eBPF programs, the field table of compiler and evaluator (with the schema
digest), and docs/EVENTS.md.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import Message

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
EVENT = "tocsin/api/event/v1/event.proto"
PACKAGE = "tocsin.api.event.v1"

WIRE_VARINT, WIRE_FIXED64, WIRE_BYTES, WIRE_FIXED32 = 0, 1, 2, 5
WIRE_OF_TYPE = {
    FieldDescriptor.TYPE_FIXED32: WIRE_FIXED32,
    FieldDescriptor.TYPE_FIXED64: WIRE_FIXED64,
    FieldDescriptor.TYPE_BYTES: WIRE_BYTES,
    FieldDescriptor.TYPE_ENUM: WIRE_VARINT,
}
WIRE_NAME = {WIRE_VARINT: "VARINT", WIRE_FIXED64: "FIXED64", WIRE_BYTES: "BYTES", WIRE_FIXED32: "FIXED32"}
C_TYPE = {WIRE_VARINT: "__u8", WIRE_FIXED64: "__u64", WIRE_FIXED32: "__u32"}


def protoc(*args: str) -> None:
    """Runs protoc over every file of the API; its own message goes to the terminal."""
    files = sorted(str(f.relative_to(PROTO)) for f in PROTO.rglob("*.proto"))
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"  # the plugins stand beside this Python
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", *args, *files]
    subprocess.run(command, check=True, env=os.environ | {"PATH": path})


def python_messages(out: Path) -> None:
    """Writes the messages, the gRPC classes and the stubs of both under out/tocsin/api."""
    protoc(f"--python_out={out}", f"--mypy_out=quiet:{out}", f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}")
    for generated in out.rglob("*_pb2_grpc.py*"):
        source = PROTO / str(generated.relative_to(out).with_suffix("")).replace("_pb2_grpc", ".proto")
        if "\nservice " not in source.read_text():  # nothing but a header
            generated.unlink()


@dataclass(frozen=True)
class Schema:
    """The event schema, with the options readable and the comments at hand."""

    file: FileDescriptor
    comments: dict[str, str]
    digest: bytes
    pool: descriptor_pool.DescriptorPool

    def option(self, descriptor: FieldDescriptor, name: str) -> Message | None:
        """The custom option `name` of a field, None where it is not set."""
        extension = self.pool.FindExtensionByName(f"{PACKAGE}.{name}")
        options_type = message_factory.GetMessageClass(self.pool.FindMessageTypeByName("google.protobuf.FieldOptions"))
        options = options_type.FromString(descriptor.GetOptions().SerializeToString())  # this pool knows the extensions
        return options.Extensions[extension] if options.HasExtension(extension) else None


def load_schema() -> Schema:
    """Reads the event schema through protoc's descriptor set."""
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "set"
        protoc(f"--descriptor_set_out={out}", "--include_imports", "--include_source_info")
        raw = out.read_bytes()
    pool = descriptor_pool.DescriptorPool()
    plain = descriptor_pb2.FileDescriptorSet.FromString(raw)
    for file in plain.file:
        pool.Add(file)  # type: ignore[no-untyped-call]
    message_factory.GetMessageClassesForFiles([f.name for f in plain.file], pool)
    options_class = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.FileDescriptorSet"))
    typed = options_class.FromString(raw)  # with the extensions of this pool
    event_file = next(f for f in typed.file if f.name == EVENT)  # type: ignore[attr-defined]
    comments = collect_comments(event_file)
    bare = descriptor_pb2.FileDescriptorProto.FromString(event_file.SerializeToString())
    bare.ClearField("source_code_info")
    digest = hashlib.sha256(bare.SerializeToString(deterministic=True)).digest()
    return Schema(pool.FindFileByName(EVENT), comments, digest, pool)


def collect_comments(file: Message) -> dict[str, str]:
    """Leading comments by full name without the package: Process.pid, EventType."""
    out: dict[str, str] = {}
    kinds = {4: "message_type", 5: "enum_type", 2: "field"}
    for location in file.source_code_info.location:  # type: ignore[attr-defined]
        if not location.leading_comments:
            continue
        node, names, path = file, [], list(location.path)
        while len(path) >= 2:
            tag, index = path[:2]
            path = path[2:]
            attribute = "value" if tag == 2 and node.DESCRIPTOR.name == "EnumDescriptorProto" else kinds.get(tag)
            if attribute is None or not hasattr(node, attribute):
                break
            node = getattr(node, attribute)[index]
            names.append(node.name)
        if path:  # a comment on something that has no place in the document, such as a oneof
            continue
        out[".".join(names)] = " ".join(location.leading_comments.split())
    return out


def tag_bytes(number: int, wire: int) -> bytes:
    """The protobuf tag of a field."""
    value, out = number << 3 | wire, bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def c_tag(number: int, wire: int) -> tuple[str, str]:
    """C type and value of a tag, as it stands in memory on a little-endian host."""
    raw = tag_bytes(number, wire)
    return ("__u8" if len(raw) == 1 else "__u16"), f"0x{int.from_bytes(raw, 'little'):x}"


def c_header(schema: Schema) -> str:
    """The header that the eBPF programs include: tags, packed structs, enums, limits."""
    lines = [
        "/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */",
        "/* Generated by proto/generate.py from proto/tocsin/api/event/v1/event.proto. Do not edit. */",
        "#ifndef TOCSIN_WIRE_EVENT_H",
        "#define TOCSIN_WIRE_EVENT_H",
        "",
        "/* Each struct is a run of protobuf fields: tag, value, tag, value. Little-endian hosts only. */",
        "",
        "/*",
        " * Writes a member in one store. The members are not aligned, and for a packed struct the compiler",
        " * would write byte after byte; the hosts that Tocsin runs on store unaligned words at full speed.",
        " */",
        "#define WIRE_PUT(wire, member, value)                                                              \\",
        "\t(*(__typeof__((wire)->member) *)((char *)(wire) +                                          \\",
        "\t\t\t\t\t __builtin_offsetof(__typeof__(*(wire)), member)) = (value))",
    ]
    for enum in schema.file.enum_types_by_name.values():
        lines += ["", f"enum tocsin_{snake(enum.name)} {{"]
        lines += [f"\tTOCSIN_{value.name} = {value.number}," for value in enum.values]
        lines.append("};")
    for message in schema.file.message_types_by_name.values():
        lines += c_message(schema, message)
    structs = sorted(set(re.findall(r"^struct wire_(\w+) {$", "\n".join(lines), re.MULTILINE)))
    lines += ["", "/* EACH(name) for every struct. */", "#define TOCSIN_WIRE_STRUCTS(EACH) \\"]
    lines += [*(f"\tEACH({name}) \\" for name in structs[:-1]), f"\tEACH({structs[-1]})"]
    lines += ["", "#endif", ""]
    return "\n".join(lines)


def c_message(schema: Schema, message: Descriptor) -> list[str]:
    """Tags of a message's bytes and nested fields, and its packed structs."""
    lines: list[str] = [""]
    structs: dict[str, list[FieldDescriptor]] = {}
    for field in sorted(message.fields, key=lambda f: f.number):
        meta = schema.option(field, "field")
        struct = meta.wire_struct if meta else ""  # type: ignore[attr-defined]
        if struct:
            structs.setdefault(struct, []).append(field)
        elif field.type in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE):
            _, value = c_tag(field.number, WIRE_BYTES)
            name = f"{message.name}_{field.name}".upper()
            lines.append(f"#define TOCSIN_TAG_{name} {value}")
            if field.type == FieldDescriptor.TYPE_BYTES:
                if not meta or not meta.max_bytes:  # type: ignore[attr-defined]
                    sys.exit(f"{EVENT}: {field.full_name}: a bytes field needs max_bytes")
                lines.append(f"#define TOCSIN_MAX_{name} {meta.max_bytes}")  # type: ignore[attr-defined]
    for struct, fields in structs.items():
        lines += c_struct(struct, fields)
    return lines if len(lines) > 1 else []


def c_struct(name: str, fields: list[FieldDescriptor]) -> list[str]:
    """A packed struct of fixed-size fields and the function that sets its tags."""
    lines = ["", f"struct wire_{name} {{"]
    setters: list[str] = []
    for field in fields:
        wire = WIRE_OF_TYPE[field.type]
        tag_type, tag_value = c_tag(field.number, wire)
        lines += [f"\t{tag_type} {field.name}_tag;", f"\t{C_TYPE[wire]} {field.name};"]
        setters.append(f"\tWIRE_PUT(w, {field.name}_tag, {tag_value});")
    lines += ["} __attribute__((packed));", ""]
    lines.append(f"static __attribute__((always_inline)) inline void wire_{name}_tags(struct wire_{name} *w)")
    return [*lines, "{", *setters, "}"]


def snake(name: str) -> str:
    """EventType -> event_type."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


@dataclass(frozen=True)
class Row:
    """A line of the field table."""

    name: str
    path: tuple[int, ...]
    event_type: int
    wire: int
    presentation: int


def field_rows(schema: Schema) -> list[Row]:
    """Every field of an event that has a name in Sigma's taxonomy."""
    event = schema.file.message_types_by_name["Event"]
    rows: list[Row] = []
    for field in event.fields:
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        act, nest = schema.option(field, "act"), schema.option(field, "nest")
        for leaf in field.message_type.fields:
            meta = schema.option(leaf, "field")
            for sigma in meta.sigma if meta else ():  # type: ignore[attr-defined]
                if act is not None and sigma.category not in ("", *act.sigma_category):  # type: ignore[attr-defined]
                    continue
                prefix = nest.sigma_prefix if nest is not None else ""  # type: ignore[attr-defined]
                event_type = act.event_type if act is not None else 0  # type: ignore[attr-defined]
                path = (field.number, leaf.number)
                wire, show = WIRE_OF_TYPE[leaf.type], meta.presentation  # type: ignore[union-attr, attr-defined]
                rows.append(Row(prefix + sigma.name, path, event_type, wire, show))
    seen: dict[tuple[str, int], Row] = {}
    for row in rows:
        if seen.setdefault((row.name, row.event_type), row) != row:
            sys.exit(f"{EVENT}: Sigma name {row.name} stands for two fields of event type {row.event_type}")
    return list(seen.values())


def field_table(schema: Schema) -> str:
    """agent/tocsin/records/field_table.py."""
    show = schema.file.pool.FindEnumTypeByName(f"{PACKAGE}.Presentation")
    names = {v.number: v.name.removeprefix("PRESENTATION_") for v in show.values}
    names[0] = "PLAIN"
    event = schema.file.message_types_by_name["Event"]
    categories: dict[str, list[int]] = {}
    for field in event.oneofs_by_name["body"].fields:
        act = schema.option(field, "act")
        for category in act.sigma_category if act else ():  # type: ignore[attr-defined]
            categories.setdefault(category, []).append(act.event_type)  # type: ignore[union-attr, attr-defined]
    lines = [
        '"""The fields that rules may name. Generated by proto/generate.py; do not edit."""',
        "",
        "from tocsin.records.field import Field, Presentation, Wire",
        "",
        f'SCHEMA_DIGEST = bytes.fromhex("{schema.digest.hex()}")',
        '"""SHA-256 of the event schema, comments left out."""',
        "",
        "CATEGORY_EVENT_TYPES: dict[str, tuple[int, ...]] = {",
        *(f'    "{category}": {tuple(types)!r},' for category, types in categories.items()),
        "}",
        '"""Sigma logsource category -> the event types that belong to it."""',
        "",
        "FIELDS: tuple[Field, ...] = (",
        *(
            f'    Field("{r.name}", {r.path}, {r.event_type}, Wire.{WIRE_NAME[r.wire]}, '
            f"Presentation.{names[r.presentation]}),"
            for r in field_rows(schema)
        ),
        ")",
        '"""In the order of the schema."""',
        "",
    ]
    return "\n".join(lines)


def events_doc(schema: Schema) -> str:
    """docs/EVENTS.md."""
    event = schema.file.message_types_by_name["Event"]
    lines = [
        "# Events and their fields",
        "",
        "<!-- Generated by proto/generate.py from proto/tocsin/api/event/v1/event.proto. Do not edit. -->",
        "",
        schema.comments["Event"],
        "",
        f"Schema digest: `{schema.digest.hex()}`",
        "",
        "## Event types",
        "",
        "| Type | Body | What happened | Sigma category | ECS category/type | OCSF class/activity |",
        "|---|---|---|---|---|---|",
    ]
    types = schema.file.enum_types_by_name["EventType"]
    for field in event.oneofs_by_name["body"].fields:
        act = schema.option(field, "act")
        assert act is not None, field.full_name
        name = types.values_by_number[act.event_type].name  # type: ignore[attr-defined]
        sigma = ", ".join(act.sigma_category)  # type: ignore[attr-defined]
        lines.append(
            f"| `{name}` | `{field.name}` | {schema.comments[f'EventType.{name}']} | {sigma} "
            f"| {act.ecs_category} | {act.ocsf_class} |"  # type: ignore[attr-defined]
        )
    for message in schema.file.message_types_by_name.values():
        lines += ["", f"## {message.name}", "", schema.comments[message.name], ""]
        lines += ["| # | Field | Type | Unit | Sigma | ECS | OCSF | Meaning |", "|---|---|---|---|---|---|---|---|"]
        lines += [doc_row(schema, message, field) for field in message.fields]
    for enum in schema.file.enum_types_by_name.values():
        lines += [
            "",
            f"## {enum.name}",
            "",
            schema.comments[enum.name],
            "",
            "| Value | Name | Meaning |",
            "|---|---|---|",
        ]
        lines += [f"| {v.number} | `{v.name}` | {schema.comments[f'{enum.name}.{v.name}']} |" for v in enum.values]
    return "\n".join([*lines, ""])


def doc_row(schema: Schema, message: Descriptor, field: FieldDescriptor) -> str:
    """One field of docs/EVENTS.md."""
    proto_types = descriptor_pb2.FieldDescriptorProto.Type
    kind = proto_types.Name(field.type).removeprefix("TYPE_").lower()  # type: ignore[arg-type]
    if field.message_type is not None:
        kind = f"[{field.message_type.name}](#{field.message_type.name.lower()})"
    elif field.enum_type is not None:
        kind = f"[{field.enum_type.name}](#{field.enum_type.name.lower()})"
    meta = schema.option(field, "field")
    unit = ecs = ocsf = sigma = ""
    if meta is not None:
        unit, ecs, ocsf = meta.unit, meta.ecs, meta.ocsf  # type: ignore[attr-defined]
        sigma = ", ".join(f"`{s.name}`" for s in meta.sigma)  # type: ignore[attr-defined]
        kind += f" ≤ {meta.max_bytes}" if meta.max_bytes else ""  # type: ignore[attr-defined]
    text = schema.comments[f"{message.name}.{field.name}"]
    return f"| {field.number} | `{field.name}` | {kind} | {unit} | {sigma} | {ecs} | {ocsf} | {text} |"


def generate(out: Path) -> None:
    """Writes every generated file under `out`, laid out as in the repository."""
    (out / "agent").mkdir(parents=True, exist_ok=True)
    python_messages(out / "agent")
    schema = load_schema()
    for path, text in {
        "bpf/wire/event.h": c_header(schema),
        "agent/tocsin/records/field_table.py": field_table(schema),
        "docs/EVENTS.md": events_doc(schema),
    }.items():
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text(text)


def stale(fresh: Path) -> list[str]:
    """Names the generated files of the repository that differ from fresh ones, or should not be there."""
    expected = {str(f.relative_to(fresh)) for f in fresh.rglob("*") if f.is_file()}
    out = []
    for name in sorted(expected):
        have = (ROOT / name).read_text().splitlines() if (ROOT / name).exists() else []
        diff = list(difflib.unified_diff(have, (fresh / name).read_text().splitlines(), name, "generated", lineterm=""))
        if diff:
            out.append("\n".join([name, *diff[:12]]))
    present = {
        str(f.relative_to(ROOT)) for f in (ROOT / "agent/tocsin/api").rglob("*_pb2*") if "__pycache__" not in f.parts
    }
    return out + [f"{name}: no .proto makes this file any more; delete it" for name in sorted(present - expected)]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a generated file is stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as tmp:
        generate(Path(tmp))
        problems = stale(Path(tmp))
    for problem in problems:
        print(f"stale: {problem}\nrun `make proto` and commit the result", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
