"""The short form of the kernel matrix: the kernel tests on two kernels that are not this machine's."""

from concurrent.futures import Future

import pytest

from guests import matrix, verifier  # type: ignore[import-not-found]
from guests.initramfs import ROOT  # type: ignore[import-not-found]
from guests.kernels import UnavailableError  # type: ignore[import-not-found]
from guests.machine import Run, Told, parse  # type: ignore[import-not-found]

# The oldest, which has an object of its own, and one of long-term support; the others: `make kernels`.
SERIES = ("5.10", "6.12")
# All programs are loaded; of the tests these are what `make test` has time for under emulation.
FAMILIES = ("exec", "fork_exit", "sightings")
WITHOUT = [
    f"--ignore={path.relative_to(ROOT)}"
    for path in (ROOT / "tests" / "kernel").glob("test_*.py")
    if path.stem.removeprefix("test_") not in FAMILIES
]


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Run]]:
    """The guests, at their ends."""
    try:
        booted: dict[str, Future[Run]] = matrix.boot(SERIES, tmp_path_factory.mktemp("guests"), WITHOUT, refresh=False)
    except UnavailableError as error:
        pytest.skip(f"OTHER KERNELS ARE NOT TESTED: {error}")
    return booted


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SERIES)
def test_the_kernel_tests_pass_on(
    name: str, guests: dict[str, Future[Run]], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        run = guests[name].result()
    except UnavailableError as error:
        pytest.skip(f"KERNEL {name} IS NOT TESTED: {error}")
    with capsys.disabled():
        print(f"\n{matrix.summary(name, run)}")
    found = list(matrix.faults(run, verifier.accepted().get(name, {})))
    assert not found, "\n\n".join(found)


def test_growth_of_a_tenth_passes_and_more_is_told_with_both_counts() -> None:
    before = {"same": 1000, "grown": 1000, "gone": 1000}
    assert verifier.growth(before, {"same": 1100, "new": 999_999}) == []
    assert verifier.growth(before, {"same": 1, "grown": 1101}) == [
        "grown: the verifier goes through 1,101 instructions, 1,000 before"
    ]


def test_a_guest_that_died_gives_no_verdict() -> None:
    told = '{"release": "6.1.0"}\r\n{"test": "tests/kernel/test_a.py::one", "outcome": "passed", "text": ""}\r\n'
    assert parse(told + "EXI") is None
    assert parse(told + "EXIT 0\r\n") == Run(
        0, release="6.1.0", tests=[Told("tests/kernel/test_a.py::one", "passed", "")]
    )


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        (Run(0), "no test passed"),
        (Run(-11, tests=[Told("a", "passed", "")]), "the tests ended with -11"),
        (Run(1, tests=[Told("a", "passed", ""), Told("b", "failed", "why")]), "b\nwhy"),
        (Run(20, refusal="words"), "the kernel refuses the programs: words"),
        (
            Run(0, tests=[Told("a", "passed", "")], instructions={"p": 12}),
            "p: the verifier goes through 12 instructions, 10 before",
        ),
    ],
)
def test_each_fault_of_a_run_is_told(run: Run, fault: str) -> None:
    assert list(matrix.faults(run, {"p": 10})) == [fault]


def test_a_run_in_order_has_no_fault() -> None:
    assert not list(matrix.faults(Run(0, tests=[Told("a", "passed", "")], instructions={"p": 11}), {"p": 10}))
