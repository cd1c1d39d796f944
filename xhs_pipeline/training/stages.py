"""The model stages as functions over folders and JSON values, so that each runs in a process of its own.

Each reads what an earlier stage wrote, calls the recipe, and writes into the folder it is given. No Dagster, no versions.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import write_json
from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.schema import QUARANTINE, open_parquet, write_table
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.conversation import prompt_digest
from xhs_pipeline.vlm.batches import Example, Unfit, fit, quiet_libraries
from xhs_pipeline.vlm.card import ModelCard, write_card
from xhs_pipeline.vlm.scoring import Judgement, judge_examples

# How each record is shown to the model: tokens of prompt and answer, images and the area they are resized within; `elided`
# (characters) is from the splits. A reason says why it is not shown at all.
BUDGET = pa.schema(
    [
        ("post_id", pa.string()),
        ("split", pa.string()),
        ("tokens", pa.int32()),
        ("answer_tokens", pa.int32()),
        ("images", pa.int32()),
        ("images_left_out", pa.int32()),
        ("max_pixels", pa.int32()),
        ("smaller_images", pa.bool_()),
        ("elided", pa.int32()),
        ("reason", pa.string()),
    ]
)


def fitted(
    file: Path, processor: Any, profile: Profile, limit: int | None = None
) -> Iterator[tuple[dict[str, Any], Example | Unfit]]:
    """Each row of a split (without its images) and what the model is shown of it, within the profile's max_length.

    An example weighs what the splits say its label is worth.
    """
    for row in _rows(file, limit):
        images = [image["bytes"] for image in row.pop("images")]
        messages = row.pop("messages")
        found = fit(processor, row["post_id"], messages, images, profile.max_length, profile.answer_length)
        yield row, found if isinstance(found, Unfit) else replace(found, weight=row["label_weight"])


def load_examples(
    file: Path, processor: Any, profile: Profile, limit: int | None = None
) -> tuple[list[Example], list[Unfit]]:
    """Tokenise a split (its first `limit` rows) in memory; what cannot fit the profile's max_length comes back named."""
    found = [shown for _, shown in fitted(file, processor, profile, limit)]
    return [e for e in found if isinstance(e, Example)], [u for u in found if isinstance(u, Unfit)]


def _rows(file: Path, limit: int | None) -> Iterator[dict[str, Any]]:
    left = limit
    columns = ["post_id", "messages", "images", "category", "elided", "label_weight"]
    for batch in open_parquet(file).iter_batches(columns=columns, batch_size=64):
        rows = batch.to_pylist()[:left]
        yield from rows
        left = None if left is None else left - len(rows)


def build_base(
    splits: str, profile: dict[str, Any], out: str, log: Callable[[str], None], files: dict[str, str] | None = None
) -> dict[str, Any]:
    """base_model: build the tiny model, or find the checkpoint that the profile names, check it and record its file hashes.

    `files` are the hashes of a local folder where the caller has them already. Raises CheckpointError naming all that is wrong.
    """
    quiet_libraries()
    from xhs_pipeline.vlm.base import file_hashes, local_folder, resolve_checkpoint
    from xhs_pipeline.vlm.layout import CheckpointError, check_checkpoint
    from xhs_pipeline.vlm.processor import load_processor

    settings = Profile(**profile)
    folder = resolve_checkpoint(settings)
    counts: dict[str, Any] = {}
    note = hub = ""
    if folder is None:
        from xhs_pipeline.vlm.tiny import NOTE, build_tiny

        note = NOTE

        texts = [
            f"{row['title']}\n{row['body']}\n{row['ocr_text'] or ''}".strip()
            for row in pq.read_table(Path(splits) / "train.parquet", columns=["title", "body", "ocr_text"]).to_pylist()
        ]
        counts = build_tiny(Path(out) / "model", texts, load_policy(), settings, log)
        folder = Path(out) / "model"
    elif local_folder(settings) is None:
        hub = settings.base_hub
    problems, shards = [], []
    try:
        shards = check_checkpoint(folder)
    except CheckpointError as error:
        problems += error.problems
    try:
        processor = load_processor(folder, settings.min_pixels, settings.max_pixels)
    except CheckpointError as error:
        problems += error.problems
    if problems:
        raise CheckpointError(list(dict.fromkeys(problems)))
    inside = folder.is_relative_to(out)
    write_json(
        Path(out) / "checkpoint.json",
        {
            "folder": str(folder.relative_to(out)) if inside else str(folder),
            "name": settings.base_model,
            "hub": hub,
            "revision": settings.base_revision if hub else "",
            "note": note,
            "min_pixels": settings.min_pixels,
            "max_pixels": settings.max_pixels,
            "files": files or file_hashes(folder),
            "prompt": prompt_digest(load_policy(), settings.prompt, processor.chat_template),
        },
    )
    return counts | {"vocabulary": len(processor.tokenizer), "weight_files": len(shards)}


