"""Whatever comes in, no worker dies, memory stays bounded and every row is accounted for. `fuzz` runs the same at any length."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xhs_pipeline.curation.clean import CleanSettings, clean_batch
from xhs_pipeline.curation.identifiers import mask
from xhs_pipeline.curation.images import ImageRejected, clean_image
from xhs_pipeline.curation.text import matching_form, normalise
from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.schema import RAW_POSTS
from xhs_pipeline.posts.source_yaml import OUR_COLUMNS
from xhs_pipeline.posts.sources import Tally, load_source, read_week
from xhs_pipeline_tests import fuzz

POLICY = load_policy()
# One example may pay for what is loaded on first use; the same examples every time, so that a failure repeats.
bounded = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

any_text = st.text(st.characters(), max_size=60) | st.lists(st.sampled_from(fuzz.PIECES), max_size=40).map("".join)
surrogates_too = st.text(st.characters(categories=["L", "N", "P", "S", "M", "C", "Z"]), max_size=60)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | surrogates_too,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8X", b"\0\0\0 ftypavif", b"")


def test_three_thousand_damaged_images_lines_and_texts_fell_no_worker_and_lose_no_row() -> None:
    outcome = fuzz.run(3000, seed=20260216)
    assert outcome.cases.total() == 3000
    assert outcome.felled == [] and outcome.lost == []
    assert outcome.peak_mb < CleanSettings().worker_memory_mb
    # damaged enough to be refused, sound enough that much of the code is reached
    assert outcome.results["image broken"] > 100 and outcome.results["image kept"] > 100
    assert outcome.results["line bad_json"] > 10 and outcome.results["post kept"] > 100


def test_what_the_fuzz_run_counts_as_lost_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(batches: Any, *_: Any) -> Any:
        for batch in batches:
            yield clean_batch(batch.slice(1), CleanSettings())

    monkeypatch.setattr(fuzz, "clean_stream", forgetful)
    assert fuzz.run(30, seed=1).lost


@bounded
@given(surrogates_too)
@example("\ud800")
def test_any_text_is_normalised_masked_and_compared(text: str) -> None:
    clean, _ = mask(normalise(text))
    clean.encode()
    matching_form(clean, text).encode()


@bounded
@given(st.lists(st.tuples(st.none() | any_text, st.none() | any_text), max_size=5))
def test_any_texts_are_kept_or_quarantined(texts: list[tuple[str | None, str | None]]) -> None:
    rows = [fuzz.row(number, title, body, []) for number, (title, body) in enumerate(texts)]
    cleaned = clean_batch(pa.RecordBatch.from_pylist(rows, RAW_POSTS), CleanSettings())
    seen = cleaned.posts["post_id"].to_pylist() + cleaned.quarantine["post_id"].to_pylist()
    assert sorted(seen) == [f"f{number}" for number in range(len(texts))]


@bounded
@given(st.sampled_from(HEADS), st.binary(max_size=300))
def test_any_bytes_are_a_clean_image_or_a_reason(head: bytes, rest: bytes) -> None:
    try:
        assert clean_image(head + rest).data
    except ImageRejected as rejected:
        assert rejected.reason


@bounded
@given(rows=st.lists(st.dictionaries(st.sampled_from(OUR_COLUMNS), json_value), min_size=1, max_size=6))
def test_any_json_is_a_post_a_quarantined_row_or_of_another_week(
    tmp_path_factory: Any, rows: list[dict[str, Any]]
) -> None:
    folder: Path = tmp_path_factory.mktemp("week")
    (folder / "source.yaml").write_text("format: jsonl\npath: posts-{week}.jsonl\n", encoding="utf-8")
    whole = {"post_id": "whole", "title": "标题", "verdict": "通过", "category": "正常"}
    lines = [json.dumps(row) for row in (*rows, whole)]
    (folder / f"posts-{fuzz.WEEK}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tally, kept, bad = Tally(), [], 0
    for good, quarantined in read_week(
        load_source(folder / "source.yaml", POLICY), fuzz.WEEK, POLICY, bytes(16), tally=tally
    ):
        kept += good["post_id"].to_pylist()
        bad += quarantined.num_rows
    assert len(kept) + bad == tally.rows == len(lines) and "whole" in kept
