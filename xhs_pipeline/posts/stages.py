"""raw_posts as a function over folders: one week as read from the source, and what could not be read."""

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from xhs_pipeline.artifacts import Built, CheckOutcome
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import QUARANTINE, RAW_POSTS, TableWriter
from xhs_pipeline.posts.source_yaml import Source
from xhs_pipeline.posts.sources import Tally, read_week, unmasked


def write_raw(
    source: Source,
    week: str,
    policy: Policy,
    hmac_key: bytes,
    work: Path,
    log: Callable[[str], None] = print,
    *,
    mask: Callable[[str], str] = unmasked,
) -> Built:
    """Write posts.parquet and quarantine.parquet of one week, and check that every row read is in one of them.

    mask: see `read_week`. log: told when the week has no posts, with the weeks that the file does have.
    """
    tally = Tally()
    with (
        TableWriter(work / "posts.parquet", RAW_POSTS) as posts,
        TableWriter(work / "quarantine.parquet", QUARANTINE) as bad,
    ):
        for batch, quarantined in read_week(source, week, policy, hmac_key, mask=mask, tally=tally):
            posts.write(batch)
            bad.write(quarantined)
    other = tally.other_weeks.total()
    rows_in = tally.rows - other
    if not posts.rows:
        log(_nothing_found(week, tally, bad.rows))
    counts = {"rows_in": rows_in, "posts": posts.rows, "quarantined": bad.rows, "other_weeks": other}
    return Built(counts, [rows_accounted(work, rows_in)])


def _nothing_found(week: str, tally: Tally, bad: int) -> str:
    weeks = sorted(tally.other_weeks.items())
    shown = ", ".join(f"{other} ({rows})" for other, rows in weeks[:10]) + (", ..." if len(weeks) > 10 else "")
    has = f"rows of {shown}" if weeks else "no rows of other weeks"
    return f"0 posts of {week}; the file has {has}" + (f"; {bad} rows are in quarantine" if bad else "")


def rows_accounted(work: Path, rows_in: int) -> CheckOutcome:
    """Rows in = posts.parquet + quarantine.parquet, counted in the files."""
    kept, bad = (pq.read_metadata(work / f"{name}.parquet").num_rows for name in ("posts", "quarantine"))
    return CheckOutcome("rows_accounted", rows_in == kept + bad, f"{rows_in} rows in = {kept} kept + {bad} quarantined")
