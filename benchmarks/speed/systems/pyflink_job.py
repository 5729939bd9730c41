"""The workload on PyFlink: tables, with a vectorized Python function for the cities.

Kafka, JSON, watermarks and windows are Flink's own, in Java; it has a cluster in the process of the job.
"""

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import pandas as pd
from common import MAX_LATENESS_S, Arguments, Cities, Documents, arguments, document
from py4j.protocol import Py4JError
from pyflink.common import Configuration, Row, Time, Types
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.datastream.functions import ProcessAllWindowFunction, RuntimeContext
from pyflink.datastream.window import TimeWindow, TumblingProcessingTimeWindows
from pyflink.java_gateway import get_gateway
from pyflink.table import DataTypes, ScalarFunction, StreamTableEnvironment
from pyflink.table.udf import FunctionContext, udf

SETTINGS = {
    # The interpreter that runs this file, and not the first in PATH.
    "python.executable": sys.executable,
    "python.client.executable": sys.executable,
    # Windows are told in it, and their numbers are those of UTC.
    "table.local-time-zone": "UTC",
    "execution.checkpointing.interval": "10 s",
    # Else it would start anew for ever and tell why in its log alone.
    "restart-strategy.type": "none",
    # Objects pass from one operator to the next as they are.
    "pipeline.object-reuse": "true",
}

SOURCE = """
    CREATE TABLE events (
        domain STRING,
        event_type STRING,
        event_time BIGINT,
        provider_id STRING,
        amount BIGINT,
        ts AS TO_TIMESTAMP_LTZ(event_time, 3),
        WATERMARK FOR ts AS ts - INTERVAL '{lateness}' SECOND
    ) WITH (
        'connector' = 'kafka',
        'properties.bootstrap.servers' = '{kafka}',
        'properties.group.id' = '{index}',
        'topic' = '{topic}',
        'scan.startup.mode' = 'earliest-offset',
        'format' = 'json'
    )
"""

WINDOWS = """
    SELECT
        1000 * CAST(TIMESTAMPDIFF(SECOND, TIMESTAMP '1970-01-01 00:00:00', window_start) AS BIGINT),
        domain, event_type, city, COUNT(*), SUM(amount), MAX(amount)
    FROM TABLE(TUMBLE(TABLE enriched, DESCRIPTOR(ts), INTERVAL '1' MINUTE))
    GROUP BY window_start, window_end, domain, event_type, city
"""


class CityOf(ScalarFunction):
    """The cities of a batch of providers."""

    def __init__(self, rest: str) -> None:
        self._rest = rest

    def open(self, function_context: FunctionContext) -> None:
        self._cities = Cities(self._rest)

    def eval(self, ids: pd.Series) -> pd.Series:
        return ids.map(self._cities.of(ids.unique()))


class Write(ProcessAllWindowFunction[Row, str, TimeWindow]):
    """Writes what windows have closed of late."""

    def __init__(self, url: str, index: str) -> None:
        self._given = url, index

    def open(self, runtime_context: RuntimeContext) -> None:
        self._documents = Documents(*self._given)

    def process(
        self, context: ProcessAllWindowFunction.Context[TimeWindow], elements: Iterable[Row]
    ) -> Iterable[str]:
        self._documents.write(document(*row) for row in elements)
        return ()


def main(given: Arguments) -> None:
    # Python of its own for each worker. By default they are threads of this process, where jobs
    # run in it, and share its lock.
    os.environ["_python_worker_execution_mode"] = "process"  # noqa: SIM112
    os.environ["JVM_ARGS"] = "-Xmx2g"  # not a quarter of the machine's memory
    configuration = Configuration()
    for key, value in SETTINGS.items():
        configuration.set_string(key, value)
    env = StreamExecutionEnvironment.get_execution_environment(configuration)
    env.set_parallelism(given.workers)
    env.add_python_file(str(Path(__file__).with_name("common.py")))
    tables = StreamTableEnvironment.create(env)
    tables.execute_sql(SOURCE.format(lateness=MAX_LATENESS_S, **given._asdict()))
    city_of = udf(CityOf(given.rest), result_type=DataTypes.STRING(), func_type="pandas")
    tables.create_temporary_function("city_of", city_of)
    tables.create_temporary_view(
        "enriched",
        tables.sql_query(
            "SELECT domain, event_type, city_of(provider_id) AS city, amount, ts FROM events"
        ),
    )
    windows = tables.to_data_stream(tables.sql_query(WINDOWS))
    written(windows, given)
    job = env.execute_async("speed")

    def stop(*_: object) -> None:
        job.cancel().result()
        with suppress(Py4JError):  # as the answer never comes
            get_gateway().jvm.System.exit(0)
        os.wait()  # for it: its workers end with it
        sys.exit()

    signal.signal(signal.SIGTERM, stop)
    job.get_job_execution_result().result()


def written(windows: DataStream, given: Arguments) -> None:
    """By the second, and by one subtask, as a window closes for many keys at once."""
    (
        windows.window_all(TumblingProcessingTimeWindows.of(Time.seconds(1)))
        .process(Write(given.elasticsearch, given.index), output_type=Types.STRING())
        .print()
    )


if __name__ == "__main__":
    main(arguments())
