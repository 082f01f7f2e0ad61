"""The compiled object's structs against the schema: offsets, sizes and tags, read back by the schema's parser."""

import subprocess

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kernel import btf  # type: ignore[import-not-found]
from kernel.acting import Acts  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2, options_pb2
from tocsin.kernel.objects import DIRECTORY
from tocsin.records.framing import varint

OBJECT = DIRECTORY / "sensor.bpf.o"
MESSAGES: dict[str, type[Message]] = {
    "header": event_pb2.Event,
    "task": event_pb2.Process,
    "image": event_pb2.Process,
    "exec": event_pb2.Exec,
    "fork": event_pb2.Fork,
    "exit": event_pb2.Exit,
    "tcp": event_pb2.TcpConnection,
}
WIRE_TYPE = {FieldDescriptor.TYPE_FIXED32: 5, FieldDescriptor.TYPE_FIXED64: 1, FieldDescriptor.TYPE_ENUM: 0}
VALUE_BYTES = {5: 4, 1: 8, 0: 1}


def fields(name: str) -> list[tuple[str, bytes, int]]:
    """Name, tag and size of the value of each field of a wire struct, from the schema alone."""
    all_fields: list[FieldDescriptor] = list(MESSAGES[name].DESCRIPTOR.fields)  # type: ignore[arg-type]
    found = []
    for field in sorted(all_fields, key=lambda field: field.number):
        if field.GetOptions().Extensions[options_pb2.field].wire_struct == name:
            wire = WIRE_TYPE[field.type]
            found.append((field.name, varint(field.number << 3 | wire), VALUE_BYTES[wire]))
    return found


def all_structs() -> set[str]:
    """Every wire struct that the schema names."""
    descriptors = {message.DESCRIPTOR.full_name: message.DESCRIPTOR for message in MESSAGES.values()}
    options = (f.GetOptions().Extensions[options_pb2.field] for d in descriptors.values() for f in d.fields)
    return {option.wire_struct for option in options} - {""}


def test_every_struct_of_the_schema_is_tested() -> None:
    assert all_structs() == set(MESSAGES)


@pytest.mark.parametrize("name", MESSAGES)
def test_the_objects_struct_is_the_schemas_run_of_tags_and_values(name: str) -> None:
    found = btf.structs(OBJECT)
    assert f"wire_{name}" in found, f"the object's BTF has no struct wire_{name}"
    size, members = found[f"wire_{name}"]
    expected: btf.Members = {}
    at = 0
    for field, tag, value_bytes in fields(name):
        expected |= {f"{field}_tag": (at, len(tag)), field: (at + len(tag), value_bytes)}
        at += len(tag) + value_bytes
    assert members == expected
    assert size == at


@pytest.mark.parametrize("name", MESSAGES)
def test_values_at_the_objects_offsets_land_in_their_fields(acts: Acts, name: str) -> None:
    """The tags are those that the C header writes, the offsets the object's, the parser the schema's."""
    raw = bytearray(subprocess.run([str(acts.path("tags")), name], check=True, capture_output=True).stdout)
    size, members = btf.structs(OBJECT)[f"wire_{name}"]
    assert len(raw) == size
    expected = {}
    for number, (field, tag, value_bytes) in enumerate(fields(name), 1):
        tag_at, tag_bytes = members[f"{field}_tag"]
        assert raw[tag_at : tag_at + tag_bytes] == tag, field
        at, found_bytes = members[field]
        assert found_bytes == value_bytes, field
        expected[field] = number if value_bytes == 1 else (1 << value_bytes * 8 - 1) + number
        raw[at : at + value_bytes] = expected[field].to_bytes(value_bytes, "little")
    message = MESSAGES[name].FromString(bytes(raw))
    assert {descriptor.name: value for descriptor, value in message.ListFields()} == expected
