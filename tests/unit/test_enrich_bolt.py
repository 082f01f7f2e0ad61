"""bbolt's files: one that bbolt wrote, and every kind of damage to it."""

import base64
import itertools
import json
import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.enrich.bolt import BoltError, read_bucket
from tocsin.enrich.cgroups import ContainerRef, Runtime
from tocsin.enrich.containers import METADATA, Container, Containers, Trouble

# Written by bbolt 1.3.6 with pages of 1024 bytes, as containerd fills it: v1/k8s.io/containers/<id>/labels.
DATABASE = zlib.decompress(
    base64.b64decode(
        "eNrt3ctu1FYcx3FPriQEGG4JoALhfo0ztmfGM4GqoG67SJ+gmosDoyT2aIZWsENixQ6puy6qPkGF1FXX7QOw6aarvgASj9CZzrGTWI0p9TnoP+"
        "H7kQbnkMlf6OCf5/j42LGskSm1ffvnwtuJXX9xz9rrvtp+rrYTavvNL9+7P794/NICMDYK78n/ZOr9E6n3xz//5dfrpV9/sH6jR4HxEee5SFcA"
        "n5zJ1HEAwKdjKsl/IRnPD8cCM4OXN3htNZrBVn//0UMh+bqofnp4JAmdOl0LiDdtJv+eT9cC4s1k5N/9X/kfvsISPQvIN2sm/y49C8h3yND5Pw"
        "cAQL45Q/mv0bWAePNm8u96dC0g3mEz+feYAATkWzCUf4euBcQ7kpH/9n/I/866wWVrtJowXlG0NHgtWqMrDI1ut/846nYiu9XrrLSi8EmjEwa9"
        "tr3ZCdv9RthuRk/5vwA+tqMZ+c9x/a9MzwLyHTOT/yo9C8hXNHP+7zD/B8h33Ez+PQYAgHwnzIz/mf4HxsBJQ+N/JgAB+U4Zyn+FrgXEO20o/6"
        "z/BeRbNJR/5v8A+ZbM5N/l+T+AfGfM5N9j/g+Q76yh/HP/PyDfuSTJk8m9PMO1e8Pngn6mEv1QHQ9+VN//wxrd5fP7nGV1thuPgnbU2gx6dida"
        "3eo0e43es9XwUSd8uubYrv++A8jOLxgpqemI+JEkX1g7NxANfWWNHlcwfGTRv99JlDQH3978thn0wuBJ0Le7UdsOG9vB8BaklcrG9uAto7f1o+"
        "2gGbWf9btBqw8AAICxw3D+g53POP/Psf6Xy//AGLhgZv7P5f4/QL6LhvLP9T9AvmUz43+W/wNj4JKhz3/W/wLyXTaUf9b/APJdMZR/fv8XIN9V"
        "M/n3yD8g3zVD+WcCEJDvuqH81+laQLwbGfnPcf2P6T9gDNw08/nv8ABgQL5bZvLvkn9AvtuG8s/8HyDfHUP5Z/4PkO+umfx73AAMyLeSkf8c8/"
        "88/hcYA7aZ/DP8B8bAqpnxv8MAAJCvlCR5Osn/+uD1YFeiX6Xab1LtYmFve31Xu5TTTPrfm49zQm89d1ZvPe+83nrlo+ziyODIzn9lWW8eqsf0"
        "1vNX9Nar3dBbr26ziyODKzr/TqmoNQ+Oc1NvPfeQ3nreab31yifZxZHBk53/yim9eagu6q3nr+qtV5vTW68+xS6ODGXR+XdLF7TmwXVu6a3nXt"
        "Fbz5vXW698kV0cGSqy81+5rTcP1Ut66/lLeuvVLuutV7/DLo4MVdH590qHtebBcxb01nOv6q3n3dVbr3yGXRwZ/CT/s0n+u6l8v06136XapVT+"
        "u6n261T7nb7jQ+Wa3rxUj+ut50/rrVc7q7de/Xq6nuN65UrVr9UbzVY72PjQ9rlUvY2cjhBRo+IHdRSs0Uz2c5XteF1AnP34OuFfqh1fN4g/++"
        "N5xAeqHc8rxMeC+DzjJ9WOxx1vVNvXsj/nVsl7vSLvfGfe+ZK851t5x2t5j+ck8uOqJ5//e9f/zatt8iu1+zzSBzho1vbJ/4zabtb6didiOT9w"
        "EN3bJ/8Tavuds0YnAQfU/fg8/p/EW+pPy5qkawAAAAAAODD+BoXs7a8="
    )
)
PAGE_BYTES = 1024
ID, SANDBOX = "0123456789abcdef" * 4, "f" * 64
CONTAINERS = [b"v1", b"k8s.io", b"containers"]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "meta.db"
    path.write_bytes(DATABASE)
    return path


