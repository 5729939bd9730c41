"""Each command of the documentation is run: here what needs no real server, in test_stack_docs.py the rest."""

import json
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto.server import ThreadedMotoServer

from tests.docs_pages import ROOT, Line, parts
from tests.docs_scenarios import (
    ELASTICSEARCH,
    NOT_RUN,
    SQLITE,
    Page,
    Step,
    World,
    environment,
    job,
    not_run,
)
from tests.kibana_server import kibana
from tests.test_stack_docs import STACK
from tests.warm_velocity import warm_velocity
from velocity.pipelines.directory import directory
from velocity.pipelines.simulator import Scenario
from velocity.runners.embedded import DirectoryService, EmbeddedKafka
from velocity.runners.produce import produce

PROGRAMS = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:(?:\.venv/bin/)?velocity|make|python|pip|aws|export|echo|\(cd) .*"
)


# -- the pages ------------------------------------------------------------------------------------


def events(world: World, start: datetime = datetime(2026, 1, 4, 23, 59, tzinfo=UTC)) -> None:
    scenario = Scenario(seed=1, events=400, rate=2, start=start, domains=("pharmacy_delivery",))
    produce(scenario, world.environ["KAFKA"])


def archived(world: World) -> None:
    """Events of two days, and of the last hour, which a run has archived."""
    (world.folder / "job.yaml").write_text(job("orders", sink=SQLITE))
    events(world)
    events(world, datetime.now(UTC) - timedelta(hours=1))
    world.run("velocity run job.yaml --until now")


def where_files_are(world: World, told: str) -> None:
    """The path that the page tells, with what stands for something left open."""
    pattern = re.escape(told.strip()).replace("PATH", re.escape(world.environ["ARCHIVE"]))
    for word, meant in {"JOB": r"orders", "TOPIC": "pharmacy.events", "PARTITION": r"\d+",
                        "FIRST": r"\d+", "LAST": r"\d+", r"2026\-01\-05": "2026-01-05",
                        "07": r"\d\d"}.items():  # fmt: skip
        pattern = pattern.replace(word, meant)
    files = [str(path) for path in Path(world.environ["ARCHIVE"]).rglob("*.parquet")]
    assert any(re.fullmatch(pattern, path) for path in files), (pattern, files[:3])


def all_jobs(world: World) -> None:
    (world.folder / "pipelines").symlink_to(ROOT / "pipelines")
    (world.folder / "job.yaml").write_text(job("orders", sink=ELASTICSEARCH))


def files(*names: str) -> Callable[[World], None]:
    def there(world: World) -> None:
        for name in names:
            assert (world.folder / name).stat().st_size > 100

    return there


def docs_folder(world: World) -> None:
    (world.folder / "docs").mkdir()


def as_committed(name: str) -> Callable[[World], None]:
    def same(world: World) -> None:
        assert (world.folder / name).read_text("utf-8") == (ROOT / name).read_text("utf-8")

    return same


def commands(page: str) -> Iterator[Line]:
    return (part for part in parts(ROOT / page) if isinstance(part, Line))


def jobs_page(world: World) -> None:
    docs_folder(world)
    events(world)


def generated(page: str) -> dict[str, Step]:
    """The command that a generated page begins with, which makes it as it is committed."""
    line = next(commands(page))
    return {line.command: Step(after=as_committed(page))}


def letters(world: World) -> None:
    """A service that failed for a while: its dead letters."""
    (world.folder / "job.yaml").write_text(job("orders", sink=SQLITE))
    events(world)
    world.run("PROVIDERS=http://127.0.0.1:1 velocity run job.yaml --until now")


def an_id(world: World) -> dict[str, str]:
    [letter, *_] = json.loads(world.run("velocity dead-letters list job.yaml --json"))["letters"]
    return {"pharmacy.events/3/1207#1": letter["id"]}


