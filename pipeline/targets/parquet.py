"""Parquet as every target writes it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def open_parquet(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A new file, small and quick to read; zstd's level is that of a build's shards.

    Dictionaries of ids, and their least and greatest, help no reader: 8.0 million tokens took
    17.7 MB with dictionaries, 16.3 without.
    """
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=3,
        use_dictionary=False,
        write_statistics=False,
    )