def damaged(database: Path, at: int, written: bytes) -> Path:
    database.write_bytes(DATABASE[:at] + written + DATABASE[at + len(written) :])
    return database


def metas() -> list[int]:
    """Where the newest meta page begins, then the other."""
    transactions = [struct.unpack_from("<Q", DATABASE, at + 16 + 48)[0] for at in (0, PAGE_BYTES)]
    return [0, PAGE_BYTES] if transactions[0] > transactions[1] else [PAGE_BYTES, 0]


def test_every_bucket_below_branches_is_found(database: Path) -> None:
    for number in range(40):
        name = b"%064d" % number
        assert read_bucket(database, [*CONTAINERS, name, b"labels"]) == {b"n": b"%d" % number}


def test_a_value_that_fills_several_pages(database: Path) -> None:
    found = read_bucket(database, [*CONTAINERS, ID.encode()])
    assert found == {b"image": b"docker.io/library/nginx:1.27", b"spec": b"s" * 2500}


def test_a_bucket_that_is_not_there(database: Path) -> None:
    assert read_bucket(database, [*CONTAINERS, b"none"]) is None
    assert read_bucket(database, [*CONTAINERS, ID.encode(), b"image"]) is None
    assert read_bucket(database, [b"v2", b"k8s.io"]) is None
    assert read_bucket(database, [b"", b""]) is None


def test_the_older_meta_page_counts_when_the_newest_is_damaged(database: Path) -> None:
    newest, _ = metas()
    assert read_bucket(damaged(database, newest + 16 + 48, b"\xff"), CONTAINERS) is None  # nothing was there yet


def test_without_a_meta_page_there_is_no_database(database: Path) -> None:
    for content in (b"", DATABASE[:70], bytes(4096), b"x" * 4096):
        database.write_bytes(content)
        with pytest.raises(BoltError):
            read_bucket(database, CONTAINERS)


def test_a_file_that_ends_too_early_is_refused(database: Path) -> None:
    os.truncate(database, 2 * PAGE_BYTES)
    with pytest.raises(BoltError):
        read_bucket(database, CONTAINERS)


@settings(deadline=None)
@given(st.integers(2 * PAGE_BYTES, len(DATABASE) - 1), st.binary(min_size=1, max_size=12))
def test_damage_is_refused_or_unseen_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, at: int, written: bytes
) -> None:
    database = damaged(tmp_path_factory.mktemp("damaged") / "meta.db", at, written)
    for number in (0, 20, 39):
        try:
            read_bucket(database, [*CONTAINERS, b"%064d" % number, b"labels"])
        except BoltError:
            return


def test_a_page_that_is_another_one_is_refused(database: Path) -> None:
    root_page = struct.unpack_from("<Q", DATABASE, metas()[0] + 16 + 16)[0]
    damaged(database, root_page * PAGE_BYTES, b"\xff")
    with pytest.raises(BoltError, match=f"expected page {root_page}"):
        read_bucket(database, CONTAINERS)