def certificate(world: World) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ingest.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    (world.folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (world.folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    ssl.create_default_context().load_verify_locations(world.folder / "cert.pem")


def drawing(world: World) -> None:
    (world.folder / "docs").mkdir()
    for name in ("draw_watermarks.py", "svg_chart.py"):
        (world.folder / "docs" / name).write_bytes((ROOT / "docs" / name).read_bytes())


SNS, SQS = (line.command for line in commands("docs/ingest.md") if " ingest " in line.command)
BOARD = Step(shows=r"Board: http\S+", ends=False, serves="/", more="--port 0")

EMBEDDED = [
    Page(
        "docs/archive.md",
        {
            "velocity archive list job.yaml": Step("2026-01-04"),
            "velocity archive compact job.yaml --to 2026-01-05T00:00:00Z": Step(r"files"),
            "velocity archive expire job.yaml --older-than 90d": Step(r"files .* removed"),
            "velocity archive ddl job.yaml --athena": Step("CREATE EXTERNAL TABLE"),
            "velocity archive ddl job.yaml --redshift --manifest manifest.json": Step(
                "COPY", after=files("manifest.json")
            ),
        },
        archived,
        fences={"PATH/": where_files_are},
    ),
    Page("docs/cli.md", generated("docs/cli.md"), docs_folder),
    Page(
        "docs/dashboards.md",
        {
            "velocity dashboards kibana job.yaml --out job.ndjson": Step(after=files("job.ndjson")),
            "velocity dashboards grafana job.yaml --out job.json": Step(after=files("job.json")),
            "velocity dashboards grafana pipelines/*.yaml --all --out grafana": Step(
                after=files("grafana/velocity.json", "grafana/velocity-insurance.json")
            ),
            "velocity dashboards operations monitoring --delay-target 2m": Step(
                after=files(
                    "monitoring/velocity-operations.json", "monitoring/velocity-alerts.yaml"
                )
            ),
        },
        all_jobs,
    ),
    Page("docs/data-dictionary.md", generated("docs/data-dictionary.md"), docs_folder),
    Page(
        "docs/dead-letters.md",
        {
            "velocity dead-letters stats job.yaml": Step("service_failed"),
            "velocity dead-letters list job.yaml --cause service_failed"
            " --since 2026-01-05T00:00:00Z": Step(r"pharmacy\.events/\d+/\d+#1"),
            "velocity dead-letters show job.yaml 'pharmacy.events/3/1207#1'": Step(
                "service_failed", instead=an_id
            ),
            "velocity dead-letters replay job.yaml --cause service_failed": Step("replayed"),
        },
        letters,
    ),
    Page(
        "docs/ingest.md",
        {
            SNS: Step(
                r"listening on https\S+",
                ends=False,
                serves="/health",
                instead=lambda _: {"0.0.0.0:8443": "127.0.0.1:0"},
            ),
            SQS: Step("emptying http", ends=False),
        },
        certificate,
        sections=("HTTPS subscriber", "SQS consumer"),
    ),
    Page(
        "docs/jobs.md",
        {
            **generated("docs/jobs.md"),
            "velocity schema > docs/job.schema.json": Step(
                after=as_committed("docs/job.schema.json")
            ),
            "velocity validate deliveries.yaml": Step("deliveries.yaml: OK"),
            "velocity plan deliveries.yaml": Step("orders_by_city"),
        },
        jobs_page,
    ),
    Page("docs/metrics.md", generated("docs/metrics.md"), docs_folder),
    Page(
        "docs/tutorial.md",
        {
            "velocity board orders.yaml": BOARD,
            **{
                line.command: Step(more="--workers 1")
                for line in commands("docs/tutorial.md")
                if line.command.startswith("velocity replay ")
            },
        },
        sections=(
            "2. A job",
            "3. Run it",
            "4. What could not be read",
            "5. Run it again",
            "6. Look at it",
        ),
    ),
    Page(
        "docs/watermarks.md",
        {
            "python -m docs.draw_watermarks": Step(
                after=lambda world: [
                    as_committed(f"docs/{name}.svg")(world)
                    for name in ("watermarks", "watermarks-panes")
                ]
            )
        },
        drawing,
    ),
]


# -- run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def velocity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm_velocity(tmp_path_factory.mktemp("warm") / "bin") as folder:
        yield folder


@pytest.mark.embedded
@pytest.mark.filterwarnings("ignore:Unverified HTTPS")
@pytest.mark.parametrize("page", EMBEDDED, ids=str)
def test_what_a_page_runs_runs_and_prints_what_it_says(
    page: Page, velocity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line ``#> text`` after a command is a part of what it prints."""
    with ExitStack() as servers:
        kafka = servers.enter_context(EmbeddedKafka()).bootstrap_servers
        service = servers.enter_context(DirectoryService(directory(1).tables())).url
        world = World(
            tmp_path, environment(velocity) | {"ARCHIVE": str(tmp_path / "archive")},
            {"127.0.0.1:9092": kafka, "kafka:9092": kafka, "http://127.0.0.1:8080": service},
        )  # fmt: skip
        if page.name != "docs/tutorial.md":  # which needs no Kafka before its last section
            world.environ |= {"KAFKA": kafka, "PROVIDERS": service}
        if page.name == "docs/dashboards.md":
            world.named["https://kibana:5601"] = servers.enter_context(kibana()).url
        if page.name == "docs/ingest.md":
            moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            moto.start()
            servers.callback(moto.stop)
            host, port = moto.get_host_and_port()
            world.environ |= AWS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
            for name in (*AWS, "AWS_ENDPOINT_URL"):
                monkeypatch.setenv(name, world.environ[name])
            url = "https://sqs.ap-southeast-1.amazonaws.com/123456789012/pharmacy"
            world.named[url] = boto3.client("sqs").create_queue(QueueName="pharmacy")["QueueUrl"]
        world.play(page)


AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "ap-southeast-1",
}


# -- the laws -------------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES = [line for page in PAGES for line in parts(page) if isinstance(line, Line)]
ALL = [*EMBEDDED, *STACK]


def test_what_is_indented_or_of_a_shell_is_a_command() -> None:
    assert [f"{line}: {line.text}" for line in LINES if not PROGRAMS.fullmatch(line.text)] == []


def test_every_command_is_run_by_one_scenario_or_is_listed_with_a_reason() -> None:
    by_scenarios = [str(line) for page in ALL for line in page.lines()]
    assert len(by_scenarios) == len(set(by_scenarios)) > 70
    listed = {str(line) for line in LINES if not_run(line)}
    assert {str(line) for line in LINES} == {*by_scenarios, *listed}


def test_what_is_listed_or_expected_is_still_in_the_pages() -> None:
    rules = {not_run(line) for line in LINES}
    assert [rule for rule in NOT_RUN if rule not in rules] == []
    for page in ALL:
        commands = {line.command for line in page.lines()}
        assert [step for step in page.steps if step not in commands] == [], page
        headings = {part.section for part in parts(page.path)}
        assert {*page.sections, *page.again} <= headings, page


def test_what_is_run_elsewhere_is_run_there() -> None:
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    for target in ("make demo", "make test", "make test-chaos"):
        assert re.search(rf"^{target}\b", ci, re.MULTILINE)
    for name, option in {
        "test_stack_jobs.py": '"prism"',
        "test_stack_flink_local.py": '"local"',
        "test_stack_flink_job.py": '["--setup_file", "--extra_package"]',
    }.items():
        assert option in (ROOT / "tests" / name).read_text("utf-8"), name
        assert any(name in reason for reason in NOT_RUN.values())