def train_adapter(
    base: str, splits: str, profile: dict[str, Any], work: str, log: Callable[[str], None]
) -> dict[str, Any]:
    """adapter: train on the train split, keep the checkpoint with the best macro-F1 of the verdict on the validation split.

    Writes the peft adapter, history.json, budget.parquet, quarantine.parquet and the folder runs (TensorBoard) into `work`;
    `work/.training` holds what a resume needs. Raises ValueError when nothing is left to train on.
    """
    quiet_libraries()
    from xhs_pipeline.training.launch import launch
    from xhs_pipeline.vlm.base import open_base

    settings, out = Profile(**profile), Path(work)
    training = out / ".training"
    training.mkdir(exist_ok=True)
    checkpoint, processor = open_base(Path(base), settings)
    decisions = [
        *_prepare(Path(splits), "train", processor, settings, training),
        *_prepare(Path(splits), "validation", processor, settings, training),
    ]
    counts = _write_budget(out, decisions)
    log(
        f"adapter: {counts['fitting']} records to train on, {counts['set_aside']} set aside; "
        f"{counts['smaller_images']} with smaller images, {counts['fewer_images']} with fewer"
    )
    if not counts["fitting"]:
        file = Path(splits) / "train.parquet"
        raise ValueError(
            f"{file}: 0 records to train on and {counts['set_aside']} set aside; raise max_length in the profile"
        )
    arguments = {"base": str(checkpoint), "splits": splits, "profile": profile, "training": str(training)}
    result = launch("xhs_pipeline.training.stages:fine_tune", arguments, settings, training, log)
    for file in (training / "adapter").iterdir():
        shutil.copy(file, out / file.name)
    shutil.rmtree(out / "runs", ignore_errors=True)
    shutil.copytree(training / "runs", out / "runs")
    write_json(out / "history.json", {name: result[name] for name in ("history", "adapted_modules")})
    shutil.rmtree(training)
    if result["not_reached"]:
        log(f"adapter: the run ended before {result['not_reached']} records were seen once")
    return {name: value for name, value in result.items() if name != "history"} | counts


def fine_tune(
    base: str, splits: str, profile: dict[str, Any], training: str, log: Callable[[str], None]
) -> dict[str, Any]:
    """One process of the training: the prepared records in `training`, judged on the validation split as it goes."""
    quiet_libraries()
    from xhs_pipeline.training.qlora import train
    from xhs_pipeline.training.records import Records
    from xhs_pipeline.vlm.processor import load_processor

    settings, policy, folder = Profile(**profile), load_policy(), Path(training)
    processor = load_processor(Path(base), settings.min_pixels, settings.max_pixels)
    validation = Records(folder / "validation.arrow")
    labels = pq.read_table(Path(splits) / "validation.parquet", columns=["post_id", "verdict", "category"]).to_pylist()
    truth = {row["post_id"]: row for row in labels}

    def validate(model: Any) -> dict[str, float]:
        return macro_f1(truth, list(judge_examples(model, processor, policy, validation, settings.score_batch_size)))

    examples = Records(folder / "train.arrow")
    return train(Path(base), examples, validate if len(validation) else None, processor, settings, folder, log)


def _prepare(splits: Path, split: str, processor: Any, profile: Profile, training: Path) -> list[dict[str, Any]]:
    """Write what the model is shown of a split to `training/<split>.arrow`; return the decision on each record."""
    from xhs_pipeline.training.records import write_records

    file = splits / f"{split}.parquet"
    weights = _category_weights(file, profile) if split == "train" else {}
    decisions = []

    def shown() -> Iterator[Example]:
        for row, found in fitted(file, processor, profile):
            decision = {"post_id": row["post_id"], "split": split, "elided": row["elided"]}
            if isinstance(found, Unfit):
                decisions.append(decision | {"reason": found.reason, "detail": found.detail})
                continue
            shrunk = bool(found.images) and found.max_pixels < profile.max_pixels
            figures = {"tokens": len(found), "answer_tokens": len(found.answer), "images": len(found.images)}
            limits = {"max_pixels": found.max_pixels, "images_left_out": found.images_left_out}
            decisions.append(decision | figures | limits | {"smaller_images": shrunk})
            yield replace(found, weight=found.weight * weights.get(row["category"], 1.0))

    write_records(training / f"{split}.arrow", shown())
    return decisions


