"""The record of a stack survives a restart, a second command and a broken file."""

import json
import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from velocity.runners.stack_errors import Busy, PortTaken, StackError
from velocity.runners.stack_ports import Claims, any_free, choose_ports, is_free
from velocity.runners.stack_process import ProcessId
from velocity.runners.stack_state import (
    FILE,
    ComponentRecord,
    ServerRecord,
    StackState,
    keeps_port,
    locked,
    read_state,
    write_state,
)

KAFKA = ComponentRecord(
    name="kafka",
    version="4.1.1",
    ports={"kafka": 9092, "kafka-controller": 40001},
    settings={"slots": 4, "elasticsearch": None},
    addresses={"kafka": "127.0.0.1:9092"},
    servers=(ServerRecord("kafka", ProcessId(812, "boot+7"), Path("/s/kafka.log"), "run-1"),),
)


def claims(folder: Path, stack: str) -> Claims:
    return Claims(folder / "ports", folder / stack, keeps_port)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_state(tmp_path / "new", StackState().having(KAFKA))
    assert read_state(tmp_path / "new") == StackState({"kafka": KAFKA})


def test_no_file_is_no_stack(tmp_path: Path) -> None:
    assert read_state(tmp_path) == StackState()


def test_addresses_are_found_by_name() -> None:
    state = StackState().having(KAFKA)
    assert state.address("kafka") == "127.0.0.1:9092"
    assert state.without("kafka").address("kafka") is None


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 99}', '{"format": 1, "components": [{"name": "kafka"}]}']
)
def test_a_file_that_cannot_be_understood_is_named_with_its_remedy(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(StackError, match="delete it"):
        read_state(tmp_path)


def test_writing_leaves_no_draft_behind(tmp_path: Path) -> None:
    write_state(tmp_path, StackState().having(KAFKA))
    assert [file.name for file in tmp_path.iterdir()] == [FILE]
    assert json.loads((tmp_path / FILE).read_text())["format"] == 1


def test_a_second_command_waits_and_then_says_who_is_at_work(tmp_path: Path) -> None:
    seconds = iter(range(100))
    with locked(tmp_path), pytest.raises(Busy, match=str(tmp_path)):  # noqa: SIM117
        with locked(tmp_path, wait=5, clock=lambda: float(next(seconds)), sleep=lambda s: None):
            pass


def test_the_lock_is_free_again_after_its_holder(tmp_path: Path) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path):
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    with locked(tmp_path, wait=30, sleep=lambda seconds: release.set()):
        pass
    holder.join()


USUAL = {"kafka": 9092, "kafka-controller": 0}


def test_a_usual_port_that_is_taken_gives_way_to_any_free_one() -> None:
    others = iter([9092, 40001, 40001, 40002])
    chosen = choose_ports(USUAL, {}, free=lambda port: port != 9092, any_port=lambda: next(others))
    assert len(set(chosen.values())) == 2


def test_a_given_port_is_taken_as_it_is() -> None:
    chosen = choose_ports(USUAL, {"kafka": 19092}, free=lambda port: True, any_port=lambda: 4)
    assert chosen == {"kafka": 19092, "kafka-controller": 4}


def test_no_other_server_gets_a_given_port() -> None:
    chosen = choose_ports({"a": 5, "b": 6}, {"b": 5}, free=lambda port: True, any_port=lambda: 7)
    assert chosen == {"a": 7, "b": 5}


def test_a_given_port_in_use_is_named_with_its_remedy() -> None:
    with pytest.raises(PortTaken, match=r"Port 9, given for kafka.*--port kafka=PORT"):
        choose_ports(USUAL, {"kafka": 9}, free=lambda port: False)


@pytest.mark.embedded
def test_a_port_that_one_start_has_claimed_is_no_other_ones(tmp_path: Path) -> None:
    port = any_free()
    with claims(tmp_path, "a") as first, claims(tmp_path, "b") as second:
        assert first.take(port)
        assert not second.take(port)
        assert second.take_any() != port
    with claims(tmp_path, "b") as third:
        assert third.take(port)  # its holder is gone


@pytest.mark.embedded
def test_a_stack_keeps_the_port_of_a_server_that_died_until_it_is_taken_down(
    tmp_path: Path,
) -> None:
    port = any_free()
    record = replace(KAFKA, ports={"kafka": port})
    with claims(tmp_path, "a") as first:
        assert first.take(port)
        write_state(tmp_path / "a", StackState({record.name: record}))
    with claims(tmp_path, "b") as other:
        assert not other.take(port)
    with claims(tmp_path, "a") as again:
        assert again.take(port)
    write_state(tmp_path / "a", StackState())
    with claims(tmp_path, "b") as other:
        assert other.take(port)


def test_a_port_where_someone_listens_cannot_be_claimed(tmp_path: Path) -> None:
    with socket.socket() as server, claims(tmp_path, "a") as claimed:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert not claimed.take(server.getsockname()[1])


def test_a_port_is_free_until_someone_listens_there() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        server.listen()
        assert not is_free(port)
    assert is_free(port)
