"""Writing the splits as sharegpt parquet that our training, LLaMA-Factory and ms-swift all load.

Each row is one conversation with its images embedded; the other columns say where its label comes from. Column names avoid
those that other trainers give a meaning to (label, channel, objects, tools, solution, margin).
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.appeals.outcomes import apply_outcomes, follow_duplicates
from xhs_pipeline.artifacts import Built, CheckOutcome, write_json
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import UNIQUE_POSTS, write_table
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.balance import balance
from xhs_pipeline.splits.conversation import IMAGE_PLACEHOLDER, render_answer, render_prompt, to_messages
from xhs_pipeline.splits.exports import write_exports
from xhs_pipeline.splits.grouping import SPLITS, split_of

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
# elided: characters left out of the middle of a long body; images_left_out: images past the profile's max_images.
_OF_THE_POST = (
    "images", "post_id", "group_id", "week", "title", "body", "verdict", "category", "severity", "rationale",
    "label_source", "author_hash",
)  # fmt: skip
SHAREGPT = pa.schema(
    [
        pa.field("messages", pa.list_(MESSAGE)),
        *(UNIQUE_POSTS.field(name) for name in _OF_THE_POST),
        pa.field("elided", pa.int32()),
        pa.field("images_left_out", pa.int32()),
        UNIQUE_POSTS.field("schema_version"),
    ]
)
_LIGHT = ["post_id", "group_id", "verdict", "category"]
MAX_DUPLICATE_RATIONALES = 0.3  # near-identical reasons are known to collapse the quality of the analysis line


def write_splits(posts_file: Path, outcomes_file: Path, policy: Policy, profile: Profile, work: Path) -> Built:
    """Write train / validation / calibration / test.parquet and dataset_info.json into `work`.

    The verdict, category and severity of an appeal's outcome replace the post's own label, with label_source "appeal".
    Streams the posts; memory holds ids and labels of all posts, and one batch of images.
    """
    removed = pq.read_table(posts_file.with_name("removed.parquet"), columns=["post_id", "kept_post_id"]).to_pylist()
    kept_for = {row["post_id"]: row["kept_post_id"] for row in removed if row["kept_post_id"]}
    outcomes = follow_duplicates(pq.read_table(outcomes_file), kept_for)
    applied = apply_outcomes(pq.read_table(posts_file, columns=_LIGHT), outcomes)
    light = applied.posts.to_pylist()
    if not light:
        raise ValueError(
            f"{posts_file}: no posts; see the quarantine reasons of raw_posts and clean_posts for where they went"
        )
    split = {row["post_id"]: split_of(row["group_id"], profile) for row in light}
    train = [(row["post_id"], row[profile.balance_by]) for row in light if split[row["post_id"]] == "train"]
    labels = policy.category_names if profile.balance_by == "category" else policy.verdict_ids
    quotas = {policy.verdict_id(label) or label: quota for label, quota in profile.train_quotas.items()}
    balanced = balance(train, quotas, labels, profile.seed)

    if not balanced.kept:
        raise ValueError(
            f"{posts_file}: {len(light)} posts leave nothing to train on; add posts, or lower the shares or quotas"
        )

    counts: dict[str, Any] = {}
    for name in SPLITS:
        chosen = {p for p, s in split.items() if s == name and (s != "train" or p in balanced.kept)}
        rows = _interleaved(posts_file, chosen)
        counts[name] = write_table(
            work / f"{name}.parquet", SHAREGPT, (_conversations(batch, outcomes, policy, profile) for batch in rows)
        )
    has_images = {name: _holds_images(work / f"{name}.parquet") for name in SPLITS}
    write_json(work / "dataset_info.json", dataset_info(".parquet", has_images))
    write_exports(profile, work)
    if profile.json_export:
        _export_json(work)
    counts |= {
        "posts_in": len(light),
        "left_out_by_quota": len(train) - len(balanced.kept),
        "quota_asked": balanced.asked,
        "quota_found": balanced.found,
        "decided_on_appeal": applied.named,
        "corrected_on_appeal": applied.changed,
        "appeals_without_post": applied.missing,
    }
    return Built(counts, check_splits(work, counts, policy))


def _interleaved(posts_file: Path, chosen: set[str]) -> Iterator[pa.RecordBatch]:
    """The chosen posts, with and without images evenly mixed.

    A loader that guesses the images' type from the first rows fails when none of them has an image.
    """

    wanted = pa.array(sorted(chosen), pa.string())

    def stream(with_images: bool) -> Iterator[pa.RecordBatch]:
        for batch in pq.ParquetFile(posts_file).iter_batches(batch_size=64):
            has = pc.greater(pc.list_value_length(batch["images"]), 0)
            keep = pc.and_(pc.equal(has, with_images), pc.is_in(batch["post_id"], value_set=wanted))
            rows = batch.filter(keep)
            yield from (rows.slice(i, 1) for i in range(rows.num_rows))

    total = {True: 0, False: 0}
    for batch in pq.ParquetFile(posts_file).iter_batches(columns=["post_id", "images"], batch_size=64):
        for post_id, size in zip(
            batch["post_id"].to_pylist(), pc.list_value_length(batch["images"]).to_pylist(), strict=True
        ):
            total[size > 0] += post_id in chosen
    pictured, plain = stream(True), stream(False)
    done = 0
    waiting: list[pa.RecordBatch] = []
    for place in range(total[True] + total[False]):
        due = -(-(place + 1) * total[True] // (total[True] + total[False]))  # rounded up: the first row has one
        waiting.append(next(pictured if due > done else plain))
        done = due
        if len(waiting) == 64:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def _conversations(batch: pa.RecordBatch, outcomes: pa.Table, policy: Policy, profile: Profile) -> pa.RecordBatch:
    rows = []
    for post in apply_outcomes(pa.Table.from_batches([batch]), outcomes).posts.to_pylist():
        images = post["images"][: profile.max_images]
        prompt = render_prompt(
            post["title"], post["body"], policy, profile.prompt, profile.text_head, profile.text_tail
        )
        answer = render_answer(post["verdict"], post["category"], policy, post["rationale"])
        rows.append(
            {name: post[name] for name in SHAREGPT.names if name in post}
            | {
                "messages": to_messages(prompt, len(images), answer),
                "images": images,
                "elided": prompt.elided,
                "images_left_out": len(post["images"]) - len(images),
            }
        )
    return pa.RecordBatch.from_pylist(rows, schema=SHAREGPT)


def dataset_info(suffix: str, has_images: Mapping[str, bool]) -> dict[str, Any]:
    """LLaMA-Factory's description of the splits; `tags` is mandatory for role/content messages."""
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    return {
        f"xhs_{name}": {
            "file_name": f"{name}{suffix}",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", **({"images": "images"} if has_images[name] else {})},
            "tags": tags,
        }
        for name in SPLITS
    }


