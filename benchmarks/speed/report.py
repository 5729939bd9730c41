"""What was measured, as a table of Markdown and as a chart."""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from systems import SYSTEMS

sys.path.insert(0, str(Path(__file__).parents[2]))
from docs.svg_chart import Picture

MOST_WORSE = 0.15
"""Than what was recorded, before it is worth a warning."""
MOST_OTHERS = 0.05
"""Of the machine, for a run that counts."""


@dataclass
class Run:
    """What was seen of one run of one system; the times are seconds, the memory MiB."""

    system: str
    events: int
    seconds: float
    """From the first REST call to the last change of a document."""
    started: float
    """From the start of its process to the first REST call."""
    cpu: float
    """Of processors, in ``seconds``."""
    peak: float
    """Resident, all its processes together."""
    calls: int
    """Of the REST service."""
    wrong: int
    """Documents that are missing, too many or not as they must be."""
    documents: int
    """That there must be."""
    others: float
    """Share of the machine that something else used."""

    @property
    def rate(self) -> float:
        return self.events / self.seconds if self.seconds else 0.0

    @property
    def void(self) -> bool:
        return self.others > MOST_OTHERS


def by_system(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Those that count, of each system in the order in which they ran; void ones if there are no others."""
    found: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.system].append(run)
    return {name: [r for r in some if not r.void] or some for name, some in found.items()}


def table(runs: Sequence[Run]) -> str:
    """Medians of each system's runs; of the wrong documents the most.

    >>> run = Run("floor", 2_000_000, 10.0, 0.5, 9.0, 80.0, 20, 0, 960, 0.01)
    >>> print(table([run]))
    | system | events/s | of the floor | CPU s per million | of the floor | peak MiB | REST calls | wrong documents |
    | --- | --- | --- | --- | --- | --- | --- | --- |
    | bare loop: confluent-kafka, orjson, dicts | 200,000 | 1.00 | 4.5 | 1.0 | 80 | 20 | 0 |
    """
    rows = [
        "| system | events/s | of the floor | CPU s per million | of the floor | peak MiB | REST calls | wrong documents |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    systems = by_system(runs)
    floor = systems.get("floor")
    for name, some in systems.items():
        rate = median(r.rate for r in some)
        cpu = median(r.cpu / r.events * 1e6 for r in some)
        of_rate, of_cpu = "", ""
        if floor and rate:
            of_rate = f"{rate / median(r.rate for r in floor):.2f}"
            of_cpu = f"{cpu / median(r.cpu / r.events * 1e6 for r in floor):.1f}"
        bad = max(r.wrong for r in some)
        cells = (
            SYSTEMS[name].about + (" (void: the machine was busy)" if some[0].void else ""),
            f"{rate:,.0f}" if rate else "none",
            of_rate,
            f"{cpu:.1f}",
            of_cpu,
            f"{max(r.peak for r in some):,.0f}",
            f"{median(r.calls for r in some):,.0f}",
            f"{bad:,} of {some[0].documents:,}" if bad else "0",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def ratios(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Of each system to the floor, which must be among them: events a second, and processors for an event.

    >>> from dataclasses import replace
    >>> floor = Run("floor", 1_000_000, 5.0, 0.5, 5.0, 80.0, 20, 0, 960, 0.01)
    >>> ratios([floor, replace(floor, system="flink", seconds=10.0, cpu=11.0)])
    {'flink': {'rate': 0.5, 'cpu': 2.2}}
    """
    rate, cpu = {}, {}
    for name, some in by_system(runs).items():
        rate[name] = median(r.rate for r in some)
        cpu[name] = median(r.cpu / r.events for r in some)
    return {
        name: {
            "rate": round(rate[name] / rate["floor"], 3),
            "cpu": round(cpu[name] / cpu["floor"], 3),
        }
        for name in rate
        if name != "floor"
    }


def worse(now: dict[str, dict[str, float]], then: dict[str, dict[str, float]]) -> list[str]:
    """What to warn of: ratios that are worse than those recorded by more than ``MOST_WORSE``.

    >>> worse({"flink": {"rate": 0.4, "cpu": 2.2}}, {"flink": {"rate": 0.5, "cpu": 2.0}})
    ['flink: rate is 0.4 of the floor, and was 0.5']
    """
    found = []
    for name, values in now.items():
        for what, value in values.items():
            was = then.get(name, {}).get(what)
            fell = was is not None and (value / was if what == "cpu" else was / value) - 1
            if fell and fell > MOST_WORSE:
                found.append(f"{name}: {what} is {value} of the floor, and was {was}")
    return found


def chart(runs: Sequence[Run]) -> str:
    """An SVG with a bar of each system's events a second, the fastest first."""
    rates = {name: median(r.rate for r in some) for name, some in by_system(runs).items()}
    names = sorted(rates, key=lambda name: -rates[name])
    most = max(rates.values()) * 1.02
    told = "; ".join(f"{SYSTEMS[name].about} {rates[name]:,.0f}" for name in names)
    size = (900, 140 + 52 * len(names))
    picture = Picture("Events a second", told, size, (0, most), (len(names), 0))
    for place, name in enumerate(names):
        bad = max(r.wrong for r in by_system(runs)[name])
        style = "f1" if bad else "f0"
        picture.band((0, place + 0.45), (rates[name], place + 0.85), style)
        label = f"{SYSTEMS[name].about}: {rates[name]:,.0f}"
        picture.text((0, place + 0.36), label)
        if bad:
            picture.text((most, place + 0.36), f"{bad:,} documents wrong", "badtext", "end")
    return picture.svg()
