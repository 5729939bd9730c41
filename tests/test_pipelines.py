"""Laws of the jobs in ``pipelines/``: each is right, says why, and gives what a plain loop gives."""

import io
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from velocity.pipelines import jobfile
from velocity.pipelines.disturbances import Outage, Peak
from velocity.pipelines.domains import COMMON, DOMAINS
from velocity.runners.demo import demo

FOLDER = Path(__file__).parent.parent / "pipelines"
JOBS = sorted(FOLDER.glob("*.yaml"))


def each_job() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", JOBS, ids=[path.stem for path in JOBS])


def each_counting_job() -> pytest.MarkDecorator:
    counting = [path for path in JOBS if jobfile.load(path).metrics]
    return pytest.mark.parametrize("path", counting, ids=[path.stem for path in counting])


def test_every_domain_has_its_job() -> None:
    assert set(DOMAINS) <= {path.stem for path in JOBS}


@each_job()
def test_a_job_is_without_a_problem_and_named_as_its_file(path: Path) -> None:
    job, source = jobfile.read(path)
    environment = dict.fromkeys(jobfile.variables(job), "http://127.0.0.1:1")
    environment["KAFKA"] = "127.0.0.1:1"
    assert list(jobfile.check(job, environment, source)) == []
    assert job.job == path.stem


@each_job()
def test_a_domains_job_reads_fields_of_the_data_dictionary(path: Path) -> None:
    job = jobfile.load(path)
    read = [domain for domain in DOMAINS.values() if domain.topic in job.source.kafka.topics]
    known = {field.name for domain in read for field in (*COMMON, *domain.fields)}
    types = {field.name: field.type for domain in read for field in (*COMMON, *domain.fields)}
    assert set(job.fields) <= known
    assert {name: spec.type for name, spec in job.fields.items()} == {
        name: types[name] for name in job.fields
    }


@each_job()
def test_windows_and_lateness_are_given_a_reason(path: Path) -> None:
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    for line in lines:
        if line.startswith("window:"):
            assert "  # " in line, line


@pytest.mark.embedded
def test_envelopes_of_sns_a_peak_and_an_outage_change_no_document(tmp_path: Path) -> None:
    text = (FOLDER / "pharmacy_delivery.yaml").read_text("utf-8")
    job = tmp_path / "pharmacy_delivery.yaml"
    # What the service held back comes an hour late, and is waited for.
    text = text.replace("disorder: 30s", "disorder: 2h")
    job.write_text(text.replace("format: json", "format: sns"))
    out, hour = io.StringIO(), timedelta(hours=1)
    code = demo(
        events=4_000,
        seed=3,
        folder=tmp_path / "demo",
        path=job,
        console=Console(file=out, width=200),
        rate=0.35,
        sns=True,
        peaks=(Peak(hour, hour / 4),),
        outages=(Outage("pharmacy_delivery", hour / 2, hour),),
    )
    assert code == 0, out.getvalue()


@each_counting_job()
@pytest.mark.embedded
def test_its_documents_equal_the_recomputation(path: Path, tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200)
    # Three hours and more, of little traffic: windows of an hour and sessions end within.
    code = demo(
        events=4_000, rate=0.35, seed=3, folder=tmp_path / "demo", path=path, console=console
    )
    assert code == 0, out.getvalue()
    for metric in jobfile.load(path).metrics:
        assert f"{metric.name}: 0 documents" not in out.getvalue()
