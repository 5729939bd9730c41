"""Finds the JDKs and the Maven of this machine."""

import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Final

from velocity.runners.stack_errors import MissingTool

JDK_FOLDERS: Final = (
    "/usr/lib/jvm/*",
    "/usr/java/*",
    "/opt/java/*",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home",
    "~/.sdkman/candidates/java/*",
    "~/.jdks/*",
)
"""Where distributions and tools install JDKs, beside ``JAVA_HOME`` and the ``java`` in PATH."""

OLDEST_MAVEN: Final = (3, 6, 3)
"""What the plugins named in our poms ask for."""


@dataclass(frozen=True, slots=True)
class Jdk:
    """An installed JDK: its home, and its feature version (17 of 17.0.15)."""

    home: Path
    feature: int

    @property
    def java(self) -> Path:
        return self.home / "bin" / "java"

    @property
    def javac(self) -> Path:
        return self.home / "bin" / "javac"

    @property
    def jar(self) -> Path:
        return self.home / "bin" / "jar"


def feature_version(text: str) -> int | None:
    """The feature version in a ``release`` file or in what ``java -version`` prints.

    >>> feature_version('openjdk version "17.0.15" 2025-04-15')
    17
    >>> feature_version('java version "1.8.0_402"')
    8
    >>> feature_version('JAVA_VERSION="25"')
    25
    """
    found = re.search(r'(?:version |JAVA_VERSION=)"(?:1\.)?(\d+)', text)
    return int(found[1]) if found else None


def ask_java(java: Path) -> str:
    """What ``java -version`` prints; nothing if it cannot run."""
    try:
        asked = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except OSError:
        return ""
    return asked.stderr + asked.stdout


def installed_jdks(
    environ: Mapping[str, str] = os.environ,
    folders: Sequence[str] = JDK_FOLDERS,
    ask: Callable[[Path], str] = ask_java,
) -> list[Jdk]:
    """The JDKs found, each once; ``JAVA_HOME`` first, then the one in PATH.

    A runtime without ``javac`` is left out: our own classes are compiled here. Java is asked for
    its version only where the home has no ``release`` file.
    """
    found: dict[Path, Jdk] = {}
    for home in _homes(environ, folders):
        if not (home / "bin" / "javac").exists() or home in found:
            continue
        release = home / "release"
        text = release.read_text(errors="replace") if release.exists() else ""
        feature = feature_version(text) or feature_version(ask(home / "bin" / "java"))
        if feature is not None:
            found[home] = Jdk(home, feature)
    return list(found.values())


def _homes(environ: Mapping[str, str], folders: Sequence[str]) -> Iterator[Path]:
    if given := environ.get("JAVA_HOME"):
        yield Path(given).resolve()
    if java := which("java", path=environ.get("PATH", "")):
        yield Path(java).resolve().parent.parent
    for pattern in folders:
        path = Path(pattern).expanduser()
        root = Path(path.anchor)
        yield from (home.resolve() for home in sorted(root.glob(str(path.relative_to(root)))))


def choose_jdk(
    jdks: Iterable[Jdk], *, oldest: int, newest: int | None = None, best: int
) -> Jdk | None:
    """The JDK within the range that is nearest to the one a server is tested with.

    >>> jdks = [Jdk(Path("/a"), 11), Jdk(Path("/b"), 25), Jdk(Path("/c"), 17)]
    >>> choose_jdk(jdks, oldest=17, best=17).feature
    17
    >>> choose_jdk(jdks, oldest=21, best=21).feature
    25
    >>> choose_jdk(jdks, oldest=11, newest=21, best=21).feature
    17
    """
    fitting = [
        jdk for jdk in jdks if jdk.feature >= oldest and (newest is None or jdk.feature <= newest)
    ]
    return min(fitting, key=lambda jdk: abs(jdk.feature - best), default=None)


def need_jdk(
    jdks: Sequence[Jdk], *, user: str, oldest: int, newest: int | None = None, best: int
) -> Jdk:
    """As ``choose_jdk``; without one, an error that says what was found and what to install."""
    chosen = choose_jdk(jdks, oldest=oldest, newest=newest, best=best)
    if chosen is not None:
        return chosen
    wanted = f"{oldest} to {newest}" if newest else f"{oldest} or later"
    found = ", ".join(f"{jdk.feature} in {jdk.home}" for jdk in jdks) or "none"
    raise MissingTool(
        f"{user} needs a JDK {wanted}; found: {found}. Install one (Debian: apt install"
        f" openjdk-{best}-jdk-headless; or sdkman.io) or point JAVA_HOME to it."
    )


def ask_maven(maven: str) -> str:
    """What ``mvn --version`` prints; nothing if it cannot run."""
    try:
        asked = subprocess.run(
            [maven, "--batch-mode", "--version"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except OSError:
        return ""
    return asked.stdout


def maven_version(text: str) -> tuple[int, ...] | None:
    """The version in what ``mvn --version`` prints, with or without colours.

    >>> maven_version("Apache Maven 3.8.7 (b89d5959fc)")
    (3, 8, 7)
    """
    found = re.search(r"Apache Maven (\d+)\.(\d+)\.(\d+)", text)
    return tuple(int(part) for part in found.groups()) if found else None


def need_maven(
    environ: Mapping[str, str] = os.environ, ask: Callable[[str], str] = ask_maven
) -> str:
    """The ``mvn`` in PATH, or an error that says what is wrong with it and what to install."""
    remedy = "Install Maven (Debian: apt install maven; macOS: brew install maven) into PATH."
    maven = which("mvn", path=environ.get("PATH", ""))
    if maven is None:
        raise MissingTool(
            f"The first start downloads servers with Maven, and there is no mvn. {remedy}"
        )
    version = maven_version(ask(maven))
    if version is None:
        raise MissingTool(f"{maven} does not tell its version. Try: {maven} --version. {remedy}")
    if version < OLDEST_MAVEN:
        told = ".".join(map(str, version))
        needed = ".".join(map(str, OLDEST_MAVEN))
        raise MissingTool(f"Maven {needed} or later is needed; {maven} is {told}. {remedy}")
    return maven
