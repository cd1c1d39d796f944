"""Writing the splits as sharegpt parquet that our training, LLaMA-Factory and ms-swift all load.

Each row is one conversation with its images embedded; the other columns say where its label comes from. Column names avoid
those that other trainers give a meaning to (label, channel, objects, tools, solution, margin).
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xhs_pipeline.appeals.evidence import as_judged, contents, landing
from xhs_pipeline.appeals.outcomes import apply_outcomes, follow_duplicates, label_provenance, standing
from xhs_pipeline.artifacts import Built, write_json
from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.schema import QUARANTINE, UNIQUE_POSTS, kept_posts, open_parquet, unique_files, write_table
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.balance import Balance, balance
from xhs_pipeline.splits.checks import check_splits
from xhs_pipeline.splits.conversation import render_answer, render_prompt, to_messages
from xhs_pipeline.splits.exports import dataset_info, export_json, holds_images, write_exports
from xhs_pipeline.splits.grouping import SPLITS, split_of
from xhs_pipeline.splits.kept_out import Golden, beyond_policy, read_golden
from xhs_pipeline.splits.suspects import left_out, suspects

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
# elided: characters left out of the middle of a long body or text in images; images_left_out: images past the profile's
# max_images; label_weight: what the post counts in the loss, below 1 where its label is suspected (train only). golden: the post is
# in the golden set, and all but its label stands here as it was frozen (test only). label_provenance: see there.
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
        pa.field("golden", pa.bool_()),
        pa.field("label_provenance", pa.string()),
        UNIQUE_POSTS.field("schema_version"),
    ]
)
_LIGHT = ["post_id", "group_id", "founders", "verdict", "category", "label_source"]


def write_splits(
    unique: Path,
    outcomes_file: Path,
    issues_file: Path,
    policy: Policy,
    profile: Profile,
    work: Path,
    golden_file: Path | None = None,
) -> Built:
    """Write train / validation / calibration / test.parquet, quarantine.parquet and dataset_info.json into `work`, from the
    folder of unique_posts.

    The verdict, category and severity that reviewers decided on appeal or audit replace the post's own label, with label_source
    "appeal" or "audit", unless another text or other images were judged than the post has now. Of a set of
    duplicates that was set aside for its contradicting labels, the post that the latest appeal decided comes back.
    Posts with a suspected label (LABEL_ISSUES in `issues_file`) stay in train, are left out of it and listed in
    quarantine.parquet, or get a smaller label_weight there, as the profile's label_issues says.
    The posts of golden.parquet (`golden_file`; None: there is no golden set) stand in test with the content that was frozen,
    whatever became of them in unique_posts, and every group that touches one is in test too.
    Streams the posts; memory holds ids and labels of all posts, and one batch of images. Raises ValueError when nothing is
    left to train on, and when the profile wants text in images and some weeks were cleaned without reading it.
    """
    kept_for, files = kept_posts(unique), unique_files(unique)
    everything = pq.read_table(outcomes_file)
    set_of = _conflict_sets(unique / "label_conflicts.parquet")
    found = contents(files, landing(everything, kept_for))
    back = _brought_back(set_of, as_judged(everything, found, kept_for, profile.max_images))
    if profile.ocr:
        _require_ocr(files)
    frozen, golden = [golden_file] if golden_file else [], read_golden(golden_file, files, kept_for | set_of)
    stands_for = {**kept_for, **back, **golden.stands_for}
    found |= contents(frozen, landing(everything, stands_for))
    decided = as_judged(everything, found, stands_for, profile.max_images)
    outcomes = follow_duplicates(decided, stands_for)
    gone = (set(set_of) - set(back.values())) | set(golden.stands_for)
    others = _light(files)
    others = others.filter(pc.invert(pc.is_in(others["post_id"], value_set=pa.array(sorted(gone), pa.string()))))
    applied = apply_outcomes(pa.concat_tables([_light(frozen), others]), outcomes)
    light = applied.posts.to_pylist()
    if not light:
        raise ValueError(
            f"{unique}: no posts; see the quarantine reasons of raw_posts and clean_posts for where they went"
        )
    beyond = beyond_policy(golden, light, policy)
    split = {row["post_id"]: _split(row, golden, profile) for row in light}
    in_train = [row for row in light if split[row["post_id"]] == "train"]
    suspected = suspects(pq.read_table(issues_file), in_train, policy)
    excluded = suspected if profile.label_issues == "exclude" else {}
    train = [(row["post_id"], row[profile.balance_by]) for row in in_train if row["post_id"] not in excluded]
    balanced = _balanced(train, policy, profile)
    if not balanced.kept:
        raise ValueError(
            f"{unique}: {len(light)} posts leave nothing to train on; add posts, or lower the shares or quotas"
        )

    weighed_down = balanced.kept & set(suspected) if profile.label_issues == "down_weight" else set()
    weights = dict.fromkeys(weighed_down, profile.label_issue_weight)
    write_table(work / "quarantine.parquet", QUARANTINE, [left_out(excluded.values()), beyond])
    judged = set(golden.posts) - set(beyond["post_id"].to_pylist())
    illustrated = (_illustrated(files) - set(golden.posts)) | _illustrated(frozen)
    counts: dict[str, Any] = {}
    for name in SPLITS:
        chosen = {p for p, s in split.items() if s == name and (s != "train" or p in balanced.kept)}
        rows = _interleaved([(frozen, judged & chosen), (files, chosen - set(golden.posts))], illustrated)
        counts[name] = write_table(
            work / f"{name}.parquet",
            SHAREGPT,
            (_conversations(batch, outcomes, weights, golden, policy, profile) for batch in rows),
        )
    has_images = {name: holds_images(work / f"{name}.parquet") for name in SPLITS}
    write_json(work / "dataset_info.json", dataset_info(".parquet", has_images))
    write_exports(profile, work)
    if profile.json_export:
        export_json(work)
    counts |= {
        "posts_in": len(light),
        "left_out_by_quota": len(train) - len(balanced.kept),
        "left_out_as_label_issue": pq.read_metadata(work / "quarantine.parquet").num_rows - beyond.num_rows,
        "golden_left_out": beyond.num_rows,
        "golden_posts": len(judged),
        "label_issues_in_train": len(suspected),
        "quota_asked": balanced.asked,
        "quota_found": balanced.found,
        "decided_on_appeal": applied.named,
        "corrected_on_appeal": applied.changed,
        "appeals_without_post": applied.missing,
        "appeals_on_edited_posts": everything.num_rows - decided.num_rows,
        "brought_back_on_appeal": len(set(back.values()) - set(golden.stands_for)),
    }
    return Built(counts, check_splits(work, counts, golden, policy))


def _split(row: Mapping[str, Any], golden: Golden, profile: Profile) -> str:
    if row["post_id"] in golden.posts or row["group_id"] in golden.groups:
        return "test"
    return split_of(row["founders"], profile)


def _balanced(train: Sequence[tuple[str, str]], policy: Policy, profile: Profile) -> Balance:
    labels = policy.category_names if profile.balance_by == "category" else policy.verdict_ids
    quotas = {policy.verdict_id(label) or label: quota for label, quota in profile.train_quotas.items()}
    return balance(train, quotas, labels, profile.seed)


def _require_ocr(files: Sequence[Path]) -> None:
    for file in files:
        posts = pq.read_table(file, columns=["week", "qr_codes"])
        unread = pc.unique(posts.filter(pc.is_null(posts["qr_codes"]))["week"]).to_pylist()
        if unread:
            raise ValueError(
                f"{file}: ocr is true, but the images of week {', '.join(sorted(unread))} were not read; "
                "materialise clean_posts of these weeks with ocr: true, then unique_posts"
            )


def _light(files: Sequence[Path]) -> pa.Table:
    return pa.concat_tables(
        [UNIQUE_POSTS.empty_table().select(_LIGHT), *(pq.read_table(file, columns=_LIGHT) for file in files)]
    )


def _conflict_sets(conflicts_file: Path) -> dict[str, str]:
    """Of every post among the label conflicts, the best post of its duplicate set."""
    return {row["post_id"]: row["set_id"] for row in pq.read_table(conflicts_file).to_pylist()}


def _brought_back(set_of: Mapping[str, str], outcomes: pa.Table) -> dict[str, str]:
    """Of every appealed post among the label conflicts, the one of its duplicate set whose outcome stands, if any does."""
    appealed: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in outcomes.to_pylist():
        if row["post_id"] in set_of:
            appealed[set_of[row["post_id"]]].append(row)
    stands = [(rows, standing(rows)) for rows in appealed.values()]
    return {row["post_id"]: latest["post_id"] for rows, latest in stands if latest for row in rows}


def _illustrated(files: Sequence[Path]) -> set[str]:
    """The ids of the posts that have images, without reading an image."""
    posts = (open_parquet(file).read(columns=["post_id", "images.list.element.path"]) for file in files)
    return {
        post_id
        for table in posts
        for post_id in table.filter(pc.greater(pc.list_value_length(table["images"]), 0))["post_id"].to_pylist()
    }


def _interleaved(sources: Sequence[tuple[Sequence[Path], set[str]]], illustrated: set[str]) -> Iterator[pa.RecordBatch]:
    """The posts chosen of some files each, with and without images evenly mixed; `illustrated` are the ids of all with images.

    A loader that guesses the images' type from the first rows fails when none of them has an image.
    """
    arrays = [pa.array(sorted(chosen), pa.string()) for _, chosen in sources]
    wanted = [(file, array) for (files, _), array in zip(sources, arrays, strict=True) for file in files]

    def stream(with_images: bool) -> Iterator[pa.RecordBatch]:
        for file, chosen in wanted:
            for batch in open_parquet(file).iter_batches(batch_size=64):
                has = pc.greater(pc.list_value_length(batch["images"]), 0)
                keep = pc.and_(pc.equal(has, with_images), pc.is_in(batch["post_id"], value_set=chosen))
                rows = batch.select(UNIQUE_POSTS.names).filter(keep)
                yield from (rows.slice(i, 1) for i in range(rows.num_rows))

    pictured, plain = stream(True), stream(False)
    count = sum(len(chosen) for _, chosen in sources)
    done, with_images = 0, sum(len(chosen & illustrated) for _, chosen in sources)
    waiting: list[pa.RecordBatch] = []
    for place in range(count):
        due = -(-(place + 1) * with_images // count)  # rounded up: the first row has one
        waiting.append(next(pictured if due > done else plain))
        done = due
        if len(waiting) == 64:
            yield pa.concat_batches(waiting)
            waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


def _conversations(
    batch: pa.RecordBatch,
    outcomes: pa.Table,
    weights: Mapping[str, float],
    golden: Golden,
    policy: Policy,
    profile: Profile,
) -> pa.RecordBatch:
    rows = []
    decided = {row["post_id"]: row for row in outcomes.to_pylist()}
    for post in apply_outcomes(pa.Table.from_batches([batch]), outcomes).posts.to_pylist():
        if is_golden := post["post_id"] in golden.posts:
            post |= golden.posts[post["post_id"]] | {"severity": policy.severity(post["category"])}
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
                "golden": is_golden,
                "label_provenance": label_provenance(post["label_source"], decided.get(post["post_id"])),
            }
        )
    return pa.RecordBatch.from_pylist(rows, schema=SHAREGPT)


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
