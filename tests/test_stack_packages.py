"""What comes out of the cache is what was pinned, and is there whole or not at all."""

import hashlib
import io
import re
import tarfile
from pathlib import Path

import pytest

from velocity.runners import stack_packages
from velocity.runners.stack_errors import StackError, UnknownPackage
from velocity.runners.stack_packages import (
    LOCK,
    digest,
    make_once,
    read_lock,
    run_tool,
    sums,
    unpack,
    verify,
)
from velocity.runners.stack_paths import JAVA_SOURCES, cache_folder, state_folder


def locked_folder(tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "jars"
    folder.mkdir()
    (folder / "a.jar").write_bytes(b"a")
    (folder / "b.jar").write_bytes(b"b")
    lock = tmp_path / LOCK
    lock.write_text("".join(f"{digest}  {name}\n" for name, digest in sums(folder).items()))
    return folder, lock


def test_the_locked_jars_are_accepted(tmp_path: Path) -> None:
    folder, lock = locked_folder(tmp_path)
    verify(folder, lock)
    assert read_lock(lock)["a.jar"] == hashlib.sha256(b"a").hexdigest()


def test_a_changed_jar_is_named_with_both_the_lock_and_the_remedy(tmp_path: Path) -> None:
    folder, lock = locked_folder(tmp_path)
    (folder / "b.jar").write_bytes(b"evil")
    with pytest.raises(UnknownPackage) as raised:
        verify(folder, lock)
    assert re.search(r"b\.jar: has SHA-256 \w{64}, not \w{64}", str(raised.value))
    assert "a.jar" not in str(raised.value)
    assert str(lock) in str(raised.value)
    assert "try again" in str(raised.value)


def test_an_unknown_and_a_missing_jar_are_named(tmp_path: Path) -> None:
    folder, lock = locked_folder(tmp_path)
    (folder / "a.jar").rename(folder / "c.jar")
    with pytest.raises(UnknownPackage, match=r"a\.jar: is missing\n  c\.jar: is unknown"):
        verify(folder, lock)


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "x").touch()

    for _ in range(2):
        assert (make_once(tmp_path / "cache" / "kafka-1", make) / "x").exists()
    assert len(made) == 1


def test_a_failed_or_killed_download_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    target = tmp_path / "kafka-1"

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise StackError("the network is gone")

    with pytest.raises(StackError):
        make_once(target, fail)
    assert not target.exists()
    make_once(target, lambda folder: (folder / "whole").touch())
    assert [file.name for file in target.iterdir()] == ["whole"]


def test_a_digest_changes_with_any_file(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_text("x")
    two.write_text("y")
    before = digest(one, two)
    two.write_text("z")
    assert digest(one, two) != before


def test_a_failed_tool_shows_its_output() -> None:
    with pytest.raises(StackError, match="sh failed with code 3:\nno such version"):
        run_tool(["/bin/sh", "-c", "echo no such version; exit 3"], name="sh", environ={})


def archive(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w:gz") as content:
        for name in names:
            member = tarfile.TarInfo(f"apache-flink-libraries-1/deps/{name}")
            member.size = 1
            content.addfile(member, io.BytesIO(b"x"))
    return path


def test_of_flinks_archive_only_the_runtime_and_its_logging_are_taken(tmp_path: Path) -> None:
    packed = archive(
        tmp_path / "flink.tar.gz",
        "lib/flink-dist-1.19.3.jar",
        "lib/log4j-core-2.17.1.jar",
        "lib/flink-table-runtime-1.19.3.jar",
        "plugins/metrics-prometheus/flink-metrics-prometheus-1.19.3.jar",
        "plugins/metrics-jmx/flink-metrics-jmx-1.19.3.jar",
        "opt/flink-dist-other.jar",
    )
    unpack(packed, tmp_path)
    assert {jar.name for jar in tmp_path.glob("*.jar")} == {
        "flink-dist-1.19.3.jar",
        "log4j-core-2.17.1.jar",
        "flink-metrics-prometheus-1.19.3.jar",
    }


def test_an_archive_without_flink_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownPackage, match="holds no flink-dist"):
        unpack(archive(tmp_path / "other.tar.gz", "lib/other.jar"), tmp_path)


@pytest.mark.parametrize(
    ("file", "pattern", "version"),
    [
        ("kafka/pom.xml", "<version>{}</version>", stack_packages.KAFKA_VERSION),
        ("flink/requirements.txt", "libraries=={} ", stack_packages.FLINK_VERSION),
        ("job-server/pom.xml", "<beam.version>{}<", stack_packages.BEAM_VERSION),
        *(
            (f"elasticsearch-{major}/pom.xml", "<elasticsearch.version>{}<", version)
            for major, version in stack_packages.ELASTICSEARCH_VERSIONS.items()
        ),
    ],
)
def test_the_versions_we_name_are_those_we_fetch(file: str, pattern: str, version: str) -> None:
    assert pattern.format(version) in (JAVA_SOURCES / file).read_text()


@pytest.mark.parametrize("pom", sorted(JAVA_SOURCES.glob("*/pom.xml")), ids=lambda p: p.parent.name)
def test_every_pom_has_its_lock_file(pom: Path) -> None:
    locked = read_lock(pom.with_name(LOCK))
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in locked.values())
    assert all(name.endswith(".jar") for name in locked)


def test_folders_follow_our_variables_before_xdg() -> None:
    environ = {"HOME": "/h", "XDG_CACHE_HOME": "/c", "XDG_STATE_HOME": "/s"}
    assert (cache_folder(environ), state_folder(environ)) == (
        Path("/c/velocity"),
        Path("/s/velocity"),
    )
    own = {**environ, "VELOCITY_CACHE": "/vc", "VELOCITY_STATE": "/vs"}
    assert (cache_folder(own), state_folder(own)) == (Path("/vc"), Path("/vs"))
