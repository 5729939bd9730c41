"""The job server runs with our fix in it, and loses nothing of a polling source on Flink."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from velocity.runners import jobserver
from velocity.runners.jobserver import MAIN_CLASS, check, job_server_jar, source_digest
from velocity.runners.stack_errors import StackError
from velocity.runners.stack_java import installed_jdks, need_jdk, need_maven
from velocity.runners.stack_packages import BEAM_VERSION, Tools


def tools() -> Tools:
    return Tools(
        need_maven,
        lambda: need_jdk(installed_jdks(), user="test", oldest=11, newest=21, best=17),
    )


def never() -> str:
    raise AssertionError("Maven was asked for")


def jar(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as content:
        for name in names:
            content.writestr(name, "")
    return path


def test_a_given_job_server_is_taken_without_building(tmp_path: Path) -> None:
    given = jar(tmp_path / "official.jar", MAIN_CLASS.replace(".", "/") + ".class")
    none = Tools(never, lambda: need_jdk([], user="test", oldest=11, best=17))
    assert job_server_jar(given, cache=tmp_path, tools=none) == given


def test_a_built_job_server_is_taken_from_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / f"job-server-{BEAM_VERSION}-{source_digest()}"
    folder.mkdir()
    (folder / "job-server.jar").touch()
    none = Tools(never, lambda: need_jdk([], user="test", oldest=11, best=17))
    assert job_server_jar(cache=tmp_path, tools=none) == folder / "job-server.jar"


def test_a_jar_that_is_no_job_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match=f"lacks {MAIN_CLASS}"):
        check(jar(tmp_path / "other.jar", "Other.class"))


@pytest.mark.parametrize("content", [None, b"not a jar"])
def test_a_file_that_is_no_jar_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "x.jar").write_bytes(content)
    with pytest.raises(StackError, match="cannot be read as a jar"):
        check(tmp_path / "x.jar")


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.stack
def test_our_classes_pass_their_own_tests(tmp_path: Path) -> None:
    project = tmp_path / "job-server"
    shutil.copytree(jobserver.SOURCE, project)
    jobserver.maven(project, "test", tools=tools())
    reports = list((project / "target" / "surefire-reports").glob("*.txt"))
    assert len(reports) == 4
    for report in reports:
        assert "Failures: 0, Errors: 0, Skipped: 0" in report.read_text()


@pytest.mark.stack
def test_the_job_service_starts_with_our_classes_in_the_jar(tmp_path: Path) -> None:
    built = job_server_jar()
    control = "org/apache/beam/runners/fnexecution/control/BundleCheckpointHandlers"
    factory = "org/apache/beam/runners/fnexecution/environment/ExternalEnvironmentFactory"
    functions = "org/apache/beam/runners/flink/translation/functions"
    with zipfile.ZipFile(built) as content:
        names = content.namelist()
    assert f"{control}$StateAndTimerBundleCheckpointHandler$Operator.class" in names
    assert names.count(f"{control}.class") == 1
    assert f"{factory}$Worker.class" in names
    assert names.count(f"{factory}.class") == 1
    assert f"{functions}/SubtaskWorkers.class" in names
    assert names.count(f"{functions}/FlinkExecutableStageContextFactory.class") == 1
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(tools().jdk().java), "-jar", str(built), "--flink-master", "[local]"]
    ports = ["--job-port", str(port), "--artifact-port", "0", "--expansion-port", "0"]
    server = subprocess.Popen([*command, *ports], stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(port), 60)
        assert server.poll() is None
    finally:
        server.terminate()
        server.wait()


POLLED = '''
import sys

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.timestamp import Duration


class ThreeOfTen(beam.transforms.core.RestrictionProvider):
    def initial_restriction(self, element):
        return OffsetRange(0, 30)

    def create_tracker(self, restriction):
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element, restriction):
        return restriction.size()

    def split(self, element, restriction):
        return [OffsetRange(start, start + 10) for start in (0, 10, 20)]


class Poll(beam.DoFn):
    """One number, then a pause of a fraction of a second."""

    @beam.DoFn.unbounded_per_element()
    def process(self, element, tracker=beam.DoFn.RestrictionParam(ThreeOfTen())):
        number = tracker.current_restriction().start
        if tracker.try_claim(number):
            yield number
            tracker.defer_remainder(Duration.of(0.1))


class Append(beam.DoFn):
    def __init__(self, path):
        self.path = path

    def process(self, number):
        with open(self.path, "a") as output:
            output.write(f"{number}\\n")


if __name__ == "__main__":
    with beam.Pipeline(options=PipelineOptions(sys.argv[2:])) as pipeline:
        numbers = pipeline | beam.Create(["one element"]) | beam.ParDo(Poll())
        numbers | beam.ParDo(Append(sys.argv[1]))
'''


@pytest.mark.stack
def test_no_restriction_of_a_polling_source_is_lost_on_flink(tmp_path: Path) -> None:
    (tmp_path / "polled.py").write_text(textwrap.dedent(POLLED))
    output = tmp_path / "numbers"
    options = [
        "--runner=FlinkRunner",
        "--flink_master=[local]",
        f"--flink_job_server_jar={job_server_jar()}",
        "--environment_type=LOOPBACK",
        "--streaming",
        "--parallelism=1",
    ]
    job = subprocess.Popen(
        [sys.executable, tmp_path / "polled.py", output, *options],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def numbers() -> list[int]:
        return [int(line) for line in output.read_text().split()] if output.exists() else []

    try:
        until(lambda: len(numbers()) >= 30, 120)
        assert sorted(numbers()) == list(range(30))
    finally:
        os.killpg(job.pid, signal.SIGTERM)  # its own job server too, which it would leave behind
        job.wait()
