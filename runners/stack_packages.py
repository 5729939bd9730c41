"""Fetches the servers' published packages into the cache, each file checked by its SHA-256.

Maven and pip fetch, as the user has set them up. A folder of the cache is complete or not there:
it is made under another name and renamed. Its name ends with a digest of all it was made from, so
a changed pom, lock file or source never finds an old folder.

After a change to a pom, its lock file is written anew by::

    python -m velocity.runners.stack_packages kafka

Read the difference before committing it: a version that did not change must not change its sum.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from velocity.runners.stack_errors import StackError, UnknownPackage
from velocity.runners.stack_java import Jdk, installed_jdks, need_jdk, need_maven
from velocity.runners.stack_paths import JAVA_SOURCES

LOCK: Final = "jars.sha256"
"""Name of a lock file: what ``sha256sum`` prints for each jar, and what ``sha256sum -c`` reads."""

Progress = Callable[[str], None]

KAFKA_VERSION: Final = "4.1.1"
ELASTICSEARCH_VERSIONS: Final = {9: "9.5.3", 8: "8.19.21"}
FLINK_VERSION: Final = "1.19.3"
BEAM_VERSION: Final = "2.70.0"
"""Of the job server; each version here is that of its pom or requirements file (a test says so)."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What fetches and compiles; asked for only where the cache lacks something."""

    maven: Callable[[], str]
    jdk: Callable[[], Jdk]


def sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each jar of a folder, by name."""
    found = {}
    for jar in sorted(folder.glob("*.jar")):
        with jar.open("rb") as content:
            found[jar.name] = hashlib.file_digest(content, "sha256").hexdigest()
    return found


def read_lock(lock: Path) -> dict[str, str]:
    """The sums in a lock file, by name."""
    entries = (line.split(maxsplit=1) for line in lock.read_text().splitlines() if line.strip())
    return {name: digest for digest, name in entries}


def verify(folder: Path, lock: Path) -> None:
    """Raises ``UnknownPackage`` unless the folder has exactly the jars that the lock file names."""
    expected, found = read_lock(lock), sums(folder)
    wrong = [
        f"{name}: {_fault(expected.get(name), found.get(name))}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        raise UnknownPackage(
            "These files are not the ones Velocity was tested with:\n  "
            + "\n  ".join(wrong)
            + f"\nThe sums are in {lock}. Remove the files from your Maven repository"
            " (~/.m2/repository unless configured) and try again; if they come back the same,"
            " ask who runs the repository that Maven is set to."
        )


def _fault(expected: str | None, found: str | None) -> str:
    if found is None:
        return "is missing"
    if expected is None:
        return "is unknown"
    return f"has SHA-256 {found}, not {expected}"


def digest(*files: Path) -> str:
    """Twelve hex digits that change with the content of any of the files."""
    total = hashlib.sha256()
    for file in files:
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:12]


def make_once(target: Path, make: Callable[[Path], None]) -> Path:
    """The folder ``target``; if it is not there, ``make`` fills it under another name first."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed with the file, and when we die
        if not target.exists():
            draft = target.with_name(f".making-{target.name}")
            shutil.rmtree(draft, ignore_errors=True)  # of one that was killed
            draft.mkdir()
            make(draft)
            draft.rename(target)
    return target


def run_tool(command: Sequence[str | Path], *, name: str, environ: Mapping[str, str]) -> None:
    """Runs Maven, pip or a compiler to its end; its output is shown only if it fails.

    It runs in a session of its own: an interrupted start ends it with all else it started.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environ,
        start_new_session=True,
        check=False,
    )
    if done.returncode != 0:
        end = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise StackError(f"{name} failed with code {done.returncode}:\n{end}")


def copy_jars(pom: Path, into: Path, tools: Tools) -> None:
    """Lets Maven copy the jars that a pom asks for, and those that they ask for."""
    run_tool(
        [
            tools.maven(),
            "--batch-mode",
            "--quiet",
            "--file",
            pom,
            "dependency:copy-dependencies",
            "-DincludeScope=runtime",
            f"-DoutputDirectory={into}",
        ],
        name="Maven",
        environ={**os.environ, "JAVA_HOME": str(tools.jdk().home)},
    )


def kafka(cache: Path, tools: Tools, progress: Progress) -> Path:
    """The folder of Kafka's jars."""
    source = JAVA_SOURCES / "kafka"

    def make(folder: Path) -> None:
        progress(f"fetching Kafka {KAFKA_VERSION} (44 MB)")
        copy_jars(source / "pom.xml", folder, tools)
        verify(folder, source / LOCK)

    key = digest(source / "pom.xml", source / LOCK)
    return make_once(cache / f"kafka-{KAFKA_VERSION}-{key}", make)


