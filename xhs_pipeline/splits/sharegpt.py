"""Writing the splits as sharegpt parquet that our training, LLaMA-Factory and ms-swift all load.

Each row is one conversation with its images embedded; the other columns say where its label comes from. Column names avoid
those that other trainers give a meaning to (label, channel, objects, tools, solution, margin).
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.appeals.outcomes import apply_outcomes, follow_duplicates
from xhs_pipeline.artifacts import Built, CheckOutcome, write_json
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import QUARANTINE, UNIQUE_POSTS, write_table
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.balance import balance
from xhs_pipeline.splits.conversation import IMAGE_PLACEHOLDER, render_answer, render_prompt, to_messages
from xhs_pipeline.splits.exports import write_exports
from xhs_pipeline.splits.grouping import SPLITS, split_of
from xhs_pipeline.splits.suspects import left_out, suspects

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
# elided: characters left out of the middle of a long body or text in images; images_left_out: images past the profile's
# max_images; label_weight: what the post counts in the loss, below 1 where its label is suspected (train only).
_OF_THE_POST = (
    "images", "post_id", "group_id", "founders", "week", "title", "body", "verdict", "category", "severity", "rationale",
    "label_source", "author_hash", "ocr_text", "qr_codes",
)  # fmt: skip
SHAREGPT = pa.schema(
    [
        pa.field("messages", pa.list_(MESSAGE)),
        *(UNIQUE_POSTS.field(name) for name in _OF_THE_POST),
        pa.field("elided", pa.int32()),
        pa.field("images_left_out", pa.int32()),
        pa.field("label_weight", pa.float32()),
        UNIQUE_POSTS.field("schema_version"),
    ]
)
_LIGHT = ["post_id", "founders", "verdict", "category", "label_source"]
MAX_DUPLICATE_RATIONALES = 0.3  # near-identical reasons are known to collapse the quality of the analysis line


def write_splits(
    unique: Path, outcomes_file: Path, issues_file: Path, policy: Policy, profile: Profile, work: Path
) -> Built:
    """Write train / validation / calibration / test.parquet, quarantine.parquet and dataset_info.json into `work`, from the
    folder of unique_posts.

    The verdict, category and severity of an appeal's outcome replace the post's own label, with label_source "appeal". Of a
    set of duplicates that was set aside for its contradicting labels, the post that the latest appeal decided comes back.
    Posts with a suspected label (LABEL_ISSUES in `issues_file`) stay in train, are left out of it and listed in
    quarantine.parquet, or get a smaller label_weight there, as the profile's label_issues says.
    Streams the posts; memory holds ids and labels of all posts, and one batch of images. Raises ValueError when nothing is
    left to train on, and when the profile wants text in images and some weeks were cleaned without reading it.
    """
    removed = pq.read_table(unique / "removed.parquet", columns=["post_id", "kept_post_id"]).to_pylist()
    kept_for = {row["post_id"]: row["kept_post_id"] for row in removed if row["kept_post_id"]}
    decided = pq.read_table(outcomes_file)
    back = _brought_back(unique / "label_conflicts.parquet", decided)
    outcomes = follow_duplicates(decided, kept_for | back)
    files = [*sorted((unique / "posts").glob("*.parquet")), *sorted((unique / "set_aside").glob("*.parquet"))]
    if profile.ocr:
        _require_ocr(files)
    posts = pa.concat_tables(
        [UNIQUE_POSTS.empty_table().select(_LIGHT), *(pq.read_table(f, columns=_LIGHT) for f in files)]
    )
    conflicting = pq.read_table(unique / "label_conflicts.parquet", columns=["post_id"])["post_id"].to_pylist()
    aside = pa.array(sorted(set(conflicting) - set(back.values())), pa.string())
    applied = apply_outcomes(posts.filter(pc.invert(pc.is_in(posts["post_id"], value_set=aside))), outcomes)
    light = applied.posts.to_pylist()
    if not light:
        raise ValueError(
            f"{unique}: no posts; see the quarantine reasons of raw_posts and clean_posts for where they went"
        )
    split = {row["post_id"]: split_of(row["founders"], profile) for row in light}
    in_train = [row for row in light if split[row["post_id"]] == "train"]
    suspected = suspects(pq.read_table(issues_file), in_train, policy)
    excluded = suspected if profile.label_issues == "exclude" else {}
    train = [(row["post_id"], row[profile.balance_by]) for row in in_train if row["post_id"] not in excluded]
    labels = policy.category_names if profile.balance_by == "category" else policy.verdict_ids
    quotas = {policy.verdict_id(label) or label: quota for label, quota in profile.train_quotas.items()}
    balanced = balance(train, quotas, labels, profile.seed)

    if not balanced.kept:
        raise ValueError(
            f"{unique}: {len(light)} posts leave nothing to train on; add posts, or lower the shares or quotas"
        )

    weighed_down = balanced.kept & set(suspected) if profile.label_issues == "down_weight" else set()
    weights = dict.fromkeys(weighed_down, profile.label_issue_weight)
    write_table(work / "quarantine.parquet", QUARANTINE, [left_out(excluded.values())])
    illustrated = _illustrated(files)
    counts: dict[str, Any] = {}
    for name in SPLITS:
        chosen = {p for p, s in split.items() if s == name and (s != "train" or p in balanced.kept)}
        rows = _interleaved(files, chosen, illustrated)
        counts[name] = write_table(
            work / f"{name}.parquet",
            SHAREGPT,
            (_conversations(batch, outcomes, weights, policy, profile) for batch in rows),
        )
    has_images = {name: _holds_images(work / f"{name}.parquet") for name in SPLITS}
    write_json(work / "dataset_info.json", dataset_info(".parquet", has_images))
    write_exports(profile, work)
    if profile.json_export:
        _export_json(work)
    counts |= {
        "posts_in": len(light),
        "left_out_by_quota": len(train) - len(balanced.kept),
        "left_out_as_label_issue": pq.read_metadata(work / "quarantine.parquet").num_rows,
        "label_issues_in_train": len(suspected),
        "quota_asked": balanced.asked,
        "quota_found": balanced.found,
        "decided_on_appeal": applied.named,
        "corrected_on_appeal": applied.changed,
        "appeals_without_post": applied.missing,
        "brought_back_on_appeal": len(set(back.values())),
    }
    return Built(counts, check_splits(work, counts, policy))


def _require_ocr(files: Sequence[Path]) -> None:
    for file in files:
        posts = pq.read_table(file, columns=["week", "qr_codes"])
        unread = pc.unique(posts.filter(pc.is_null(posts["qr_codes"]))["week"]).to_pylist()
        if unread:
            raise ValueError(
                f"{file}: ocr is true, but the images of week {', '.join(sorted(unread))} were not read; "
                "materialise clean_posts of these weeks with ocr: true, then unique_posts"
            )


def _brought_back(conflicts_file: Path, outcomes: pa.Table) -> dict[str, str]:
    """Of every appealed post among the label conflicts, the one of its duplicate set that the latest outcome names."""
    set_of = {row["post_id"]: row["set_id"] for row in pq.read_table(conflicts_file).to_pylist()}
    appealed = [row["post_id"] for row in sorted(outcomes.to_pylist(), key=lambda row: row["event_id"])]
    latest = {set_of[post_id]: post_id for post_id in appealed if post_id in set_of}
    return {post_id: latest[set_of[post_id]] for post_id in appealed if post_id in set_of}


def _illustrated(files: Sequence[Path]) -> set[str]:
    """The ids of the posts that have images, without reading an image."""
    posts = (pq.ParquetFile(file).read(columns=["post_id", "images.list.element.path"]) for file in files)
    return {
        post_id
        for table in posts
        for post_id in table.filter(pc.greater(pc.list_value_length(table["images"]), 0))["post_id"].to_pylist()
    }


def _interleaved(files: Sequence[Path], chosen: set[str], illustrated: set[str]) -> Iterator[pa.RecordBatch]:
    """The chosen posts, with and without images evenly mixed; `illustrated` are the ids of all that have some.

    A loader that guesses the images' type from the first rows fails when none of them has an image.
    """

    wanted = pa.array(sorted(chosen), pa.string())

    def stream(with_images: bool) -> Iterator[pa.RecordBatch]:
        for batch in (batch for file in files for batch in pq.ParquetFile(file).iter_batches(batch_size=64)):
            has = pc.greater(pc.list_value_length(batch["images"]), 0)
            keep = pc.and_(pc.equal(has, with_images), pc.is_in(batch["post_id"], value_set=wanted))
            rows = batch.filter(keep)
            yield from (rows.slice(i, 1) for i in range(rows.num_rows))

    pictured, plain = stream(True), stream(False)
    done, with_images = 0, len(chosen & illustrated)
    waiting: list[pa.RecordBatch] = []
    for place in range(len(chosen)):
        due = -(-(place + 1) * with_images // len(chosen))  # rounded up: the first row has one
        waiting.append(next(pictured if due > done else plain))
        done = due
        if len(waiting) == 64:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def _conversations(
    batch: pa.RecordBatch, outcomes: pa.Table, weights: Mapping[str, float], policy: Policy, profile: Profile
) -> pa.RecordBatch:
    rows = []
    for post in apply_outcomes(pa.Table.from_batches([batch]), outcomes).posts.to_pylist():
        images = post["images"][: profile.max_images]
        if not profile.ocr:
            post |= {"ocr_text": None, "qr_codes": None}
        prompt = render_prompt(
            post["title"], post["body"], policy, profile.prompt, profile.text_head, profile.text_tail,
            post["ocr_text"], post["qr_codes"],
        )  # fmt: skip
        answer = render_answer(post["verdict"], post["category"], policy, post["rationale"])
        rows.append(
            {name: post[name] for name in SHAREGPT.names if name in post}
            | {
                "messages": to_messages(prompt, len(images), answer),
                "images": images,
                "elided": prompt.elided,
                "images_left_out": len(post["images"]) - len(images),
                "label_weight": weights.get(post["post_id"], 1.0),
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
    quota, issues = counts["left_out_by_quota"], counts["left_out_as_label_issue"]
    return [
        CheckOutcome("no_group_across_splits", crossing == 0, f"{crossing} of {len(groups)} groups lie in more than one split", {"groups_across": crossing}),
        CheckOutcome("labels_in_policy", bad_labels == 0, f"{bad_labels} of {rows} rows have a label that the policy does not allow"),
        CheckOutcome("placeholders_match_images", bad_placeholders == 0, f"{bad_placeholders} of {rows} rows have another number of placeholders than images"),
        CheckOutcome(
            "rows_accounted", rows + quota + issues == counts["posts_in"],
            f"{counts['posts_in']} posts in = {rows} rows + {quota} left out by quota + {issues} as label issues",
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
    """How many duplicate groups of the test split in `tested_on` had a part in train or validation of the splits in `trained_on`.

    Zero by construction while both are one folder. An older adapter may know the new test after a new seed or new shares, and
    where a later post connected a group of the test split with one that was trained on: founders tell, group_ids change.
    """
    known = founders_trained_on(trained_on)
    tested = _columns(tested_on / "test.parquet", "group_id", "founders").to_pylist()
    return len({row["group_id"] for row in tested if not known.isdisjoint(row["founders"])})


def founders_trained_on(splits: Path) -> set[str]:
    """The founders of every duplicate group that trained a model, or chose its checkpoint, on these splits."""
    return {
        founder
        for name in ("train", "validation")
        for founder in pc.list_flatten(_columns(splits / f"{name}.parquet", "founders")["founders"]).to_pylist()
    }


def _columns(file: Path, *names: str) -> pa.Table:
    return pq.read_table(file, columns=list(names))


def label_table(work: Path) -> dict[str, Counter[str]]:
    """Posts per category in each split, read back from the files."""
    return {
        name: Counter(pq.read_table(work / f"{name}.parquet", columns=["category"])["category"].to_pylist())
        for name in SPLITS
    }
