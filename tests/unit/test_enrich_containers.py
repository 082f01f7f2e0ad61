"""Containers by their runtimes' files, in trees as each runtime lays them out; and files that are damaged."""

import json
import os
from pathlib import Path

import pytest

from tocsin.enrich.cgroups import ContainerRef, Runtime
from tocsin.enrich.containers import MAX_FILE_BYTES, MAX_LABEL_BYTES, MAX_LABELS, Container, Containers, Trouble

ID = "0123456789abcdef" * 4
SANDBOX = "f" * 64
KUBELET = {
    "io.kubernetes.container.name": "web",
    "io.kubernetes.pod.name": "shop-5f",
    "io.kubernetes.pod.namespace": "prod",
    "io.kubernetes.pod.uid": "4d3c5e6f-1234-4abc-9def-0123456789ab",
}
DOCKER_FILE = f"var/lib/docker/containers/{ID}/config.v2.json"
BUNDLE = "io.containerd.runtime.v2.task"
STORAGE = "var/lib/containers/storage/overlay-containers"


def put(root: Path, path: str, content: object) -> None:
    """A file with this content: JSON unless it is bytes."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def docker(name: str, image: str, labels: dict[str, str]) -> dict[str, object]:
    """The part of config.v2.json that is read."""
    return {"ID": ID, "Name": name, "Config": {"Image": image, "Labels": labels, "Env": ["A=b"]}, "State": {"Pid": 7}}


def annotated(annotations: dict[str, str]) -> dict[str, object]:
    """An OCI bundle's config.json."""
    return {"ociVersion": "1.1.0", "process": {"args": ["/web"]}, "annotations": annotations}


def test_docker(tmp_path: Path) -> None:
    put(tmp_path, DOCKER_FILE, docker("/shop", "nginx:1.27", {"team": "red", "app": "shop"}))
    found = Containers(tmp_path).describe(ContainerRef(ID, Runtime.DOCKER))
    labels = (("app", "shop"), ("team", "red"))
    assert found == Container(ID, Runtime.DOCKER, name="shop", image="nginx:1.27", labels=labels)


def test_docker_under_kubernetes_has_the_labels_of_its_pod(tmp_path: Path) -> None:
    labels = KUBELET | {"io.kubernetes.sandbox.id": SANDBOX, "annotation.io.kubernetes.container.hash": "77"}
    put(tmp_path, DOCKER_FILE, docker("/k8s_web_shop-5f_prod_0", "nginx@sha256:12", labels))
    put(tmp_path, DOCKER_FILE.replace(ID, SANDBOX), docker("/k8s_POD", "pause", {"app": "shop"}))
    found = Containers(tmp_path).describe(ContainerRef(ID, Runtime.DOCKER))
    assert (found.name, found.image, found.labels) == ("web", "nginx@sha256:12", (("app", "shop"),))
    assert (found.pod_name, found.pod_namespace, found.pod_uid) == tuple(KUBELET.values())[1:]


@pytest.mark.parametrize("state", ["run/containerd", "run/k3s/containerd"])
def test_containerd_under_kubernetes(tmp_path: Path, state: str) -> None:
    annotations = {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": "web",
        "io.kubernetes.cri.image-name": "docker.io/library/nginx:1.27",
        "io.kubernetes.cri.sandbox-id": SANDBOX,
        "io.kubernetes.cri.sandbox-name": "shop-5f",
        "io.kubernetes.cri.sandbox-namespace": "prod",
        "io.kubernetes.cri.sandbox-uid": KUBELET["io.kubernetes.pod.uid"],
    }
    put(tmp_path, f"{state}/{BUNDLE}/k8s.io/{ID}/config.json", annotated(annotations))
    assert Containers(tmp_path).describe(ContainerRef(ID, Runtime.CONTAINERD)) == Container(
        ID,
        Runtime.CONTAINERD,
        name="web",
        image="docker.io/library/nginx:1.27",
        pod_name="shop-5f",
        pod_namespace="prod",
        pod_uid=KUBELET["io.kubernetes.pod.uid"],
    )


