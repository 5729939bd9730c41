"""A real Elasticsearch that dies while a real Flink writes to it: the job waits, and loses nothing."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import NotFoundError, TransportError, helpers

from tests.cluster import until
from tests.flink_jobs import SEED, Case, flink_cluster
from velocity.io.elastic_connection import Connection
from velocity.pipelines.directory import directory
from velocity.runners.embedded import DirectoryService
from velocity.runners.stack_state import read_state

pytestmark = pytest.mark.stack


class ElasticCase(Case):
    """As ``Case``, its documents in Elasticsearch, where a bulk is not tried for long."""

    def command(self, *options: str) -> list[str]:
        text = self.path.read_text()
        self.path.write_text(
            text.replace("elasticsearch: {url", "elasticsearch: {retry_for: 5s, url")
        )
        dead = ("--dead-letters", str(self.dead))
        return ["run", str(self.path), "--runner", "flink", "--detach", *dead, *options]

    def documents(self) -> dict[str, Any]:
        """What readers see: by the job's alias."""
        with Connection((self.cluster.environ["ELASTICSEARCH"],)).open() as client:
            try:
                client.indices.refresh(index="velocity-pharmacy_delivery")
                hits = helpers.scan(client, index="velocity-pharmacy_delivery")
                return {hit["_id"]: hit["_source"] for hit in hits}
            except (NotFoundError, TransportError):  # it is being made, or started again
                return {}


def test_elasticsearch_killed_in_mid_run_is_waited_for_and_no_document_is_lost(
    tmp_path: Path,
) -> None:
    state, temporary, folder = (tmp_path / name for name in ("state", "temporary", "killed"))
    temporary.mkdir()
    folder.mkdir()
    with (
        DirectoryService(directory(SEED).tables()) as service,
        flink_cluster(
            state, temporary, {"PROVIDERS": service.url, "PATIENTS": service.url}
        ) as cluster,
    ):
        cluster("stack", "up", "elasticsearch")
        cluster.environ["ELASTICSEARCH"] = cluster.address("elasticsearch")
        case = ElasticCase(cluster, folder, 75_000, rate=25)
        case.produce(250)
        job = case.run("--checkpoint-interval", "5s")
        until(lambda: len(case.documents()) > 50)
        before = len(case.documents())
        [server] = read_state(state).components["elasticsearch"].servers
        os.kill(server.process.pid, signal.SIGKILL)
        until(lambda: cluster.flink.restarts(job) >= 1)  # the bundle has failed
        assert case.producing  # it was in mid-run
        cluster("stack", "up", "elasticsearch")
        case.await_all()
        assert len(case.documents()) > before
