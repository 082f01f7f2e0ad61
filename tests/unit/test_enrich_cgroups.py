"""From a control group's path to a container: what each runtime makes, and what is none."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tocsin.enrich.cgroups import ContainerRef, Runtime, container_of, find_group, unified_path

ID = "0123456789abcdef" * 4
OTHER = "f" * 64
POD = "4d3c5e6f-1234-4abc-9def-0123456789ab"
POD_SLICE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD.replace('-', '_')}.slice"
POD_DIRECTORY = f"/kubepods/burstable/pod{POD}"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/system.slice/docker-{ID}.scope", ContainerRef(ID, Runtime.DOCKER)),
        (f"/system.slice/docker-{ID}.scope/init.scope", ContainerRef(ID, Runtime.DOCKER)),
        (f"/docker/{ID}", ContainerRef(ID, Runtime.DOCKER)),
        (f"/docker/{ID}/system.slice/cron.service", ContainerRef(ID, Runtime.DOCKER)),
        (f"/ecs/task-name/{ID}", ContainerRef(ID, Runtime.DOCKER)),
        (f"{POD_SLICE}/docker-{ID}.scope", ContainerRef(ID, Runtime.DOCKER, pod_uid=POD)),
        (f"{POD_SLICE}/cri-containerd-{ID}.scope", ContainerRef(ID, Runtime.CONTAINERD, pod_uid=POD)),
        (f"{POD_SLICE}/crio-{ID}.scope", ContainerRef(ID, Runtime.CRIO, pod_uid=POD)),
        (f"{POD_SLICE}/crio-{ID}.scope/container", ContainerRef(ID, Runtime.CRIO, pod_uid=POD)),
        (f"{POD_DIRECTORY}/crio-{ID}", ContainerRef(ID, Runtime.CRIO, pod_uid=POD)),
        (f"{POD_DIRECTORY}/{ID}", ContainerRef(ID, Runtime.UNKNOWN, pod_uid=POD)),
        (f"/kubepods/pod{POD}/{ID}", ContainerRef(ID, Runtime.UNKNOWN, pod_uid=POD)),
        (f"/kubelet{POD_SLICE}/cri-containerd-{ID}.scope", ContainerRef(ID, Runtime.CONTAINERD, pod_uid=POD)),
        (f"/kubepods/podd41d8cd98f00b204e9800998ecf8427e/{ID}",
         ContainerRef(ID, Runtime.UNKNOWN, pod_uid="d41d8cd98f00b204e9800998ecf8427e")),
        (f"/system.slice/containerd.service/{POD_SLICE.rsplit('/', 1)[1]}:cri-containerd:{ID}",
         ContainerRef(ID, Runtime.CONTAINERD, pod_uid=POD)),
        (f"/default/{ID}", ContainerRef(ID, Runtime.CONTAINERD, namespace="default")),
        (f"/k8s.io/{ID}", ContainerRef(ID, Runtime.CONTAINERD, namespace="k8s.io")),
        (f"/system.slice/nerdctl-{ID}.scope", ContainerRef(ID, Runtime.CONTAINERD)),
        (f"/machine.slice/libpod-{ID}.scope/container", ContainerRef(ID, Runtime.PODMAN)),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope",
         ContainerRef(ID, Runtime.PODMAN)),
        (f"/system.slice/web.service/libpod-payload-{ID}", ContainerRef(ID, Runtime.PODMAN)),
        (f"/libpod_parent/libpod-{ID}", ContainerRef(ID, Runtime.PODMAN)),
        ("/lxc.payload.web/init.scope", ContainerRef("web", Runtime.LXC)),
        ("/lxc/web", ContainerRef("web", Runtime.LXC)),
        (r"/machine.slice/machine-lxc\x2d42\x2dweb.scope", ContainerRef("lxc-42-web", Runtime.LXC)),
        (r"/machine.slice/machine-my\x2dweb.scope/payload", ContainerRef("my-web", Runtime.NSPAWN)),
        ("/machine.slice/systemd-nspawn@web.service/payload", ContainerRef("web", Runtime.NSPAWN)),
        (f"/somebody/elses/{ID}", ContainerRef(ID, Runtime.UNKNOWN)),
    ],
)  # fmt: skip
def test_each_runtimes_paths(path: str, expected: ContainerRef) -> None:
    assert container_of(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/init.scope",
        "/system.slice/docker.service",
        "/system.slice/containerd.service",
        "/user.slice/user-1000.slice/session-2.scope",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"{POD_SLICE}/crio-conmon-{ID}.scope",
        POD_SLICE,
        POD_DIRECTORY,
        "/lxc.monitor.web",
        "/lxc",
        r"/machine.slice/machine-qemu\x2d3\x2dvm.scope",
        f"/docker/{ID[:63]}",
        f"/docker/{ID}0",
        f"/docker/{ID.upper()}",
        "/" + "x/" * 2048 + ID,
    ],
)
def test_what_is_no_container(path: str) -> None:
    assert container_of(path) is None


def test_a_container_cannot_pass_for_another_by_the_names_of_its_own_groups() -> None:
    assert container_of(f"/system.slice/docker-{ID}.scope/docker/{OTHER}") == ContainerRef(ID, Runtime.DOCKER)


def test_the_unified_hierarchys_path_is_the_one_that_goes_with_the_id() -> None:
    file = f"12:cpuset:/docker/{ID}\n1:name=systemd:/docker/{ID}\n0::/system.slice/docker.service\n"
    assert unified_path(file) == "/system.slice/docker.service"
    assert unified_path("0::/a:b::c\n") == "/a:b::c"
    assert unified_path(f"12:cpuset:/docker/{ID}\n") == ""


def test_a_group_is_found_by_its_id(tmp_path: Path) -> None:
    for path in ("init.scope", "system.slice/a.service", f"system.slice/docker-{ID}.scope/init.scope"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "system.slice/cgroup.procs").touch()
    group = tmp_path / f"system.slice/docker-{ID}.scope"
    assert find_group(tmp_path, group.stat().st_ino) == f"/system.slice/docker-{ID}.scope"
    assert find_group(tmp_path, (tmp_path / "system.slice/cgroup.procs").stat().st_ino) is None
    assert find_group(tmp_path, 1) is None
    assert find_group(tmp_path / "none", 1) is None


def test_the_search_for_a_group_does_not_follow_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "outside/b").mkdir(parents=True)
    (tmp_path / "a/link").symlink_to(tmp_path / "outside")
    assert find_group(tmp_path / "a", (tmp_path / "outside/b").stat().st_ino) is None


@pytest.mark.skipif(
    not Path("/sys/fs/cgroup/unified/cgroup.procs").exists() and not Path("/sys/fs/cgroup/cgroup.procs").exists(),
    reason="no unified hierarchy is mounted",
)
def test_the_ids_of_this_hosts_groups_are_their_inodes() -> None:
    mounts = Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")
    hierarchy = next(mount for mount in mounts if (mount / "cgroup.procs").exists())
    groups = [path for path in hierarchy.iterdir() if path.is_dir()]
    for group in groups[:3]:
        assert find_group(hierarchy, group.stat().st_ino) == f"/{group.name}"


PARTS = st.sampled_from(["docker", "lxc", ID, f"docker-{ID}.scope", f":docker:{ID}", "machine-\\xff.scope", "pod", "a"])


@settings(deadline=None)
@given(st.lists(PARTS | st.text(max_size=20), max_size=8).map("/".join))
@example("/\\x2d/machine-\\x.scope")
def test_any_path_gives_a_bounded_answer(path: str) -> None:
    found = container_of(path)
    assert found is None or 1 <= len(found.id) <= 255