def test_containerd_is_looked_for_in_the_namespace_that_the_path_tells(tmp_path: Path) -> None:
    put(tmp_path, f"run/containerd/{BUNDLE}/default/{ID}/config.json", annotated({"nerdctl/name": "mine"}))
    put(tmp_path, f"run/containerd/{BUNDLE}/another/{ID}/config.json", annotated({"nerdctl/name": "another"}))
    found = Containers(tmp_path).describe(ContainerRef(ID, Runtime.CONTAINERD, namespace="default"))
    assert found.name == "mine"


@pytest.mark.parametrize("storage", [STORAGE, STORAGE.replace("var/lib", "run")])
def test_crio_has_the_labels_of_its_pod(tmp_path: Path, storage: str) -> None:
    annotations = {
        "io.kubernetes.cri-o.ContainerType": "container",
        "io.kubernetes.cri-o.ImageName": "quay.io/shop/web:2",
        "io.kubernetes.cri-o.Labels": json.dumps(KUBELET),
        "io.kubernetes.cri-o.SandboxID": SANDBOX,
    }
    pod = {
        "io.kubernetes.cri-o.ContainerType": "sandbox",
        "io.kubernetes.cri-o.Labels": json.dumps({"app": "shop", "io.kubernetes.container.name": "POD"}),
    }
    put(tmp_path, f"{storage}/{ID}/userdata/config.json", annotated(annotations))
    put(tmp_path, f"{storage}/{SANDBOX}/userdata/config.json", annotated(pod))
    found = Containers(tmp_path).describe(ContainerRef(ID, Runtime.CRIO))
    assert (found.name, found.image, found.labels) == ("web", "quay.io/shop/web:2", (("app", "shop"),))
    assert (found.pod_name, found.pod_namespace, found.pod_uid) == tuple(KUBELET.values())[1:]


@pytest.mark.parametrize("index", ["containers.json", "volatile-containers.json"])
def test_podman(tmp_path: Path, index: str) -> None:
    metadata = json.dumps({"image-name": "quay.io/fedora:41", "name": "shop", "created-at": 1700000000})
    put(tmp_path, f"{STORAGE}/{index}", [{"id": SANDBOX}, {"id": ID, "names": ["shop"], "metadata": metadata}])
    put(tmp_path, f"{STORAGE}/{ID}/userdata/config.json", annotated({"io.container.manager": "libpod"}))
    found = Containers(tmp_path).describe(ContainerRef(ID, Runtime.PODMAN))
    assert found == Container(ID, Runtime.PODMAN, name="shop", image="quay.io/fedora:41")


@pytest.mark.parametrize("runtime", [Runtime.DOCKER, Runtime.CONTAINERD, Runtime.CRIO, Runtime.PODMAN])
def test_whose_files_there_are_tells_the_runtime_where_the_path_does_not(tmp_path: Path, runtime: Runtime) -> None:
    crio = {"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.ImageName": "i"}
    path, content = {
        Runtime.DOCKER: (DOCKER_FILE, docker("/n", "i", {})),
        Runtime.CONTAINERD: (f"run/containerd/{BUNDLE}/k8s.io/{ID}/config.json", annotated({})),
        Runtime.CRIO: (f"{STORAGE}/{ID}/userdata/config.json", annotated(crio)),
        Runtime.PODMAN: (f"{STORAGE}/containers.json", [{"id": ID}]),
    }[runtime]
    put(tmp_path, path, content)
    found = Containers(tmp_path).describe(ContainerRef(ID, Runtime.UNKNOWN, pod_uid="u"))
    assert (found.runtime, found.pod_uid) == (runtime, "u")


def test_lxc_and_nspawn_have_names_and_no_files(tmp_path: Path) -> None:
    containers = Containers(tmp_path)
    assert containers.describe(ContainerRef("web", Runtime.LXC)) == Container("web", Runtime.LXC, name="web")
    assert containers.describe(ContainerRef("db", Runtime.NSPAWN)) == Container("db", Runtime.NSPAWN, name="db")
    assert not containers.troubles


def test_a_container_without_files_keeps_its_id_and_is_looked_for_again(tmp_path: Path) -> None:
    containers = Containers(tmp_path)
    ref = ContainerRef(ID, Runtime.DOCKER, pod_uid="u")
    assert containers.describe(ref) == Container(ID, Runtime.DOCKER, pod_uid="u")
    assert containers.troubles == {Trouble.MISSING: 1}
    put(tmp_path, DOCKER_FILE, docker("/shop", "i", {}))
    assert containers.describe(ref).name == "shop"