def _category_weights(file: Path, profile: Profile) -> dict[str, float]:
    """Weight of a record of each category: n / (categories * n_category), as scikit-learn's class_weight="balanced"."""
    if profile.class_weights == "none":
        return {}
    found = Counter(pq.read_table(file, columns=["category"])["category"].to_pylist())
    return {category: found.total() / (len(found) * count) for category, count in found.items()}


def _write_budget(out: Path, decisions: list[dict[str, Any]]) -> dict[str, int]:
    """Write budget.parquet (every record) and quarantine.parquet (of the train split); return their counts as read back."""
    write_table(out / "budget.parquet", BUDGET, [pa.RecordBatch.from_pylist(decisions, schema=BUDGET)])
    unfit = [
        {"post_id": d["post_id"], "stage": "adapter", "reason": d["reason"], "detail": d["detail"]}
        for d in decisions
        if "reason" in d and d["split"] == "train"
    ]
    write_table(out / "quarantine.parquet", QUARANTINE, [pa.RecordBatch.from_pylist(unfit, schema=QUARANTINE)])
    rows = pq.read_table(out / "budget.parquet").to_pylist()
    kept = [row for row in rows if row["reason"] is None]
    return {
        "fitting": sum(row["split"] == "train" for row in kept),
        "set_aside": pq.read_metadata(out / "quarantine.parquet").num_rows,
        "smaller_images": sum(row["smaller_images"] for row in kept),
        "fewer_images": sum(row["images_left_out"] > 0 for row in kept),
        "validation_records": sum(row["split"] == "validation" for row in kept),
        "validation_set_aside": sum(row["split"] == "validation" for row in rows if row["reason"]),
    }


def macro_f1(truth: Mapping[str, Mapping[str, str]], judged: Sequence[Judgement]) -> dict[str, float]:
    """Macro-F1 of the verdicts and of the categories, over the labels that occur (scikit-learn's f1_score)."""
    from sklearn.metrics import f1_score

    scores = {}
    for name in ("verdict", "category"):
        true = [truth[j.post_id][name] for j in judged]
        given = [getattr(j, name) for j in judged]
        score = f1_score(true, given, labels=sorted(set(true)), average="macro", zero_division=0)
        scores[f"{name}_macro_f1"] = float(score)
    return scores


def merge_adapter(
    base: str, adapter: str, splits: str, profile: dict[str, Any], out: str, log: Callable[[str], None]
) -> dict[str, Any]:
    """merged_model: merge, and prove it on posts of the splits. Raises ValueError when the adapter does not fit the base."""
    quiet_libraries()
    from xhs_pipeline.training.adapters import read_adapter
    from xhs_pipeline.training.merge import merge
    from xhs_pipeline.training.proof import compare
    from xhs_pipeline.vlm.base import open_base

    settings, policy = Profile(**profile), load_policy()
    checkpoint, processor = open_base(Path(base), settings)
    found = read_adapter(Path(adapter), checkpoint)
    probe, probe_from = probe_posts(Path(splits), processor, settings)
    log(f"merged_model: probe posts: {probe_from}")
    counts = merge(checkpoint, found, settings.min_pixels, settings.max_pixels, Path(out), log)
    counts |= compare(checkpoint, Path(adapter), Path(out), probe, processor, policy, settings, log)
    prompt = prompt_digest(policy, settings.prompt, processor.chat_template)
    write_card(Path(out), ModelCard(settings, policy, prompt))
    return counts | {"probe_from": probe_from}


def probe_posts(splits: Path, processor: Any, profile: Profile) -> tuple[list[Example], str]:
    """Posts to compare two forms of one model on: validation's, and where those are too few, others', since any post will do.

    Returns them with how many came from which split.
    """
    from xhs_pipeline.training.proof import PROBE_POSTS

    posts: list[Example] = []
    taken = []
    for name in ("validation", "calibration", "train", "test"):
        examples, _ = load_examples(splits / f"{name}.parquet", processor, profile, limit=PROBE_POSTS - len(posts))
        posts += examples
        taken += [f"{len(examples)} of {name}"] if examples or name == "validation" else []
    return posts, ", ".join(taken)
