"""Laws of exports: each line is read once, however a file is cut; each row of CSV keeps its types."""

import gzip
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.exports import Export, ExportError, exports, lines_of, rows_of

LINES = st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b" ")), max_size=9)


def values(batches: Iterator[pa.RecordBatch]) -> list[bytes]:
    return [value for batch in batches for value in batch["value"].to_pylist()]


@given(LINES, st.sets(st.integers(1, 99)), st.booleans())
def test_each_line_is_in_one_stretch_and_its_offset_is_its_place(
    lines: list[bytes], cuts: set[int], ends: bool
) -> None:
    text = b"\n".join(lines) + (b"\n" if ends else b"")
    with TemporaryDirectory() as folder:
        file = Path(folder, "events.jsonl")
        file.write_bytes(text)
        edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
        found = [
            message
            for start, stop in pairwise(edges)
            for batch in lines_of(Export(str(file), start, stop))
            for message in batch.to_pylist()
        ]
        assert [m["value"] for m in found] == [line for line in lines if line.strip()]
        assert all(text[m["offset"] :].startswith(m["value"]) for m in found)
        offsets = [m["offset"] for m in found]
        assert offsets == sorted(set(offsets))


def test_a_compressed_file_is_read_whole_and_its_offsets_are_numbers_of_lines(
    tmp_path: Path,
) -> None:
    file = tmp_path / "events.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"n": 1}\n\n{"n": 2}'))
    [export] = exports(str(file))
    [batch] = lines_of(export)
    assert batch["value"].to_pylist() == [b'{"n": 1}', b'{"n": 2}']
    assert batch["offset"].to_pylist() == [0, 2]


@pytest.mark.parametrize("name", ["events.csv", "events.csv.gz"])
def test_a_row_of_csv_is_an_object_of_its_cells_or_for_a_decoder_to_refuse(
    name: str, tmp_path: Path
) -> None:
    text = 'city,n,paid\n"Solo, Java",7,true\nBandung,,\nshort\n\xff,07,maybe\n'.encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    [export] = exports(str(tmp_path / name))
    first, second, short, odd = values(rows_of(export, {"n": "int64", "paid": "bool"}))
    assert json.loads(first) == {"city": "Solo, Java", "n": 7, "paid": True}
    assert json.loads(second) == {"city": "Bandung"}
    assert json.loads(short) == ["short"]
    assert odd == b'{"city": "\xff", "n": "07", "paid": "maybe"}'


@pytest.mark.parametrize("begin", ["city,n\nSolo,7\n", ""], ids=["row", "header"])
def test_a_quote_that_is_never_closed_is_told_with_its_file_and_line(
    begin: str, tmp_path: Path
) -> None:
    file = tmp_path / "events.csv"
    file.write_text(begin + '"Bandung,8\n' + "Jakarta,9\n" * 20_000)
    [export] = exports(str(file))
    with pytest.raises(ExportError, match=r"events\.csv, line \d+: .*is a quote open\?"):
        values(rows_of(export, {}))


def test_a_file_that_is_not_there_or_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="correct the path"):
        exports(str(tmp_path / "*.jsonl"))
    (tmp_path / "events.xml").touch()
    with pytest.raises(ExportError, match="the name is to end with"):
        exports(str(tmp_path / "events.xml"))
