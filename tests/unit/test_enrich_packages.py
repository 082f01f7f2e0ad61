"""The owners of paths: this host's own dpkg database against dpkg itself, made ones with every oddity, and rpm's."""

import base64
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.enrich.dpkg import Dpkg
from tocsin.enrich.package import Package, merged_directories, spellings
from tocsin.enrich.packages import REFRESH_S, Packages
from tocsin.enrich.rpm import Header, HeaderError, Rpm

# The header of shop-4:1.2-3, as rpm 4.18 wrote it: /bin/oldshop, /opt/shop/shop, /usr/bin/shop.
HEADER = zlib.decompress(
    base64.b64decode(
        "eNp1lc+LHEUUx2tmJ5tNYjDimkTxsEIOG3Rmq6uq60dQRDdoFjUu+AOVRKyfu42zM8PM7LKKCIIXb4JXT6Ig4sl/QE+ePIgo5CDoQcX4W4iSQ3"
        "Stmf4Oq0hqeF39qe97r6qrX00TQu4hZO5rQsi92Q7me5P7Y9lCtgVSt0Ye/z7389ma4Mvgg+AfwEfAP+a+hVwT/in3h7Itgn8GHwf/Av+T4F+R"
        "73bw79CXwH9CPwW+inzL4L+gC/Df4DM1t1rIdzbbXL6dr3uyDj4EfhJ8GP4XwEewP5vgG2pu3Ak+Wvs3KPhG6HeDj4EfAi/W62s8g/XdgvgB9B"
        "Pwfwn6SeivQr8V+uvg28BfgZeR/w/EP4j4a9DP1dxcAK/V8c1F8FPQ8X5aT0PH+2ldgH4K/hehz57/WfD9YFevp3kR8QEcwBFcgRO4B+6CB+Ax"
        "5p/txzZ4th87mP/N2v/mN6C/C/4Y+d4HfwP/D8Dfwv8K+DL0qzU3GrU+9zD4AM7Ten0GGkfr/HPPQb8J/Brq8zfEf4LnOYDxT7H+49A/h74Bvg"
        "TeBH854VUy2uwPSNFhhOMMt3bJLnm+pc7vbE15/pG1x8kTvdEg+ipVMZBu1dveJb2+HfpNxDRn9srbk189OMkxM8ok18wYbZxMwZQiKeasTSx5"
        "KZxnkSVaBGlYECEqZrSMVlOdZMwxBU/EcltGVZSJel8qYRX3PBkXnZM5XCTOUgqlk8pxrZgQnnlDTbBKGVsIpYlWgunkS8Y05YEXVOZ8zkfuE+"
        "UpClVSIyUvYhmpci4oS1OIknrhEyu9Iv9rw35/fP3LZF/beV/bvDMa+s5wMN3NvX+16c7XL+XwzLJbt3LLq/2twTCORjE8UHXjebsVR6cJtMnI"
        "2Wojjsb7Y+v2hW7fTp1H5+xOXB/GVO2eJrxDO6JdENGRHTrt62uhOxRT/8ea+C+btAVxZrp8sv/fTpr9bpgue/+y4qreClnpD8YrE86326NhPd"
        "h+lC21N4gfVH2y8WI1IAZV0w7RVbbXrivpeu2+x1bX1pbGcXdcr2d7nNqaCMt8MozF4AvpIgsmCUdlLiYpaYiGKyoD9UnRoI0XwcpS2Fw2WvhS"
        "SC3rXIlpK5UQigorRGBaFEHnSqBcOFnSgnKvUmlLmieSVAefbCmC0CaUZS4gRmYfwr29ax/h45XpjiXxxVvvvHeCfHip9/KVz+76LtdQkLTIxa"
        "5sKnPFBuNdWXhlhCk84yroZKXnxMhQOMFcEWLUwhaOKkG9zA8nklYmUh9sqWUhjA5Kc02DErwsXRT5POX6x3nDcZx8f+Ym/A8+Dy/b"
    )
)
SHOP = Package("shop", "4:1.2-3")