def elasticsearch(major: int, cache: Path, tools: Tools, progress: Progress) -> Path:
    """A folder of Elasticsearch's jars with our main class in ``lib/``, and ``modules/``."""
    source = JAVA_SOURCES / f"elasticsearch-{major}"
    classes = sorted([*(JAVA_SOURCES / "elasticsearch").glob("*.java"), *source.glob("*.java")])
    version = ELASTICSEARCH_VERSIONS[major]

    def make(folder: Path) -> None:
        progress(f"fetching Elasticsearch {version} (46 MB)")
        lib = folder / "lib"
        copy_jars(source / "pom.xml", lib, tools)
        verify(lib, source / LOCK)
        netty = folder / "modules" / "transport-netty4"
        netty.mkdir(parents=True)
        for pattern in ("netty-*.jar", "transport-netty4-*.jar"):
            for jar in lib.glob(pattern):
                jar.rename(netty / jar.name)
        (folder / "native").mkdir()
        progress("compiling the Elasticsearch node")
        _compile(classes, lib, folder, tools.jdk())

    key = digest(source / "pom.xml", source / LOCK, *classes)
    return make_once(cache / f"elasticsearch-{version}-{key}", make)


def _compile(classes: list[Path], lib: Path, folder: Path, jdk: Jdk) -> None:
    """The main class goes to the jars; a module's classes must be in its own folder alone."""
    rest = folder / "modules" / "velocity-rest"
    rest.mkdir()
    with tempfile.TemporaryDirectory() as output:
        run_tool(
            [jdk.javac, "-nowarn", "-proc:none", "-cp", f"{lib}/*", "-d", output, *classes],
            name="javac",
            environ=os.environ,
        )
        package = Path(output) / "velocity" / "elasticsearch"
        main = Path(output) / "main" / "velocity" / "elasticsearch"
        main.mkdir(parents=True)
        for name in ("Server.class", "Versioned.class"):
            shutil.move(package / name, main / name)
        for jar, root in (
            (lib / "velocity-server.jar", Path(output) / "main"),
            (rest / "velocity-rest.jar", Path(output)),
        ):
            run_tool(
                [jdk.jar, "--create", "--file", jar, "-C", root, "velocity"],
                name="jar",
                environ=os.environ,
            )


def flink(cache: Path, progress: Progress) -> Path:
    """The folder of Flink's jars, out of the Python package that ships them."""
    requirements = JAVA_SOURCES / "flink" / "requirements.txt"

    def make(folder: Path) -> None:
        progress(f"fetching Flink {FLINK_VERSION} (230 MB)")
        with tempfile.TemporaryDirectory(dir=folder) as download:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            run_tool(
                [*pip, "--require-hashes", "--requirement", requirements, "--dest", download],
                name="pip",
                environ=os.environ,
            )
            (archive,) = Path(download).glob("*.tar.gz")
            unpack(archive, folder)

    taken = hashlib.sha256("\n".join(TAKEN).encode()).hexdigest()[:4]
    return make_once(cache / f"flink-{FLINK_VERSION}-{digest(requirements)}-{taken}", make)


TAKEN: Final = (
    "lib/flink-dist-*.jar",
    "lib/log4j-*.jar",
    "plugins/metrics-prometheus/*.jar",
)
"""What is used of Flink's archive."""


def unpack(archive: Path, folder: Path) -> None:
    """Takes the runtime, its logging and its reporter for Prometheus out of Flink's archive.

    Beam uses nothing of its SQL.
    """
    with tarfile.open(archive) as content:
        for member in content:
            name = Path(member.name)
            if any(name.match(pattern) for pattern in TAKEN):
                member.name = name.name
                content.extract(member, folder, filter="data")
    if not any(folder.glob("flink-dist-*.jar")):
        raise UnknownPackage(f"{archive.name} holds no flink-dist: it is not Flink's own package.")


def has_pip() -> bool:
    """Whether this interpreter can run pip."""
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "--version"], capture_output=True, check=False
    )
    return asked.returncode == 0


def lock(name: str) -> Path:
    """Writes the lock file of a pom anew from what Maven serves now."""
    source = JAVA_SOURCES / name
    tools = Tools(
        maven=need_maven,
        jdk=lambda: need_jdk(installed_jdks(), user="Maven", oldest=17, best=17),
    )
    with tempfile.TemporaryDirectory() as folder:
        copy_jars(source / "pom.xml", Path(folder), tools)
        written = "".join(f"{digest}  {jar}\n" for jar, digest in sums(Path(folder)).items())
    (source / LOCK).write_text(written)
    return source / LOCK


if __name__ == "__main__":
    for package in sys.argv[1:]:
        print(lock(package))
