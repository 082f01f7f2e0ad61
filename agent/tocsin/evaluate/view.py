"""The values of one event, computed when a condition asks for them.

A view is a dict that fills itself: key `i` is the tuple of values of the
release's field `i` (0: of every field, for keywords), key `~i` the same with
ASCII letters folded. One view serves all candidate rules of its event.
"""

from collections.abc import Mapping, Sequence

from tocsin.api.event.v1 import event_pb2
from tocsin.evaluate import semantics
from tocsin.records.field import Field


class View(dict[int, tuple[bytes, ...]]):
    """Base of both kinds: folds what `values` gives."""

    __slots__ = ()

    def __missing__(self, key: int) -> tuple[bytes, ...]:
        found = self.values_of(key) if key >= 0 else tuple([value.lower() for value in self[~key]])
        self[key] = found
        return found

    def values_of(self, number: int) -> tuple[bytes, ...]:
        """Values of a field of the release, or of all fields for 0."""
        raise NotImplementedError


class SchemaView(View):
    """An event of the schema. `fields[i]` is the schema's field for the release's field i, None where it has none."""

    __slots__ = ("_event", "_fields", "_users")

    def __init__(self, event: event_pb2.Event, fields: Sequence[Field | None], users: semantics.Users) -> None:
        super().__init__()
        self._event = event
        self._fields = fields
        self._users = users

    def values_of(self, number: int) -> tuple[bytes, ...]:
        """Values of a field, or of all."""
        if number == 0:
            return tuple([value for _, value in semantics.values_of(self._event, self._users)])
        field = self._fields[number]
        value = None if field is None else semantics.value_of(field, self._event, self._users)
        return () if value is None else (value,)


class NamedView(View):
    """An event described by field names. `names[i]` is the name of the release's field i."""

    __slots__ = ("_names", "_values")

    def __init__(self, values: Mapping[str, Sequence[bytes]], names: Sequence[str]) -> None:
        super().__init__()
        self._values = values
        self._names = names

    def values_of(self, number: int) -> tuple[bytes, ...]:
        """Values of a field, or of all."""
        if number == 0:
            return tuple([value for of_field in self._values.values() for value in of_field])
        return tuple(self._values.get(self._names[number], ()))