STATUS = """\
Package: coreutils
Status: install ok installed
Architecture: amd64
Version: 9.1-1
Description: basics
 Version: is not this

Package: libc6
Architecture: amd64
Version: 2.36-9

Package: libc6
Architecture: i386
Version: 2.36-8

Package: dash
Architecture: amd64
Version: 0.5-2"""


def dpkg(root: Path, lists: dict[str, list[str]], diversions: list[str] | None = None) -> Path:
    """A database below `root`, whose /bin is a link into /usr as everywhere today."""
    info = root / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "opt").mkdir()
    for name, paths in lists.items():
        (info / f"{name}.list").write_text("/.\n" + "".join(f"{path}\n" for path in paths))
    (info.parent / "status").write_text(STATUS)
    (info.parent / "diversions").write_text("".join(f"{line}\n" for line in diversions or []))
    return root


def rpmdb(root: Path, files: list[tuple[str, bytes, int]]) -> Path:
    """A database with a package for each (last part of a path, header, place of the file in the package)."""
    path = root / "var/lib/rpm/rpmdb.sqlite"
    path.parent.mkdir(parents=True)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)")
        database.execute("CREATE TABLE Basenames (key TEXT NOT NULL, hnum INTEGER NOT NULL, idx INTEGER NOT NULL)")
        for number, (name, header, index) in enumerate(files):
            database.execute("INSERT INTO Packages VALUES (?, ?)", (number, header))
            database.execute("INSERT INTO Basenames VALUES (?, ?, ?)", (name, number, index))
    database.close()
    return root


def opened(root: Path) -> Rpm:
    database = Rpm(root)
    database.refresh()
    return database


@pytest.mark.skipif(not shutil.which("dpkg-query"), reason="no dpkg on this host")
def test_this_hosts_programs_have_the_owners_that_dpkg_tells() -> None:
    packages = Packages()
    merged = merged_directories(Path("/"))
    diverted = set(Path("/var/lib/dpkg/diversions").read_bytes().splitlines())
    programs = sorted({entry.path.encode() for entry in os.scandir("/usr/bin")} - diverted)
    programs = random.Random(7).sample(programs, min(200, len(programs)))
    asked = [same for path in programs for same in spellings(path, merged)]
    answer = subprocess.run(["dpkg-query", "-S", *asked], capture_output=True, check=False).stdout
    told = {path: owners for owners, path in (line.split(b": ", 1) for line in answer.splitlines())}
    for path in programs:
        owners = [told[same].split(b":")[0].decode() for same in spellings(path, merged) if same in told]
        owner = packages.owner(path)
        assert (owner.name if owner else None) == (owners[0] if owners else None), path
    shell = packages.owner(b"/usr/bin/dpkg")
    version = subprocess.run(["dpkg-query", "-W", "-f=${Version}", "dpkg"], capture_output=True, text=True, check=True)
    assert shell == Package("dpkg", version.stdout)
    assert packages.unreadable == 0


def test_the_owner_with_its_version(tmp_path: Path) -> None:
    packages = Packages(dpkg(tmp_path, {"coreutils": ["/usr/bin", "/usr/bin/env"], "dash": ["/usr/bin/dash"]}))
    assert packages.owner(b"/usr/bin/env") == Package("coreutils", "9.1-1")
    assert packages.owner(b"/usr/bin/dash") == Package("dash", "0.5-2")
    assert packages.owner(b"/usr/bin/en") is None
    assert packages.owner(b"") is None
    assert packages.owner(b"/usr/bin/\xff") is None


def test_a_file_of_several_architectures_has_that_architectures_version(tmp_path: Path) -> None:
    packages = Packages(dpkg(tmp_path, {"libc6:amd64": ["/lib64/ld.so"], "libc6:i386": ["/lib/ld.so"]}))
    assert packages.owner(b"/lib64/ld.so") == Package("libc6", "2.36-9")
    assert packages.owner(b"/lib/ld.so") == Package("libc6", "2.36-8")


