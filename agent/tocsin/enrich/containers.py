"""What a container is called and which image it runs, from the files that its runtime keeps; no daemon is asked.

Where the files lie:

- Docker: `/var/lib/docker/containers/<id>/config.v2.json`;
- containerd: the OCI bundle of each task, `/run/containerd/io.containerd.runtime.v2.task/<namespace>/<id>/config.json`,
  whose annotations Kubernetes and nerdctl fill; labels stand in its database,
  `/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db` (k3s has both in places of its own);
- CRI-O: `userdata/config.json` of the container in `/var/lib/containers/storage` or `/run/containers/storage`;
- Podman: `containers.json` beside those, and `volatile-containers.json` for `--rm`.

The managers of containers write these files, but what stands in them comes from whoever starts containers. So sizes
are bounded, types are checked, and a file that is not what it should be costs its content only: the id stands.
Podman keeps labels in a database of its own that is not read.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any, Final

from tocsin.enrich.bolt import BoltError, read_bucket
from tocsin.enrich.cache import BoundedCache, CacheCounters
from tocsin.enrich.cgroups import ContainerRef, Runtime
from tocsin.enrich.reading import TooBigError, read_whole

MAX_FILE_BYTES: Final = 1 << 20
MAX_INDEX_BYTES: Final = 4 << 20
"""Of containers.json, which holds all containers of the host."""
MAX_LABELS: Final = 64
MAX_LABEL_BYTES: Final = 256
"""Of a key and its value together."""
MAX_TEXT_BYTES: Final = 512
MAX_NAMESPACES: Final = 64
CACHE_ENTRIES: Final = 1024
CACHE_BYTES: Final = 4 << 20

DOCKER: Final = "var/lib/docker/containers"
CONTAINERD: Final = (
    ("run/containerd", "var/lib/containerd"),
    ("run/k3s/containerd", "var/lib/rancher/k3s/agent/containerd"),
)
"""State and root directory of each containerd that a host may run."""
TASKS: Final = "io.containerd.runtime.v2.task"
METADATA: Final = "io.containerd.metadata.v1.bolt/meta.db"
STORAGE: Final = ("var/lib/containers/storage/overlay-containers", "run/containers/storage/overlay-containers")
INDEXES: Final = ("containers.json", "volatile-containers.json")

_CRI: Final = "io.kubernetes.cri."
_CRIO: Final = "io.kubernetes.cri-o."
_OWN_LABELS: Final = ("io.kubernetes.", "annotation.", "io.cri-containerd.", "io.containerd.", "nerdctl/")
"""Book-keeping: what the kubelet says in labels stands in fields of its own, the others are the runtimes' own."""


class Trouble(StrEnum):
    """Why a container, or a part of what is told of it, is not known."""

    MISSING = "no file of the runtime"
    MALFORMED = "a file is not what the runtime writes"
    TOO_BIG = "a file is too big"
    UNREADABLE = "a file cannot be read"
    LABEL = "a label is too long or one too many"


