"""Section `pipeline`: CPU time of the whole agent for one event, from the ring through the evaluator to gRPC."""

from collections.abc import Sequence
from statistics import median

from bench import producer
from bench.agent import AgentUnderTest
from bench.figures import Figures
from bench.timing import Cpu

GOAL_EVENTS_A_SECOND = 300_000
ROLES = ("sensor", "evaluator", "courier", "enricher", "monitor")
COLUMNS = ("process", "user µs/event", "system µs/event", "CPU µs/event", "events/s of one core")


def measure(*, quick: bool) -> Figures:
    """Feeds the real agent and counts what a real subscriber gets."""
    rounds, events = (3, 200_000) if quick else (5, 800_000)
    with AgentUnderTest() as agent:
        records = producer.capture(agent)
        with producer.subscriber(agent) as counts, producer.Producer(agent.ring_id(), records) as source:
            producer.pump(source, counts, 20 * producer.TEMPLATES)
            taken = [one_round(agent, source, counts, events) for _ in range(rounds)]
            lost = counts.read()[3]
        rules = agent.status().release_rules
    size = sum(map(len, records)) / len(records)
    notes = [
        (
            f"{rounds} rounds of {events} events, {size:.0f} bytes on average, captured on this host; "
            f"{rules} rules; medians"
        ),
        f"every written event was received; one in {producer.TEMPLATES} is a detection, and every one was received",
        f"lost by the agent's own count: {lost}; the subscriber's and the producer's CPU time are not in it",
    ]
    return Figures("pipeline: ring, evaluator, gRPC subscriber", COLUMNS, rows(taken), notes)


def one_round(agent: AgentUnderTest, source: producer.Producer, counts: producer.Counts, events: int) -> dict[str, Cpu]:
    """CPU seconds of each process for one event."""
    before = agent.cpu()
    written, _ = producer.pump(source, counts, events)
    after = agent.cpu()
    spent = {role: after[role] - before[role] for role in after}
    return {role: Cpu(cpu.user / written, cpu.system / written) for role, cpu in spent.items()}


def rows(taken: Sequence[dict[str, Cpu]]) -> list[tuple[str | float, ...]]:
    """One for each process, one for all, one for the goal."""
    found = [_row(role, [each.get(role, Cpu()) for each in taken]) for role in ROLES]
    found.append(_row("all", [sum(each.values(), Cpu()) for each in taken]))
    goal = 1e6 / GOAL_EVENTS_A_SECOND
    return [*found, ("goal", "", "", f"at most {goal:.3g}", f"at least {GOAL_EVENTS_A_SECOND:,}".replace(",", " "))]


def _row(name: str, cpus: Sequence[Cpu]) -> tuple[str | float, ...]:
    user, system, both = (1e6 * median(getattr(cpu, part) for cpu in cpus) for part in ("user", "system", "seconds"))
    return name, user, system, both, 1e6 / both if name == "all" else ""