def test_a_package_without_a_status_has_no_version(tmp_path: Path) -> None:
    assert Packages(dpkg(tmp_path, {"odd": ["/opt/odd"]})).owner(b"/opt/odd") == Package("odd", "")


def test_a_path_is_found_whichever_way_the_package_spells_it(tmp_path: Path) -> None:
    packages = Packages(dpkg(tmp_path, {"coreutils": ["/bin/ls"], "dash": ["/usr/bin/dash"]}))
    assert packages.owner(b"/usr/bin/ls") == packages.owner(b"/bin/ls") == Package("coreutils", "9.1-1")
    assert packages.owner(b"/bin/dash") == packages.owner(b"/usr/bin/dash") == Package("dash", "0.5-2")


def test_directories_that_are_not_merged_are_two(tmp_path: Path) -> None:
    packages = Packages(dpkg(tmp_path, {"coreutils": ["/opt/ls"]}))
    assert packages.owner(b"/usr/opt/ls") is None


def test_a_diverted_file_is_its_packages_where_it_was_moved_to(tmp_path: Path) -> None:
    lists = {"coreutils": ["/bin/sh"], "bash": ["/usr/bin/sh"]}
    packages = Packages(dpkg(tmp_path, lists, ["/bin/sh", "/bin/sh.moved", "bash"]))
    assert packages.owner(b"/usr/bin/sh") == Package("bash", "")
    assert packages.owner(b"/usr/bin/sh.moved") == Package("coreutils", "9.1-1")


def test_what_lies_where_the_administrator_diverted_a_file_from_is_nobodys(tmp_path: Path) -> None:
    packages = Packages(dpkg(tmp_path, {"coreutils": ["/bin/ls"]}, ["/bin/ls", "/bin/ls.real", ":"]))
    assert packages.owner(b"/usr/bin/ls") is None
    assert packages.owner(b"/bin/ls.real") == Package("coreutils", "9.1-1")


def test_a_change_shows_after_a_while_and_not_before(tmp_path: Path) -> None:
    now_s = [100.0]
    packages = Packages(dpkg(tmp_path, {"coreutils": ["/bin/ls"]}), lambda: now_s[0])
    assert packages.owner(b"/bin/new") is None
    (tmp_path / "var/lib/dpkg/info/new.list").write_text("/bin/new\n")
    now_s[0] += REFRESH_S - 0.1
    assert packages.owner(b"/bin/new") is None
    now_s[0] += 0.1
    assert packages.owner(b"/bin/new") == Package("new", "")


def test_an_answer_comes_from_the_cache_the_next_time(tmp_path: Path) -> None:
    packages = Packages(dpkg(tmp_path, {"coreutils": ["/bin/ls"]}))
    for path in (b"/bin/ls", b"/none", b"/bin/ls", b"/none"):
        packages.owner(path)
    assert (packages.counters().hits, packages.counters().misses) == (2, 2)


def test_a_list_that_is_gone_since_it_was_indexed_owns_nothing(tmp_path: Path) -> None:
    database = Dpkg(dpkg(tmp_path, {"coreutils": ["/bin/ls", "/bin/cp"]}))
    assert database.owner(b"/bin/ls")
    (tmp_path / "var/lib/dpkg/info/coreutils.list").unlink()
    assert database.owner(b"/bin/cp") is None


def test_a_list_that_is_no_file_is_counted(tmp_path: Path) -> None:
    root = dpkg(tmp_path, {"coreutils": ["/bin/ls"]})
    os.mkfifo(root / "var/lib/dpkg/info/odd.list")
    packages = Packages(root)
    assert packages.owner(b"/bin/ls") == Package("coreutils", "9.1-1")
    assert packages.unreadable == 1


def test_a_host_without_a_database_has_no_owners(tmp_path: Path) -> None:
    packages = Packages(tmp_path)
    assert packages.owner(b"/usr/bin/ls") is None
    assert packages.unreadable == 0


NAMES = st.binary(min_size=1, max_size=3).filter(lambda raw: not set(raw) & set(b"\n\r\x0b\x0c\x1c\x1d\x1e\x85/\0"))