def _holds_images(file: Path) -> bool:
    lengths = (
        pc.list_value_length(b["images"]) for b in pq.ParquetFile(file).iter_batches(columns=["images"], batch_size=256)
    )
    return any((pc.max(length).as_py() or 0) > 0 for length in lengths)


def _export_json(work: Path) -> None:
    """The same splits as JSON beside a folder of images, for tools that read no embedded bytes."""
    folder = work / "json"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    has_images = {}
    for name in SPLITS:
        rows = []
        for batch in pq.ParquetFile(work / f"{name}.parquet").iter_batches(
            columns=["messages", "images"], batch_size=64
        ):
            for row in batch.to_pylist():
                for image in row["images"]:
                    (folder / "images" / image["path"]).write_bytes(image["bytes"])
                rows.append({"messages": row["messages"], "images": [f"images/{i['path']}" for i in row["images"]]})
        has_images[name] = any(row["images"] for row in rows)
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    write_json(folder / "dataset_info.json", dataset_info(".json", has_images))


def check_splits(work: Path, counts: Mapping[str, Any], policy: Policy) -> list[CheckOutcome]:
    """Read the splits back: groups, labels, placeholders, row counts, and how alike the rationales are."""
    groups: dict[str, set[str]] = {}
    bad_labels = bad_placeholders = rows = 0
    rationales: dict[str, list[str]] = {}
    for name in SPLITS:
        for row in _read(work / f"{name}.parquet"):
            rows += 1
            groups.setdefault(row["group_id"], set()).add(name)
            bad_labels += not policy.allows(row["verdict"], row["category"])
            placeholders = sum(message["content"].count(IMAGE_PLACEHOLDER) for message in row["messages"])
            bad_placeholders += placeholders != row["image_count"]
            if row["rationale"]:
                rationales.setdefault(row["category"], []).append(row["rationale"])
    crossing = sum(len(names) > 1 for names in groups.values())
    alike = {c: round(1 - len(set(texts)) / len(texts), 3) for c, texts in sorted(rationales.items())}
    too_alike = [c for c, share in alike.items() if share > MAX_DUPLICATE_RATIONALES]
    accounted = rows + counts["left_out_by_quota"] == counts["posts_in"]
    return [
        CheckOutcome("no_group_across_splits", crossing == 0, f"{crossing} of {len(groups)} groups lie in more than one split", {"groups_across": crossing}),
        CheckOutcome("labels_in_policy", bad_labels == 0, f"{bad_labels} of {rows} rows have a label that the policy does not allow"),
        CheckOutcome("placeholders_match_images", bad_placeholders == 0, f"{bad_placeholders} of {rows} rows have another number of placeholders than images"),
        CheckOutcome(
            "rows_accounted", accounted,
            f"{counts['posts_in']} posts in = {rows} rows + {counts['left_out_by_quota']} left out by quota",
        ),
        CheckOutcome(
            "rationales_differ", not too_alike,
            f"more than {MAX_DUPLICATE_RATIONALES:.0%} of the rationales repeat in: {', '.join(too_alike) or 'no category'}",
            {"duplicate_rationale_share": alike}, blocking=False,
        ),
    ]  # fmt: skip


def _read(file: Path) -> Iterable[dict[str, Any]]:
    columns = ["messages", "images", "group_id", "verdict", "category", "rationale"]
    for batch in pq.ParquetFile(file).iter_batches(columns=columns, batch_size=256):
        sizes = pc.list_value_length(batch["images"]).to_pylist()
        light = batch.select([c for c in columns if c != "images"]).to_pylist()
        yield from (row | {"image_count": size or 0} for row, size in zip(light, sizes, strict=True))


def groups_trained_and_tested(trained_on: Path, tested_on: Path) -> int:
    """How many duplicate groups of the test split in `tested_on` were in train or validation of the splits in `trained_on`.

    Zero by construction while both are one folder; after a new seed or new shares an older adapter may know the new test.
    """
    known = [
        pq.read_table(trained_on / f"{name}.parquet", columns=["group_id"])["group_id"]
        for name in ("train", "validation")
    ]
    tested = pq.read_table(tested_on / "test.parquet", columns=["group_id"])["group_id"]
    return len({group for column in known for group in column.to_pylist()} & set(tested.to_pylist()))


def label_table(work: Path) -> dict[str, Counter[str]]:
    """Posts per category in each split, read back from the files."""
    return {
        name: Counter(pq.read_table(work / f"{name}.parquet", columns=["category"])["category"].to_pylist())
        for name in SPLITS
    }
