"""SQL by which warehouses read an archive: Athena, Redshift Spectrum, and Redshift's COPY."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import pyarrow as pa

from velocity.io.archive import PLACE
from velocity.io.archive_files import ArchiveFile, Kind, folder_of
from velocity.io.records import MESSAGE, TIMESTAMP

_ATHENA: Final[Mapping[pa.DataType, str]] = {
    pa.string(): "string",
    pa.int32(): "int",
    pa.int64(): "bigint",
    pa.float64(): "double",
    pa.bool_(): "boolean",
    TIMESTAMP: "timestamp",
}
_REDSHIFT: Final[Mapping[pa.DataType, str]] = {
    **_ATHENA,
    pa.string(): "varchar(65535)",
    pa.int32(): "integer",
    pa.float64(): "double precision",
}


def _called(kind: pa.DataType, names: Mapping[pa.DataType, str]) -> str:
    decimal = pa.types.is_decimal(kind)
    return f"decimal({kind.precision},{kind.scale})" if decimal else names[kind]


def columns_of(schema: pa.Schema) -> list[tuple[str, pa.DataType]]:
    """The columns of enriched files, given the schema of the rows."""
    own = [(c.name, c.type) for c in schema if c.name != MESSAGE]
    return [*own, *((c.name, c.type) for c in PLACE)]


def athena(schema: pa.Schema, path: str, job: str, *, table: str, database: str = "default") -> str:
    """An external table for Athena, whose partitions need no crawler, and a view of each event once.

    Source: Amazon Athena's guide, "CREATE TABLE" and "Partition projection". Files may overlap
    after a retry, so queries go to the view.
    """
    columns = ",\n".join(
        f"  `{name}` {_called(kind, _ATHENA)}" for name, kind in columns_of(schema)
    )
    folder = folder_of(path, Kind.ENRICHED, job)
    properties = {
        "projection.enabled": "true",
        "projection.date.type": "date",
        "projection.date.format": "yyyy-MM-dd",
        "projection.date.range": "2015-01-01,NOW+1DAYS",
        "projection.hour.type": "integer",
        "projection.hour.range": "0,23",
        "projection.hour.digits": "2",
        "storage.location.template": f"{folder}/date=${{date}}/hour=${{hour}}",
    }
    told = ",\n".join(f"  '{name}' = '{_hive(value)}'" for name, value in properties.items())
    return (
        f"CREATE EXTERNAL TABLE IF NOT EXISTS `{database}`.`{table}_files` (\n{columns}\n)\n"
        "PARTITIONED BY (`date` string, `hour` string)\n"
        f"STORED AS PARQUET\nLOCATION '{_hive(folder)}/'\n"
        f"TBLPROPERTIES (\n{told}\n);\n\n"
        + _view(schema, f'"{database}"."{table}"', f'"{database}"."{table}_files"', replace=True)
        + ";\n"
    )


def redshift(
    schema: pa.Schema,
    path: str,
    job: str,
    files: Sequence[ArchiveFile],
    *,
    table: str,
    database: str = "spectrum",
    role: str = "default",
    manifest: str | None = None,
) -> str:
    """An external table for Redshift Spectrum with the partitions there are, a view of each event
    once, and a table of Redshift's own with the COPY that fills it from a manifest.

    ``database`` is the external schema. Source: Amazon Redshift's guide, "CREATE EXTERNAL TABLE",
    "ALTER TABLE ADD PARTITION" and "COPY from columnar data formats".
    """
    folder = folder_of(path, Kind.ENRICHED, job)
    columns = ",\n".join(
        f'  "{name}" {_called(kind, _REDSHIFT)}' for name, kind in columns_of(schema)
    )
    external = (
        f'CREATE EXTERNAL TABLE "{database}"."{table}_files" (\n{columns}\n)\n'
        'PARTITIONED BY ("date" varchar(10), "hour" varchar(2))\n'
        f"STORED AS PARQUET\nLOCATION '{_quoted(folder)}/';"
    )
    statements = [external]
    for hour in sorted({file.hour for file in files}):
        date, of_day = hour.date().isoformat(), f"{hour.hour:02d}"
        statements.append(
            f'ALTER TABLE "{database}"."{table}_files" ADD IF NOT EXISTS '
            f"PARTITION (\"date\"='{date}', \"hour\"='{of_day}') "
            f"LOCATION '{_quoted(folder)}/date={date}/hour={of_day}/';"
        )
    view = _view(schema, f'"public"."{table}"', f'"{database}"."{table}_files"')
    # Without it a view can't be of an external table.
    statements.append(f"{view} WITH NO SCHEMA BINDING;")
    statements.append(f'CREATE TABLE IF NOT EXISTS "{table}_copy" (\n{columns}\n);')
    name = manifest or f"{folder}/manifest.json"
    named = f"'{_quoted(role)}'" if role != "default" else "default"
    statements.append(
        f"COPY \"{table}_copy\" FROM '{_quoted(name)}' IAM_ROLE {named} FORMAT AS PARQUET MANIFEST;"
    )
    return "\n\n".join(statements) + "\n"


def _view(schema: pa.Schema, view: str, files: str, *, replace: bool = False) -> str:
    """Each event once: its original's row, where a replay of dead letters sent it again. Of those in
    two files any: whoever needs the newer compacts first."""
    names = ", ".join(f'"{name}"' for name in [*(n for n, _ in columns_of(schema)), "date", "hour"])
    return (
        f"CREATE {'OR REPLACE ' if replace else ''}VIEW {view} AS\nSELECT {names} FROM (\n"
        '  SELECT *, row_number() OVER (PARTITION BY "_topic", "_partition", coalesce("_origin", "_offset") '
        'ORDER BY "_offset") AS "_copy"\n'
        f'  FROM {files}\n) AS copies\nWHERE "_copy" = 1'
    )


def copy_manifest(files: Iterable[ArchiveFile]) -> str:
    """What COPY … MANIFEST reads. Source: Amazon Redshift's guide, "Using a manifest to specify
    data files": columnar files need their length.

    >>> copy_manifest([ArchiveFile("s3://b/date=2026-01-05/hour=07", "t", 0, 1, 2, bytes=9)])
    '{"entries": [{"url": "s3://b/date=2026-01-05/hour=07/t-0-1-2.parquet", \
"mandatory": true, "meta": {"content_length": 9}}]}'
    """
    entries = [
        {"url": file.path, "mandatory": True, "meta": {"content_length": file.bytes}}
        for file in files
    ]
    return json.dumps({"entries": entries})


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def _hive(text: str) -> str:
    """For Athena's DDL, which is Hive's: there two quotes side by side join two texts."""
    return text.replace("\\", "\\\\").replace("'", "\\'")