@settings(deadline=None)
@given(st.lists(st.lists(NAMES, max_size=8), max_size=4), NAMES)
def test_the_index_finds_what_a_search_finds(
    tmp_path_factory: pytest.TempPathFactory, lists: list[list[bytes]], asked: bytes
) -> None:
    info = tmp_path_factory.mktemp("root") / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    for number, names in enumerate(lists):
        (info / f"p{number}.list").write_bytes(b"".join(b"/opt/%b\n" % name for name in names))
    expected = [f"p{number}" for number, names in enumerate(lists) if asked in names]
    owner = Dpkg(info.parents[3]).owner(b"/opt/" + asked)
    assert (owner.name if owner else None) == (expected[0] if expected else None)


def test_rpm_owns_the_paths_of_its_package_and_no_namesakes(tmp_path: Path) -> None:
    files = [("oldshop", HEADER, 0), ("shop", HEADER, 1), ("shop", HEADER, 2)]
    database = opened(rpmdb(tmp_path, files))
    for path in (b"/bin/oldshop", b"/opt/shop/shop", b"/usr/bin/shop"):
        assert database.owner(path) == SHOP
    for path in (b"/home/shop", b"/usr/bin/oldshop", b"/usr/bin/none", b"/usr/bin/\xff", b""):
        assert database.owner(path) is None
    assert database.unreadable == 0


def test_rpm_finds_a_path_whichever_way_the_package_spells_it(tmp_path: Path) -> None:
    (tmp_path / "bin").symlink_to("usr/bin")
    assert opened(rpmdb(tmp_path, [("oldshop", HEADER, 0)])).owner(b"/usr/bin/oldshop") == SHOP


def test_a_file_that_another_package_replaced_is_not_this_ones(tmp_path: Path) -> None:
    header = Header(HEADER)
    at, count = header._entries[1029]
    start = len(HEADER) - len(header._data) + at
    assert (count, HEADER[start : start + 3]) == (3, bytes(3))
    replaced = HEADER[:start] + b"\x01" + HEADER[start + 1 :]
    database = opened(rpmdb(tmp_path, [("oldshop", replaced, 0), ("shop", replaced, 1)]))
    assert database.owner(b"/bin/oldshop") is None
    assert database.owner(b"/opt/shop/shop") == SHOP


def test_a_database_that_is_none_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "var/lib/rpm/rpmdb.sqlite"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no database" * 1000)
    database = opened(tmp_path)
    assert database.owner(b"/usr/bin/shop") is None
    assert database.unreadable == 1


@pytest.mark.parametrize("index", [3, -1, 1 << 40])
def test_a_place_outside_the_package_is_counted(tmp_path: Path, index: int) -> None:
    database = opened(rpmdb(tmp_path, [("shop", HEADER, index)]))
    assert database.owner(b"/usr/bin/shop") is None
    assert database.unreadable == 1


@settings(deadline=None)
@given(st.integers(0, len(HEADER) - 1), st.binary(min_size=1, max_size=8), st.integers(0, 4))
def test_a_damaged_header_is_refused_or_read_and_nothing_else(at: int, written: bytes, index: int) -> None:
    damaged = HEADER[:at] + written + HEADER[at + len(written) :]
    try:
        header = Header(damaged)
        header.installed_path(index)
        header.package()
    except HeaderError:
        pass


def test_a_header_that_claims_more_than_there_is_is_refused() -> None:
    for blob in (b"", HEADER[:7], HEADER[:-1], struct.pack(">II", 1 << 31, 1 << 31)):
        with pytest.raises(HeaderError):
            Header(blob)


def test_a_database_that_appears_is_opened(tmp_path: Path) -> None:
    now_s = [0.0]
    packages = Packages(tmp_path, lambda: now_s[0])
    assert packages.owner(b"/usr/bin/shop") is None
    rpmdb(tmp_path, [("shop", HEADER, 2)])
    now_s[0] += REFRESH_S
    assert packages.owner(b"/usr/bin/shop") == SHOP
