"""Fixtures of the tests on the real kernel. Where it cannot be, every test is skipped, and says so."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.acting import Acts  # type: ignore[import-not-found]
from kernel.sensing import Sensor  # type: ignore[import-not-found]
from tocsin.errors import KernelError


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that stands in this folder needs the kernel."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kernel)


@pytest.fixture(scope="session")
def loadable() -> str:
    """Why the programs cannot be loaded here; empty where they can."""
    if os.geteuid() != 0:
        return f"uid {os.geteuid()}, not root"
    try:
        Sensor(seed=False).close()
    except KernelError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module", autouse=True)
def _on_this_kernel(loadable: str) -> None:
    if loadable:
        pytest.skip(f"THE KERNEL SIDE IS NOT TESTED: {loadable}")


@pytest.fixture(scope="module")
def sensor(_on_this_kernel: None) -> Iterator[Sensor]:
    """One sensor for the tests of a module, seeded: this process is known to it."""
    opened = Sensor()
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _shared_sensor_forgets(request: pytest.FixtureRequest) -> None:
    """Pids and cookies come again: each test starts with no events."""
    if "sensor" in request.fixturenames:
        shared = request.getfixturevalue("sensor")
        shared.settle()
        shared.events.clear()
        shared.drains.clear()


@pytest.fixture(scope="session")
def acts(tmp_path_factory: pytest.TempPathFactory) -> Acts:
    """The programs of acts/, compiled; in a folder that every user may enter."""
    folder = tmp_path_factory.mktemp("acts")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    return Acts(folder)
