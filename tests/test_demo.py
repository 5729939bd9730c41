"""The demo, small: that it passes when all is right, and that it would not if it weren't."""

import io
import sqlite3
from pathlib import Path

import pytest
from rich.console import Console

from velocity.io.sqlite import read_documents
from velocity.pipelines.directory import directory
from velocity.pipelines.jobfile import load
from velocity.pipelines.simulator import Scenario
from velocity.runners.demo import JOB, compare, demo

pytestmark = pytest.mark.embedded


def test_every_document_of_the_demo_equals_the_recomputation(tmp_path: Path) -> None:
    out = Console(file=io.StringIO(), width=200)
    folder = tmp_path / "demo"
    assert demo(events=6_000, seed=3, folder=folder, console=out) == 0
    assert "equal a plain recomputation" in out.file.getvalue()  # type: ignore[attr-defined]

    # The same comparison sees one event too few in one document, and one dead letter lost.
    with sqlite3.connect(folder / "documents.db") as db:
        db.execute(
            "UPDATE documents SET events = events - 1 WHERE id = (SELECT min(id) FROM documents)"
        )
    next((folder / "dead-letters").rglob("*.parquet")).unlink()
    documents = read_documents(str(folder / "documents.db"))
    scenario = Scenario(seed=3, events=6_000)
    dead = folder / "dead-letters"
    wrong = compare(load(JOB), scenario, directory(3), documents, dead)
    assert sum("events is" in line for line in wrong) == 1
    assert any(line.startswith("dead letters: ") for line in wrong)
