"""Finding JDKs and Maven, from folders and outputs that the tests make up."""

from pathlib import Path

import pytest

from velocity.runners.stack_errors import MissingTool
from velocity.runners.stack_java import (
    Jdk,
    choose_jdk,
    feature_version,
    installed_jdks,
    maven_version,
    need_jdk,
    need_maven,
)


def jdk_home(home: Path, release: str | None, *, compiler: bool = True) -> Path:
    (home / "bin").mkdir(parents=True)
    for tool in ("java", "javac") if compiler else ("java",):
        (home / "bin" / tool).write_text("#!/bin/sh\n")
        (home / "bin" / tool).chmod(0o755)
    if release is not None:
        (home / "release").write_text(release)
    return home


def never_asked(java: Path) -> str:
    raise AssertionError(f"{java} was started although its release file says the version")


def test_java_home_comes_first_and_every_jdk_once(tmp_path: Path) -> None:
    old = jdk_home(tmp_path / "jvm" / "jdk-17", 'JAVA_VERSION="17.0.15"\n')
    new = jdk_home(tmp_path / "jvm" / "jdk-25", 'IMPLEMENTOR="X"\nJAVA_VERSION="25.0.3"\n')
    (tmp_path / "jvm" / "default").symlink_to(old)
    found = installed_jdks(
        {"JAVA_HOME": str(new), "PATH": str(old / "bin")}, [f"{tmp_path}/jvm/*"], never_asked
    )
    assert found == [Jdk(new, 25), Jdk(old, 17)]


def test_a_runtime_without_a_compiler_is_no_jdk(tmp_path: Path) -> None:
    jdk_home(tmp_path / "jre", 'JAVA_VERSION="21"', compiler=False)
    assert installed_jdks({"PATH": ""}, [f"{tmp_path}/*"], never_asked) == []


def test_java_is_asked_only_where_no_file_tells_its_version(tmp_path: Path) -> None:
    home = jdk_home(tmp_path / "jdk", None)
    asked: list[Path] = []

    def ask(java: Path) -> str:
        asked.append(java)
        return 'openjdk version "21.0.4" 2024-07-16\nOpenJDK Runtime Environment'

    assert installed_jdks({"PATH": ""}, [f"{tmp_path}/*"], ask) == [Jdk(home, 21)]
    assert asked == [home / "bin" / "java"]


def test_a_jdk_that_does_not_run_is_left_out(tmp_path: Path) -> None:
    jdk_home(tmp_path / "jdk", None)
    assert installed_jdks({"PATH": ""}, [f"{tmp_path}/*"], lambda java: "") == []


@pytest.mark.parametrize(
    ("printed", "feature"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "26-ea" 2026-03-17', 26),
        ('JAVA_VERSION="11.0.22"', 11),
        ("Unable to locate a Java Runtime.", None),
    ],
)
def test_feature_versions(printed: str, feature: int | None) -> None:
    assert feature_version(printed) == feature


def test_a_jdk_beyond_the_newest_is_not_taken() -> None:
    assert choose_jdk([Jdk(Path("/b"), 25)], oldest=11, newest=21, best=17) is None


def test_a_missing_jdk_is_named_with_what_was_found_and_its_remedy() -> None:
    with pytest.raises(MissingTool) as raised:
        need_jdk([Jdk(Path("/jvm/11"), 11)], user="Kafka", oldest=17, best=17)
    message = str(raised.value)
    assert message.startswith("Kafka needs a JDK 17 or later; found: 11 in /jvm/11.")
    assert "openjdk-17-jdk-headless" in message


def maven_in(folder: Path) -> dict[str, str]:
    (folder / "mvn").write_text("#!/bin/sh\n")
    (folder / "mvn").chmod(0o755)
    return {"PATH": str(folder)}


def test_maven_of_a_good_version_is_found(tmp_path: Path) -> None:
    environ = maven_in(tmp_path)
    assert need_maven(environ, lambda mvn: "Apache Maven 3.8.7 (b89)") == str(tmp_path / "mvn")


def test_a_missing_maven_is_named_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match=r"there is no mvn\. Install Maven"):
        need_maven({"PATH": str(tmp_path)})


def test_too_old_a_maven_is_named_with_both_versions(tmp_path: Path) -> None:
    with pytest.raises(MissingTool, match=r"Maven 3\.6\.3 or later is needed; .* is 3\.5\.4"):
        need_maven(maven_in(tmp_path), lambda mvn: "Apache Maven 3.5.4")


def test_colours_do_not_hide_mavens_version() -> None:
    assert maven_version("\x1b[1mApache Maven 3.9.16\x1b[m\n") == (3, 9, 16)
