"""The index of a prepared collection: one row per recording, in row groups of fixed size.

`musicldm.data.prepare.run` describes the columns.
"""

from __future__ import annotations

from pathlib import Path

ROWS_PER_GROUP = 1024
TEXT, NUMBER, COUNT = "string", "double", "int32"
TEXTS, NUMBERS = (TEXT,), (NUMBER,)  # lists
COLUMNS: dict[str, str | tuple[str, ...]] = {
    "file_name": TEXT,
    "part": COUNT,
    "group": TEXT,
    "duplicate_of": TEXT,
    "split": TEXT,
    "shard": TEXT,
    "member": TEXT,
    "texts": TEXTS,
    "tags": TEXTS,
    "licence": TEXT,  # which older indexes lack
    "duration_s": NUMBER,
    "source_sample_rate_hz": COUNT,
    "source_channels": COUNT,
    "peak": NUMBER,
    "loudness_lufs": NUMBER,
    "block_loudness_lufs": NUMBERS,
    "silence_share": NUMBER,
    "tracker": TEXT,
    "beats_s": NUMBERS,
    "downbeats_s": NUMBERS,
    "beats_per_bar": COUNT,
    "tempo_bpm": NUMBER,
    "confidence": NUMBER,
    "key": TEXT,
    "key_clarity": NUMBER,
    "digest": TEXT,
}


class IndexWriter:
    """Writes rows to the Parquet file ``path``, holding one group of them in memory; use as a context."""

    def __init__(self, path: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        def type_of(name: str | tuple[str, ...]) -> pa.DataType:
            return pa.list_(pa.type_for_alias(name[0])) if isinstance(name, tuple) else pa.type_for_alias(name)

        self.schema = pa.schema([(column, type_of(name)) for column, name in COLUMNS.items()])
        self.file = pq.ParquetWriter(path, self.schema, compression="zstd")
        self.rows: list[dict] = []

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, failed: object, *_) -> None:
        if failed is None:
            self._flush()
        self.file.close()

    def write(self, row: dict) -> None:
        """Add a row; columns beyond those of the index are left out."""
        self.rows.append(row)
        if len(self.rows) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self.rows:
            self.file.write_table(pa.Table.from_pylist(self.rows, self.schema))
        self.rows = []
