"""Each command of the documentation that needs real servers is run: all of them on one stack, page by page."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs_pages import ROOT
from tests.docs_scenarios import ELASTICSEARCH, SQLITE, Page, Step, World, environment, job
from tests.warm_velocity import warm_velocity
from velocity.io.elastic_connection import Connection
from velocity.pipelines.directory import directory
from velocity.pipelines.simulator import Kind, Scenario, simulate
from velocity.runners.embedded import DirectoryService
from velocity.runners.flink_rest import Flink
from velocity.runners.produce import produce
from velocity.runners.stack_state import read_state

pytestmark = pytest.mark.stack

MASTER = "--flink-master flink.internal:8081"
SIMULATED = Scenario(seed=1, events=400, rate=2, domains=("pharmacy_delivery",))


# -- the pages ------------------------------------------------------------------------------------


def addresses(world: World) -> None:
    """What is up, where pages have the usual addresses."""
    state = read_state(Path(world.environ["VELOCITY_STATE"]))
    for name, usual, variable in (
        ("kafka", "127.0.0.1:9092", "KAFKA"),
        ("elasticsearch", "http://127.0.0.1:9200", "ELASTICSEARCH"),
        ("flink", "flink.internal:8081", "FLINK"),
        ("workers", "127.0.0.1:50000", "WORKERS"),
    ):
        if address := state.address(name):
            world.environ[variable] = address
            # Its option takes HOST:PORT.
            world.named[usual] = address.removeprefix("http://") if name == "flink" else address


def events(world: World) -> None:
    """Simulated ones, once for all pages."""
    mark = Path(world.environ["VELOCITY_STATE"]) / "events"
    if not mark.exists():
        produce(SIMULATED, world.environ["KAFKA"])
        mark.touch()


def with_job(name: str) -> Any:
    """A ``job.yaml`` that has run over the events, for what reads its archive and its documents."""

    def begin(world: World) -> None:
        addresses(world)
        events(world)
        (world.folder / "job.yaml").write_text(job(name, sink=ELASTICSEARCH))
        world.run("velocity run job.yaml --until now")
        world.told.clear()

    return begin


def flink(world: World) -> Flink:
    return Flink(world.environ["FLINK"])


def names(world: World) -> list[str]:
    return sorted(job.name for job in flink(world).jobs() if not job.ended)


def savepoint(world: World) -> dict[str, str]:
    """The one that the last stop has told."""
    found = re.findall(r"^savepoint: (\S+)", "\n".join(world.told), re.MULTILINE)
    return {"s3://flink/savepoints/savepoint-1": found[-1]}


def named(beginning: str) -> Any:
    """For NAME, the job that runs and whose name begins so."""
    return lambda world: {"NAME": next(n for n in names(world) if n.startswith(beginning))}


def no_such_field(world: World, told: str) -> None:
    """An index whose field has another type is told of as the page says."""
    with Connection((world.environ["ELASTICSEARCH"],)).open() as client:
        mappings = {"properties": {"values": {"properties": {"total": {"type": "text"}}}}}
        client.indices.create(index="elasticsearch-2025.01", mappings=mappings)
        printed = world.run("velocity setup job.yaml", code=1)
        client.indices.delete(index="elasticsearch-2025.01")
    wanted = re.escape(told.strip()).replace(r"orders\-2026\.01", r"elasticsearch\-2025\.01")
    assert re.search(wanted, printed), printed


def an_event(world: World) -> dict[str, str]:
    first = next(message for message in simulate(SIMULATED) if message.kind is Kind.NORMAL)
    return {"EVT-17": json.loads(first.value)["event_id"]}


def domain(world: World) -> None:
    """The job of a domain that was added."""
    with_job("howto")(world)
    (world.folder / "domain.yaml").write_text(job("domain", sink=ELASTICSEARCH))


def run_into_files(world: World) -> None:
    addresses(world)
    events(world)
    (world.folder / "pipelines").symlink_to(ROOT / "pipelines")
    (world.folder / "job.yaml").write_text(job("board", sink=SQLITE))
    world.run("velocity run job.yaml --until now --sqlite documents.db --dead-letters dead-letters")


def checkout(world: World) -> None:
    """What a checkout has of the package."""
    for name in ("io", "transforms", "pipelines", "runners"):
        shutil.copytree(ROOT / name, world.folder / name)
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, world.folder)


def handler(world: World) -> None:
    """What the function is uploaded with is all that its handler needs."""
    world.run(
        'cd build && python -IS -c \'import sys; sys.path.insert(0, ".");'
        " from velocity.io.sns_lambda import handler'"
    )


VIEW = Step("RUNNING", ends=False, code=130)
ONE = "--parallelism 1"
"""Several jobs have the stack's four slots."""
MOVED = {
    "velocity alias swap job.yaml corrected-": Step(r"\+ corrected-"),
    "velocity alias rollback job.yaml corrected-": Step(r"2026\.01"),
}
JANUARY = "velocity replay job.yaml --from 2026-01-01T00:00:00Z --to 2026-02-01T00:00:00Z"
IN_JAKARTA = (
    "velocity replay job.yaml --from 2026-01-01T00:00:00+07:00 --to 2026-02-01T00:00:00+07:00"
)
REPLAYED = Step(r"documents", more="--workers 1 --part all")
UP = Step(after=addresses)
BOARD = Step(r"Board: http\S+", ends=False, serves="/", more="--port 0")