@dataclass(frozen=True, slots=True)
class Container:
    """A container; what is not known is empty."""

    id: str
    runtime: Runtime
    name: str = ""
    image: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    """Of the container, and where the files have them those of its pod; sorted by key."""
    pod_name: str = ""
    pod_namespace: str = ""
    pod_uid: str = ""

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory or in a message."""
        texts = (self.id, self.name, self.image, self.pod_name, self.pod_namespace, self.pod_uid)
        return sum(map(len, texts)) + sum(len(key) + len(value) for key, value in self.labels)


@dataclass(frozen=True, slots=True)
class _Description:
    """What a file says, before it is bounded."""

    runtime: Runtime
    name: object = ""
    image: object = ""
    labels: dict[str, str] = field(default_factory=dict)
    pod_name: object = ""
    pod_namespace: object = ""
    pod_uid: object = ""


class MalformedError(ValueError):
    """A file is no JSON, or not of the expected shape."""


class Containers:
    """Describes containers, each once while it stays in the cache."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._known: BoundedCache[tuple[Runtime, str], Container] = BoundedCache(CACHE_ENTRIES, CACHE_BYTES)
        self._sources: dict[Runtime, Callable[[ContainerRef], _Description | None]] = {
            Runtime.DOCKER: self._docker,
            Runtime.CONTAINERD: self._containerd,
            Runtime.CRIO: self._crio,
            Runtime.PODMAN: self._podman,
        }
        self.troubles: Counter[Trouble] = Counter()

    def describe(self, ref: ContainerRef) -> Container:
        """What is known of the container; at least its id. One whose files were not found is looked for again."""
        key = (ref.runtime, ref.id)
        known = self._known.get(key)
        if known is not None:
            return known
        description = self._look_up(ref)
        if description is None:
            return Container(ref.id, ref.runtime, name=_unnamed(ref), pod_uid=ref.pod_uid)
        container = self._bounded(ref, description)
        self._known.put(key, container, container.size_bytes)
        return container

    def counters(self) -> CacheCounters:
        """Of the cache."""
        return self._known.counters()

    def _look_up(self, ref: ContainerRef) -> _Description | None:
        if ref.runtime in (Runtime.LXC, Runtime.NSPAWN):
            return None
        sources = self._sources.values() if ref.runtime is Runtime.UNKNOWN else [self._sources[ref.runtime]]
        trouble = Trouble.MISSING
        for source in sources:
            try:
                description = source(ref)
            except TooBigError:
                trouble = Trouble.TOO_BIG
            except MalformedError:
                trouble = Trouble.MALFORMED
            except OSError:
                trouble = Trouble.UNREADABLE
            else:
                if description is not None:
                    return description
        self.troubles[trouble] += 1
        return None

    def _bounded(self, ref: ContainerRef, description: _Description) -> Container:
        return Container(
            ref.id,
            description.runtime,
            name=_text(description.name),
            image=_text(description.image),
            labels=self._labels(description.labels),
            pod_name=_text(description.pod_name),
            pod_namespace=_text(description.pod_namespace),
            pod_uid=_text(description.pod_uid) or ref.pod_uid,
        )

    def _labels(self, labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
        own = sorted((_text(key), _text(labels[key])) for key in labels if not key.startswith(_OWN_LABELS))
        short = [(k, v) for k, v in own if k and len(k.encode()) + len(v.encode()) <= MAX_LABEL_BYTES]
        kept = tuple(short[:MAX_LABELS])
        if len(own) > len(kept):
            self.troubles[Trouble.LABEL] += len(own) - len(kept)
        return kept

    def _docker(self, ref: ContainerRef) -> _Description | None:
        document = self._read(f"{DOCKER}/{ref.id}/config.v2.json")
        if document is None:
            return None
        config = _mapping(document.get("Config"))
        labels = _strings(config.get("Labels"))
        found = _of_kubelet(Runtime.DOCKER, labels, config.get("Image"))
        sandbox_id = labels.get("io.kubernetes.sandbox.id", "")
        if _is_id(sandbox_id) and sandbox_id != ref.id:
            sandbox = self._read(f"{DOCKER}/{sandbox_id}/config.v2.json") or {}
            found = replace(found, labels=_strings(_mapping(sandbox.get("Config")).get("Labels")) | labels)
        name = document.get("Name")
        return replace(found, name=found.name or (name.removeprefix("/") if isinstance(name, str) else ""))

    def _containerd(self, ref: ContainerRef) -> _Description | None:
        for tasks, database in self._task_directories(ref.namespace):
            document = self._read(f"{tasks}/{ref.id}/config.json")
            if document is not None:
                told = _strings(document.get("annotations"))
                namespace = tasks.rpartition("/")[2]
                record = self._containerd_record(database, namespace, ref.id)
                sandbox_id = told.get(f"{_CRI}sandbox-id", ref.id)
                sandbox = self._containerd_record(database, namespace, sandbox_id, "labels")
                return _Description(
                    Runtime.CONTAINERD,
                    name=told.get(f"{_CRI}container-name") or told.get("nerdctl/name", ""),
                    image=told.get(f"{_CRI}image-name") or record.get("image", ""),
                    labels=sandbox | self._containerd_record(database, namespace, ref.id, "labels"),
                    pod_name=told.get(f"{_CRI}sandbox-name", ""),
                    pod_namespace=told.get(f"{_CRI}sandbox-namespace", ""),
                    pod_uid=told.get(f"{_CRI}sandbox-uid", ""),
                )
        return None

    def _containerd_record(self, database: str, namespace: str, *names: str) -> dict[str, str]:
        """A bucket of a container in containerd's database; empty when there is none or it cannot be read."""
        path = [name.encode(errors="replace") for name in ("v1", namespace, "containers", *names)]
        bucket: dict[bytes, bytes] | None = None
        try:
            bucket = read_bucket(self._root / database, path)
        except FileNotFoundError:
            pass  # an old containerd, or one with directories of its own: there are no labels then
        except BoltError:
            self.troubles[Trouble.MALFORMED] += 1
        except OSError:
            self.troubles[Trouble.UNREADABLE] += 1
        return {k.decode(errors="replace"): v.decode(errors="replace") for k, v in (bucket or {}).items()}

    def _task_directories(self, namespace: str) -> Iterator[tuple[str, str]]:
        """With the database of each, relative to the root.

        The namespace is the directory's name; a cgroup seldom tells it.
        """
        for state, root in CONTAINERD:
            tasks, database = f"{state}/{TASKS}", f"{root}/{METADATA}"
            if namespace:
                yield f"{tasks}/{namespace}", database
                continue
            try:
                with os.scandir(self._root / tasks) as entries:
                    names = sorted(entry.name for entry in islice(entries, MAX_NAMESPACES))
            except FileNotFoundError:
                continue
            yield from ((f"{tasks}/{name}", database) for name in names)

    def _crio(self, ref: ContainerRef) -> _Description | None:
        told = self._crio_annotations(ref.id)
        if told is None:
            return None
        labels = _inner_strings(told.get(f"{_CRIO}Labels"))
        found = _of_kubelet(Runtime.CRIO, labels, told.get(f"{_CRIO}ImageName", ""))
        sandbox_id = told.get(f"{_CRIO}SandboxID", "")
        if _is_id(sandbox_id) and sandbox_id != ref.id:
            sandbox = self._crio_annotations(sandbox_id) or {}
            found = replace(found, labels=_inner_strings(sandbox.get(f"{_CRIO}Labels")) | labels)
        return found

    def _crio_annotations(self, container_id: str) -> dict[str, str] | None:
        """None when this is no container of CRI-O's: Podman's lie in the same place."""
        for storage in STORAGE:
            document = self._read(f"{storage}/{container_id}/userdata/config.json")
            if document is not None:
                told = _strings(document.get("annotations"))
                return told if f"{_CRIO}ContainerType" in told else None
        return None

    def _podman(self, ref: ContainerRef) -> _Description | None:
        for path in (f"{storage}/{index}" for storage in STORAGE for index in INDEXES):
            listed = self._load(path, MAX_INDEX_BYTES)
            for entry in listed if isinstance(listed, list) else ():
                if isinstance(entry, dict) and entry.get("id") == ref.id:
                    names = entry.get("names")
                    metadata = _inner_strings(entry.get("metadata"))
                    name = names[0] if isinstance(names, list) and names else metadata.get("name", "")
                    return _Description(Runtime.PODMAN, name=name, image=metadata.get("image-name", ""))
        return None

    def _read(self, path: str) -> dict[str, Any] | None:
        """The object in a file, None when there is no file. Raises MalformedError, OSError."""
        document = self._load(path, MAX_FILE_BYTES)
        if document is None or isinstance(document, dict):
            return document
        raise MalformedError(f"{path}: got {type(document).__name__}, expected an object")

    def _load(self, path: str, max_bytes: int) -> object:
        """What a file says, None when there is no file. Raises MalformedError, OSError."""
        try:
            raw = read_whole(self._root / path, max_bytes)
        except (FileNotFoundError, NotADirectoryError):
            return None
        document = _parse(raw, path)
        if document is None:
            raise MalformedError(f"{path}: got null")
        return document


def _parse(raw: str | bytes, where: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{where}: {error}") from error


def _of_kubelet(runtime: Runtime, labels: dict[str, str], image: object) -> _Description:
    """Labels that the kubelet puts on every container, whatever the runtime."""
    return _Description(
        runtime,
        name=labels.get("io.kubernetes.container.name", ""),
        image=image,
        labels=labels,
        pod_name=labels.get("io.kubernetes.pod.name", ""),
        pod_namespace=labels.get("io.kubernetes.pod.namespace", ""),
        pod_uid=labels.get("io.kubernetes.pod.uid", ""),
    )


def _unnamed(ref: ContainerRef) -> str:
    """LXC and nspawn know containers by their names alone."""
    return ref.id if ref.runtime in (Runtime.LXC, Runtime.NSPAWN) else ""


def _is_id(text: str) -> bool:
    """What becomes part of a path is an id: 64 hexadecimal digits."""
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _strings(value: object) -> dict[str, str]:
    return {key: text for key, text in _mapping(value).items() if isinstance(text, str)}


def _inner_strings(value: object) -> dict[str, str]:
    """JSON inside a JSON string, as CRI-O and Podman write labels and metadata."""
    return _strings(_parse(value, "an annotation")) if isinstance(value, str) and value else {}


def _text(value: object) -> str:
    """As protobuf takes it; empty when it is no text or longer than MAX_TEXT_BYTES."""
    if not isinstance(value, str):
        return ""
    raw = value.encode(errors="replace")
    return raw.decode() if len(raw) <= MAX_TEXT_BYTES else ""