def test_a_container_is_read_once(tmp_path: Path) -> None:
    put(tmp_path, DOCKER_FILE, docker("/shop", "i", {}))
    containers = Containers(tmp_path)
    first = containers.describe(ContainerRef(ID, Runtime.DOCKER))
    (tmp_path / DOCKER_FILE).unlink()
    assert containers.describe(ContainerRef(ID, Runtime.DOCKER)) is first
    assert (containers.counters().hits, containers.counters().entries) == (1, 1)


@pytest.mark.parametrize(
    ("content", "trouble"),
    [
        (b"", Trouble.MALFORMED),
        (b'{"Name": "/shop", ', Trouble.MALFORMED),
        (b"[1, 2]", Trouble.MALFORMED),
        (b"null", Trouble.MALFORMED),
        (b"\xff\xfe\x00", Trouble.MALFORMED),
        (b"[" * 200_000, Trouble.MALFORMED),
        (b'{"Name": ' + b"9" * 5000 + b"}", Trouble.MALFORMED),
        (b" " * MAX_FILE_BYTES + b"{}", Trouble.TOO_BIG),
    ],
)
def test_a_damaged_file_costs_its_content_only(tmp_path: Path, content: bytes, trouble: Trouble) -> None:
    put(tmp_path, DOCKER_FILE, content)
    containers = Containers(tmp_path)
    assert containers.describe(ContainerRef(ID, Runtime.DOCKER)) == Container(ID, Runtime.DOCKER)
    assert containers.troubles == {trouble: 1}


def test_values_of_other_types_are_left_out(tmp_path: Path) -> None:
    config = {"Image": {"a": 1}, "Labels": {"n": 7, "l": ["x"], "s": "kept", "": "nameless"}}
    put(tmp_path, DOCKER_FILE, {"Name": 5, "Config": config})
    found = Containers(tmp_path).describe(ContainerRef(ID, Runtime.DOCKER))
    assert found == Container(ID, Runtime.DOCKER, labels=(("s", "kept"),))


def test_labels_are_bounded_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    labels = {f"k{n:03}": "v" for n in range(MAX_LABELS + 3)} | {"a": "x" * MAX_LABEL_BYTES}
    put(tmp_path, DOCKER_FILE, docker("/shop", "i" * 513, labels))
    containers = Containers(tmp_path)
    found = containers.describe(ContainerRef(ID, Runtime.DOCKER))
    assert found.labels == tuple((f"k{n:03}", "v") for n in range(MAX_LABELS))
    assert found.image == ""
    assert containers.troubles == {Trouble.LABEL: 4}


def test_text_that_is_no_unicode_is_made_so(tmp_path: Path) -> None:
    put(tmp_path, DOCKER_FILE, b'{"Name": "/a\\ud800b", "Config": {"Labels": {"k\\udfff": "v"}}}')
    found = Containers(tmp_path).describe(ContainerRef(ID, Runtime.DOCKER))
    assert (found.name, found.labels) == ("a?b", (("k?", "v"),))


def test_a_pipe_in_place_of_the_file_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / DOCKER_FILE).parent.mkdir(parents=True)
    os.mkfifo(tmp_path / DOCKER_FILE)
    containers = Containers(tmp_path)
    assert containers.describe(ContainerRef(ID, Runtime.DOCKER)) == Container(ID, Runtime.DOCKER)
    assert containers.troubles == {Trouble.UNREADABLE: 1}


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere", docker("/other", "i", {}))
    (tmp_path / DOCKER_FILE).parent.mkdir(parents=True)
    (tmp_path / DOCKER_FILE).symlink_to(tmp_path / "elsewhere")
    containers = Containers(tmp_path)
    assert containers.describe(ContainerRef(ID, Runtime.DOCKER)) == Container(ID, Runtime.DOCKER)
    assert containers.troubles == {Trouble.UNREADABLE: 1}


def test_a_label_cannot_lead_to_another_file(tmp_path: Path) -> None:
    put(tmp_path, DOCKER_FILE, docker("/shop", "i", {"io.kubernetes.sandbox.id": "../../../../outside"}))
    put(tmp_path, "outside/config.v2.json", docker("/o", "i", {"stolen": "label"}))
    assert Containers(tmp_path).describe(ContainerRef(ID, Runtime.DOCKER)).labels == ()