def test_a_branch_that_leads_to_itself_ends(database: Path) -> None:
    for page in range(2, len(DATABASE) // PAGE_BYTES):
        at = page * PAGE_BYTES
        if struct.unpack_from("<H", DATABASE, at + 8)[0] == 1:
            damaged(database, at + 16 + 8, struct.pack("<Q", page))
            with pytest.raises(BoltError):
                read_bucket(database, [*CONTAINERS, b"%064d" % 0])
            return
    pytest.fail("the database has no branch")


def with_transaction(number: int) -> bytes:
    """The older meta page as the end of another transaction writes it: the same tree, checksum and all."""
    newest = metas()[0] + 16
    fields = DATABASE[newest : newest + 48] + struct.pack("<Q", number)
    checksum = 0xCBF29CE484222325
    for byte in fields:
        checksum = (checksum ^ byte) * 0x100000001B3 % (1 << 64)
    return fields + struct.pack("<Q", checksum)


def read_while_written(database: Path, transactions: int) -> dict[bytes, bytes] | None:
    """Reads a bucket; so many transactions end, one at each look at the older meta page but the first."""
    older = metas()[1] + 16
    numbers = iter(range(1000, 1000 + transactions))
    looks = itertools.count()

    def read(fd: int, size_bytes: int, at: int) -> bytes:
        if at == older and next(looks) and (number := next(numbers, 0)):
            with database.open("r+b") as file:
                file.seek(older)
                file.write(with_transaction(number))
        return os.pread(fd, size_bytes, at)

    return read_bucket(database, [*CONTAINERS, b"%064d" % 7, b"labels"], read)


def test_a_database_that_is_written_meanwhile_is_read_again(database: Path) -> None:
    assert read_while_written(database, 1) == {b"n": b"7"}
    assert database.read_bytes() != DATABASE


def test_a_database_that_is_written_all_the_time_is_given_up(database: Path) -> None:
    with pytest.raises(BoltError, match="written during each of 5 attempts"):
        read_while_written(database, 1 << 20)


def test_what_was_read_of_a_tree_that_is_gone_is_not_told(database: Path) -> None:
    """A page of the tree is overwritten after the transaction that freed it: the second try sees the new tree."""
    newest = metas()[0] + 16
    root_page = struct.unpack_from("<Q", DATABASE, newest + 16)[0]

    def read(fd: int, size_bytes: int, at: int) -> bytes:
        raw = os.pread(fd, size_bytes, at)
        if at == root_page * PAGE_BYTES and with_transaction(1000) not in database.read_bytes():
            with database.open("r+b") as file:
                file.seek(metas()[1] + 16)
                file.write(with_transaction(1000))
            return bytes(size_bytes)
        return raw

    assert read_bucket(database, [*CONTAINERS, b"%064d" % 7, b"labels"], read) == {b"n": b"7"}


def containerd(root: Path, content: bytes) -> Containers:
    """A host with this database, and a task in a pod."""
    bundle = root / f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json"
    metadata = root / "var/lib/containerd" / METADATA
    bundle.parent.mkdir(parents=True)
    metadata.parent.mkdir(parents=True)
    bundle.write_text(json.dumps({"annotations": {"io.kubernetes.cri.sandbox-id": SANDBOX}}))
    metadata.write_bytes(content)
    return Containers(root)


def test_a_container_of_containerd_has_its_labels_and_its_pods(tmp_path: Path) -> None:
    found = containerd(tmp_path, DATABASE).describe(ContainerRef(ID, Runtime.CONTAINERD))
    labels = (("app", "shop"), ("maintainer", "somebody"))
    assert found == Container(ID, Runtime.CONTAINERD, image="docker.io/library/nginx:1.27", labels=labels)


def test_a_damaged_database_costs_the_labels_only(tmp_path: Path) -> None:
    containers = containerd(tmp_path, b"damaged" * 1000)
    assert containers.describe(ContainerRef(ID, Runtime.CONTAINERD)) == Container(ID, Runtime.CONTAINERD)
    assert containers.troubles == {Trouble.MALFORMED: 3}