# What a page leaves running is what a later one stops.
STACK = [
    Page(
        "docs/tutorial.md",
        {
            "velocity stack up kafka": UP,
            "velocity run orders.yaml --until now": Step(r"documents written\W+5"),
        },
        sections=("7. On a real Kafka",),
    ),
    Page("docs/alternatives.md", {"velocity stack up elasticsearch": UP}),
    Page("docs/performance.md", {"velocity stack up kafka flink": UP}),
    Page(
        "docs/operations.md",
        {
            "velocity jobs --watch": Step("No job runs", ends=False, code=130),
            "velocity run job.yaml --runner flink": VIEW._replace(more=ONE),
            "velocity trace EVT-17 --job job.yaml --since 2026-01-05T00:00:00Z": Step(
                "pharmacy.events", instead=an_event
            ),
        },
        with_job("operations"),
    ),
    Page(
        "docs/how-to.md",
        {
            "velocity validate job.yaml": Step("job.yaml: OK"),
            "velocity plan job.yaml": Step("orders_by_city"),
            f"velocity jobs --watch {MASTER}": Step("orders", ends=False, code=130),
            f"velocity stop orders {MASTER}": Step("savepoint: "),
            f"velocity run job.yaml --runner flink --name orders {MASTER} --worker-pool 127.0.0.1:50000"
            " --from-savepoint s3://flink/savepoints/savepoint-1": VIEW._replace(instead=savepoint),
            f"velocity run job.yaml --runner flink --name orders {MASTER} --worker-pool 127.0.0.1:50000"
            " --generation 1": VIEW,
            f"{IN_JAKARTA} --dry-run": REPLAYED,
            f"{IN_JAKARTA} --compare": REPLAYED,
            IN_JAKARTA: REPLAYED,
            f"{JANUARY} --generation 1": REPLAYED,
            f"{JANUARY} --into corrected-": REPLAYED,
            **MOVED,
            "velocity board domain.yaml --sqlite documents.db --dead-letters dead-letters": BOARD,
        },
        domain,
        again=("Rotate credentials",),  # of a job on Flink each start takes long
    ),
    Page(
        "docs/runners.md",
        {
            "velocity run job.yaml --runner flink --detach": Step(more=ONE),
            "velocity jobs": Step("runners-"),
            "velocity stop NAME": Step("savepoint: ", instead=named("runners-")),
            "velocity stop NAME --cancel": Step("cancelled", instead=named("operations-")),
            "velocity stop NAME --drain": Step("drained", instead=named("orders")),
        },
        with_job("runners"),
    ),
    Page(
        "docs/elasticsearch.md",
        {f"{JANUARY} --into corrected-": REPLAYED, **MOVED},
        with_job("elasticsearch"),
        fences={"velocity setup: ": no_such_field},
    ),
    Page(
        "docs/replay.md",
        {
            IN_JAKARTA: REPLAYED,
            f"{JANUARY} --dry-run": REPLAYED,
            f"{JANUARY} --compare": REPLAYED,
            f"{JANUARY} --into corrected-": REPLAYED,
            **MOVED,
        },
        with_job("orders"),
    ),
    Page(
        "docs/board.md",
        {
            "velocity board pipelines/*.yaml": BOARD,
            "velocity board job.yaml --sqlite documents.db --dead-letters dead-letters": BOARD,
        },
        run_into_files,
    ),
    Page(
        "docs/ingest.md",
        {
            "(cd build && python -m zipfile -c ../function.zip velocity confluent_kafka"
            " confluent_kafka.libs)": Step(after=handler)
        },
        checkout,
        sections=("Lambda function",),
    ),
    Page(
        "README.md",
        {
            ".venv/bin/velocity demo --all": Step("equal", more="--events 500"),
            "velocity validate deliveries.yaml": Step("deliveries.yaml: OK"),
            "velocity plan deliveries.yaml": Step("orders_by_city"),
            "velocity stack up": UP,
            "velocity simulate --bootstrap-servers $KAFKA --events 100000": Step(
                more="--events 2000"
            ),
            "velocity run deliveries.yaml --runner flink --name deliveries": VIEW,
            "velocity stop deliveries": Step("go on: "),
            "python providers.py": Step("export PROVIDERS=http", ends=False),
        },
        addresses,
    ),
]


# -- run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A stack's own, of whose servers nothing is left in the end."""
    temporary = tmp_path_factory.mktemp("temporary")
    with (
        warm_velocity(tmp_path_factory.mktemp("warm") / "bin") as velocity,
        DirectoryService(directory(1).tables()) as service,
    ):
        found = environment(velocity) | {
            "VELOCITY_STATE": str(temporary / "state"),
            "TMPDIR": str(temporary),
            "PROVIDERS": service.url,
            "PATIENTS": service.url,
        }
        try:
            yield found
        finally:
            World(temporary, found).run("velocity stack down")


@pytest.mark.parametrize("page", STACK, ids=str)
def test_what_a_page_runs_runs_and_prints_what_it_says(
    page: Page, environ: dict[str, str], tmp_path: Path
) -> None:
    world = World(
        tmp_path,
        {**environ, "ARCHIVE": str(tmp_path / "archive")},
        {"http://127.0.0.1:8080": environ["PROVIDERS"], ".venv/bin/velocity": "velocity"},
    )
    world.play(page)
