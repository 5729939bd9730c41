"""The archive in S3: over a real socket, to a server that speaks its protocol."""

from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import boto3
import pyarrow as pa
import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that
from moto.server import ThreadedMotoServer

from velocity.io.archive import WriteToArchive, hidden_files
from velocity.io.archive_files import Kind, files_of, folder_of, units
from velocity.io.archive_read import Between, ReadFromArchive
from velocity.io.records import MESSAGE, MESSAGES, TIMESTAMP

pytestmark = pytest.mark.embedded

SCHEMA = pa.schema(
    [
        pa.field("at", TIMESTAMP),
        pa.field(MESSAGE, pa.struct(list(MESSAGES)), nullable=False),
    ]
)


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[PipelineOptions]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    access = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    for name, value in access.items():
        monkeypatch.setenv(name.upper(), value)
    client: Any = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **access)
    client.create_bucket(Bucket="events")
    found = PipelineOptions([f"--s3_endpoint_url={endpoint}", "--s3_region_name=us-east-1"])
    FileSystems.set_options(found)
    yield found
    server.stop()


def rows(first: int, last: int) -> pa.RecordBatch:
    n = last - first
    known = {
        "topic": pa.repeat("orders", n),
        "partition": pa.repeat(pa.scalar(0, pa.int32()), n),
        "offset": pa.array(range(first, last), pa.int64()),
    }
    columns = [known.get(f.name, pa.nulls(n, f.type)) for f in MESSAGES]
    times = pa.array(range(first, last), pa.int64()).cast(TIMESTAMP)
    messages = pa.StructArray.from_arrays(columns, fields=list(MESSAGES))
    return pa.RecordBatch.from_arrays([times, messages], schema=SCHEMA)


def test_what_one_pipeline_archives_in_s3_another_reads_each_event_once(
    options: PipelineOptions,
) -> None:
    path = "s3://events/velocity"
    for part in ([rows(0, 60)], [rows(40, 100)]):  # the second is a retry that was cut elsewhere
        with beam.Pipeline(options=options) as p:
            sink = WriteToArchive(
                path, job="orders", kind=Kind.ENRICHED, schema=SCHEMA, event_time="at"
            )
            _ = p | beam.Create(part) | sink
    files = files_of(path, Kind.ENRICHED, "orders")
    assert [file.path for file in files] == [
        f"{path}/enriched/domain=orders/date=1970-01-01/hour=00/orders-0-{ends}.parquet"
        for ends in ("0-59", "40-99")
    ]
    assert hidden_files(folder_of(path, Kind.ENRICHED, "orders")) == []
    with beam.Pipeline(options=options) as p:
        found = p | ReadFromArchive(
            list(units(files)),
            kind=Kind.ENRICHED,
            event_time="at",
            between=Between(10, 90),
            schema=SCHEMA,
        )

        def right(batches: Any) -> None:
            offsets = [m["offset"] for b in batches for m in b[MESSAGE].to_pylist()]
            assert sorted(offsets) == list(range(10, 90))

        assert_that(found, right)
