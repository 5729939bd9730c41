"""The Flink job server: built once from published jars with our own fix, or one that is given.

Beam's own ready job-server jar, where the user has one, is taken as it is. Ours is Beam 2.70's
with three classes replaced; ``java/job-server`` says why, and from which version on it may go.
"""

import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from velocity.runners.stack_errors import StackError
from velocity.runners.stack_java import installed_jdks, need_jdk, need_maven
from velocity.runners.stack_packages import (
    BEAM_VERSION,
    LOCK,
    Progress,
    Tools,
    copy_jars,
    digest,
    make_once,
    run_tool,
    verify,
)
from velocity.runners.stack_paths import JAVA_SOURCES, cache_folder

MAIN_CLASS: Final = "org.apache.beam.runners.flink.FlinkJobServerDriver"

SOURCE: Final = JAVA_SOURCES / "job-server"


def job_server_jar(
    given: Path | None = None,
    *,
    cache: Path | None = None,
    tools: Tools | None = None,
    progress: Progress = lambda message: None,
) -> Path:
    """The jar for Beam's ``--flink_job_server_jar``: the given one, else our own.

    Ours is built the first time (about a minute, 165 MB, needs Maven) and kept in the cache.
    Raises ``StackError`` for a given file that is no job server, ``MissingTool`` without Maven
    or a JDK 11 to 21, ``UnknownPackage`` for a jar that is not the one we know.
    """
    if given is not None:
        return check(given)
    cache = cache_folder() if cache is None else cache
    tools = tools or Tools(
        maven=need_maven,
        jdk=lambda: need_jdk(
            installed_jdks(), user="The Flink job server", oldest=11, newest=21, best=17
        ),
    )
    folder = cache / f"job-server-{BEAM_VERSION}-{source_digest()}"
    return make_once(folder, lambda made: _build(made, tools, progress)) / "job-server.jar"


def source_digest() -> str:
    """Changes with the pom, the lock file and every class of ours."""
    classes = sorted((SOURCE / "src" / "main").rglob("*.java"))
    return digest(SOURCE / "pom.xml", SOURCE / LOCK, *classes)


def check(jar: Path) -> Path:
    """The absolute path of a job server's jar; raises ``StackError`` if it is none."""
    try:
        with zipfile.ZipFile(jar) as content:
            found = MAIN_CLASS.replace(".", "/") + ".class" in content.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise StackError(f"{jar} cannot be read as a jar: {error}") from error
    if not found:
        raise StackError(
            f"{jar} is no Flink job server, as it lacks {MAIN_CLASS}: give the jar that Beam"
            " publishes as beam-runners-flink-1.19-job-server, or none."
        )
    return jar.absolute()


def _build(made: Path, tools: Tools, progress: Progress) -> None:
    progress(f"building the Flink job server of Beam {BEAM_VERSION} (165 MB)")
    with tempfile.TemporaryDirectory() as temporary:
        # Maven writes beside the pom, and ours may lie in a read-only folder.
        project = Path(temporary) / "job-server"
        shutil.copytree(SOURCE, project, ignore=shutil.ignore_patterns("target"))
        jars = Path(temporary) / "jars"
        copy_jars(project / "pom.xml", jars, tools)
        verify(jars, SOURCE / LOCK)
        maven(project, "package", "-Dmaven.test.skip=true", tools=tools)
        shutil.move(project / "target" / "job-server-1.jar", made / "job-server.jar")


def maven(project: Path, *arguments: str, tools: Tools) -> None:
    """Runs Maven in a copy of the job server's project."""
    run_tool(
        [tools.maven(), "--batch-mode", "--quiet", "--file", project / "pom.xml", *arguments],
        name="Maven",
        environ={**os.environ, "JAVA_HOME": str(tools.jdk().home)},
    )


if __name__ == "__main__":
    print(job_server_jar(progress=print))
