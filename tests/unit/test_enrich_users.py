"""Users and groups: the host's own, read again only after a change, bounded."""

import grp
import os
import pwd
from pathlib import Path

from tocsin.enrich.users import MAX_BYTES, MAX_NAMES, Groups, Users, bounded


def test_the_hosts_users_and_groups_are_known() -> None:
    users, groups = Users(), Groups()
    assert users.refresh()
    assert groups.refresh()
    assert {user.uid: user.name for user in users.known}[0] == pwd.getpwuid(0).pw_name
    assert {group.gid: group.name for group in groups.known} == bounded((g.gr_gid, g.gr_name) for g in grp.getgrall())


def test_they_are_read_again_only_when_the_file_changed(tmp_path: Path) -> None:
    database = tmp_path / "group"
    database.write_text("root:x:0:\n")
    groups = Groups(database)
    assert groups.refresh()
    assert not groups.refresh()
    os.utime(database, ns=(1, 1))
    assert groups.refresh()


def test_a_file_that_is_replaced_is_another_one(tmp_path: Path) -> None:
    database, new = tmp_path / "group", tmp_path / "group-"
    for path in (database, new):
        path.write_text("root:x:0:\n")
        os.utime(path, ns=(1, 1))
    groups = Groups(database)
    assert groups.refresh()
    new.rename(database)
    assert groups.refresh()


def test_without_a_database_nobody_is_known(tmp_path: Path) -> None:
    users = Users(tmp_path / "none")
    assert not users.refresh()
    assert users.known == []


def test_the_first_name_of_a_number_counts() -> None:
    assert bounded([(0, "root"), (0, "toor"), (1, "daemon")]) == {0: "root", 1: "daemon"}


def test_numbers_that_no_kernel_has_and_names_that_are_too_long_are_left_out() -> None:
    assert bounded([(-1, "less"), (1 << 32, "more"), (5, "x" * 257), (6, "y" * 256)]) == {6: "y" * 256}


def test_a_name_that_is_not_utf_8_is_made_so() -> None:
    assert bounded([(7, "caf\udce9")]) == {7: "caf?"}


def test_there_are_at_most_so_many_names_and_bytes() -> None:
    assert len(bounded((number, "nn") for number in range(MAX_NAMES + 5))) == MAX_BYTES // 14
    assert len(bounded((number, "") for number in range(MAX_NAMES + 5))) == MAX_NAMES
