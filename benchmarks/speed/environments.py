"""Makes the environments of the systems that Velocity is compared with, each once, in the cache.

python benchmarks/speed/environments.py bytewax_flow quix_app
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from velocity.runners.stack_java import Jdk, installed_jdks, need_jdk, need_maven
from velocity.runners.stack_packages import LOCK, Tools, copy_jars, digest, verify
from velocity.runners.stack_paths import cache_folder

SYSTEMS = Path(__file__).parent / "systems"
PYFLINK = "pyflink_job"
PYFLINK_JARS = SYSTEMS / "pyflink_jars"
MARKER = "made"
"""Written last. A virtual environment cannot be renamed, so a half-made one has its final name."""


def environment(name: str) -> Path:
    """The Python that runs ``systems/NAME.py``: this one, if the system has no requirements."""
    requirements = SYSTEMS / f"{name}.txt"
    if not requirements.exists():
        return Path(sys.executable)
    made_from = [requirements]
    if name == PYFLINK:
        made_from += [PYFLINK_JARS / "pom.xml", PYFLINK_JARS / LOCK]
    folder = cache_folder() / "speed" / f"{name}-{digest(*made_from)}"
    python = folder / "bin" / "python"
    if (folder / MARKER).exists():
        return python
    if folder.exists():
        print(f"{name}: removing a half-made environment", flush=True)
        shutil.rmtree(folder)
    print(f"{name}: installing {', '.join(requirements.read_text().split())}", flush=True)
    base = interpreter(name)
    run(base, "-m", "venv", folder)
    run(python, "-m", "pip", "install", "--quiet", "--requirement", requirements)
    if name == PYFLINK:
        print(f"{name}: fetching the Kafka connector", flush=True)
        add_jars(folder)
    (folder / MARKER).touch()
    return python


def environ(name: str) -> dict[str, str]:
    """The environment variables with which its script is to be called."""
    return dict(os.environ) | ({"JAVA_HOME": str(jdk().home)} if name == PYFLINK else {})


def interpreter(name: str) -> str:
    """A Python for which the packages are published: PyFlink 1.20's end with 3.11."""
    if name != PYFLINK or sys.version_info < (3, 12):
        return sys.executable
    if found := shutil.which("python3.11"):
        return found
    raise SystemExit(f"{name} needs Python 3.11, and there is no python3.11 in PATH.")


def jdk() -> Jdk:
    return need_jdk(installed_jdks(), user="Flink 1.20", oldest=11, newest=17, best=17)


def add_jars(folder: Path) -> None:
    """To Flink's own ones, where each job finds them."""
    jars = folder / "jars"
    copy_jars(PYFLINK_JARS / "pom.xml", jars, Tools(need_maven, jdk))
    verify(jars, PYFLINK_JARS / LOCK)
    (lib,) = folder.glob("lib/python*/site-packages/pyflink/lib")
    for jar in jars.iterdir():
        shutil.move(jar, lib)


def run(*command: str | Path) -> None:
    # pip and venv would take this one's for theirs.
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, env=clean, check=True)


if __name__ == "__main__":
    for given in sys.argv[1:]:
        print(environment(given))
