"""raw_posts as a function over folders: one week as read from the source, and what could not be read."""

from pathlib import Path

import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Built, CheckOutcome
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import QUARANTINE, RAW_POSTS, TableWriter
from xhs_pipeline.posts.source_yaml import Source
from xhs_pipeline.posts.sources import read_week


def write_raw(source: Source, week: str, policy: Policy, hmac_key: bytes, work: Path) -> Built:
    """Write posts.parquet and quarantine.parquet of one week, and check that every row read is in one of them."""
    rows_in = 0
    with (
        TableWriter(work / "posts.parquet", RAW_POSTS) as posts,
        TableWriter(work / "quarantine.parquet", QUARANTINE) as bad,
    ):
        for batch, quarantined in read_week(source, week, policy, hmac_key):
            rows_in += batch.num_rows + quarantined.num_rows
            posts.write(batch)
            bad.write(quarantined)
    counts = {"rows_in": rows_in, "posts": posts.rows, "quarantined": bad.rows}
    return Built(counts, [rows_accounted(work, rows_in)])


def rows_accounted(work: Path, rows_in: int) -> CheckOutcome:
    """Rows in = posts.parquet + quarantine.parquet, counted in the files."""
    kept, bad = (pq.read_metadata(work / f"{name}.parquet").num_rows for name in ("posts", "quarantine"))
    return CheckOutcome("rows_accounted", rows_in == kept + bad, f"{rows_in} rows in = {kept} kept + {bad} quarantined")
