"""Prism repeats panes, early ones after newer ones: no document changes by it."""

import random
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from tests.test_lateness import Documents, Event, graph, stream_of, wanted
from tests.test_stack_jobs import prism
from velocity.io.records import Document
from velocity.io.sqlite import WriteToSqlite, read_documents
from velocity.pipelines.recompute import differences
from velocity.runners.options import prism as options

pytestmark = pytest.mark.stack


def test_repeated_panes_of_prism_change_no_document(tmp_path: Path) -> None:
    """A stream of three partitions. Of windows without early panes Prism would show none at all: for
    those `velocity run` reads up to now, and no window has two panes."""
    of = graph("patient", "all_time")
    draw = random.Random(3)
    partitions: list[list[Event]] = [
        [
            (i * 700 + draw.randrange(8_000), draw.choice("abc"), draw.randrange(10))
            for i in range(90)
        ]
        for _ in range(3)
    ]
    steps = [(draw.randrange(3), draw.randrange(1, 9)) for _ in range(60)]
    panes, store = tmp_path / "panes", tmp_path / "documents.db"

    def note(document: Document) -> Document:
        with panes.open("a") as file:
            file.write(f"{document.id}\t{document.version}\n")
        return document

    pipeline = beam.Pipeline(
        options=PipelineOptions(options({"VELOCITY_PRISM": prism()}), streaming=True)
    )
    documents, _ = (
        pipeline | stream_of(of, partitions, steps, seconds=15) | "Documents" >> Documents(of)
    )
    noted = documents | "Note" >> beam.Map(note).with_output_types(Document)
    _ = noted | "Write" >> WriteToSqlite(str(store))
    pipeline.run().wait_until_finish()
    versions: dict[str, list[int]] = {}
    for line in panes.read_text().splitlines():
        id_, _, version = line.rpartition("\t")
        versions.setdefault(id_, []).append(int(version))
    assert any(found != sorted(set(found)) for found in versions.values()), "none was repeated"
    assert list(differences(wanted(of, partitions).documents, read_documents(str(store)))) == []
