"""The compiled object's structs against the schema: offsets, sizes and tags, read back by the schema's parser."""

import subprocess

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kernel import btf  # type: ignore[import-not-found]
from kernel.acting import Acts  # type: ignore[import-not-found]
from tocsin.api.event.v1 import event_pb2, options_pb2
from tocsin.kernel.acts import Act
from tocsin.kernel.objects import DIRECTORY
from tocsin.records.framing import varint

OBJECT = DIRECTORY / "sensor.bpf.o"
WIRE_TYPE = {FieldDescriptor.TYPE_FIXED32: 5, FieldDescriptor.TYPE_FIXED64: 1, FieldDescriptor.TYPE_ENUM: 0}
VALUE_BYTES = {5: 4, 1: 8, 0: 1}


def messages() -> dict[str, type[Message]]:
    """The message that each wire struct is a part of."""
    found: dict[str, type[Message]] = {}
    for name in event_pb2.DESCRIPTOR.message_types_by_name:
        message: type[Message] = getattr(event_pb2, name)
        for field in message.DESCRIPTOR.fields:
            if struct := field.GetOptions().Extensions[options_pb2.field].wire_struct:
                assert found.setdefault(struct, message) is message, f"{struct} stands in two messages"
    return found


MESSAGES = messages()


def fields(name: str) -> list[tuple[str, bytes, int]]:
    """Name, tag and size of the value of each field of a wire struct, from the schema alone."""
    all_fields: list[FieldDescriptor] = list(MESSAGES[name].DESCRIPTOR.fields)  # type: ignore[arg-type]
    found = []
    for field in sorted(all_fields, key=lambda field: field.number):
        if field.GetOptions().Extensions[options_pb2.field].wire_struct == name:
            wire = WIRE_TYPE[field.type]
            found.append((field.name, varint(field.number << 3 | wire), VALUE_BYTES[wire]))
    return found


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


def test_acts_have_the_numbers_of_the_object() -> None:
    names = {name.removeprefix("ACT_"): value for name, value in btf.enums(OBJECT)["act"].items() if name != "ACTS"}
    assert names == {act.name: act.value for act in Act}
