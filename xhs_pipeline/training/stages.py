"""The model stages as functions over folders and JSON values, so that each runs in a process of its own.

Each reads what an earlier stage wrote, calls the recipe, and writes into the folder it is given. No Dagster, no versions.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import write_json
from xhs_pipeline.judgement.judge import MODEL_CARD
from xhs_pipeline.judgement.scoring import Judgement, judge_examples
from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.schema import QUARANTINE, write_table
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.conversation import prompt_digest
from xhs_pipeline.vlm.batches import Example, Unfit, fit, quiet_libraries


def load_examples(
    file: Path, processor: Any, profile: Profile, limit: int | None = None
) -> tuple[list[Example], list[Unfit]]:
    """Tokenise a split (its first `limit` rows), fitted to the profile's max_length; what cannot fit comes back named."""
    examples: list[Example] = []
    unfit: list[Unfit] = []
    for row in _rows(file, limit):
        found = fit(processor, row["post_id"], row["messages"], [i["bytes"] for i in row["images"]], profile.max_length)
        if isinstance(found, Unfit):
            unfit.append(found)
        else:
            examples.append(found)
    return examples, unfit


def _rows(file: Path, limit: int | None) -> Iterator[dict[str, Any]]:
    left = limit
    for batch in pq.ParquetFile(file).iter_batches(columns=["post_id", "messages", "images"], batch_size=64):
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
            f"{row['title']}\n{row['body']}".strip()
            for row in pq.read_table(Path(splits) / "train.parquet", columns=["title", "body"]).to_pylist()
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
    """adapter: train on the train split, keep the checkpoint with the best macro-F1 on the validation split.

    Writes the peft adapter, history.json and quarantine.parquet into `work`; `work/.training` holds what a resume needs.
    Raises ValueError when a record is neither trained nor quarantined, or when nothing is left to train on.
    """
    quiet_libraries()
    from xhs_pipeline.training.qlora import train
    from xhs_pipeline.vlm.base import open_base

    settings, policy, out = Profile(**profile), load_policy(), Path(work)
    checkpoint, processor = open_base(Path(base), settings)
    train_file, validation_file = Path(splits) / "train.parquet", Path(splits) / "validation.parquet"
    examples, unfit = load_examples(train_file, processor, settings)
    rows = pq.read_metadata(train_file).num_rows
    if rows != len(examples) + len(unfit) or not examples:
        raise ValueError(
            f"{train_file}: {rows} records, {len(examples)} to train on and {len(unfit)} set aside; expected all, and at least one"
        )
    log(f"adapter: {len(examples)} records to train on, {len(unfit)} set aside")
    validation, _ = load_examples(validation_file, processor, settings)
    truth = pq.read_table(validation_file, columns=["post_id", "verdict", "category"]).to_pylist()

    def validate(model: Any) -> dict[str, float]:
        judged = list(judge_examples(model, processor, policy, validation, settings.score_batch_size))
        return macro_f1({row["post_id"]: row for row in truth}, judged)

    result = train(checkpoint, examples, validate if validation else None, processor, settings, out / ".training", log)
    for file in (out / ".training" / "adapter").iterdir():
        shutil.copy(file, out / file.name)
    write_table(out / "quarantine.parquet", QUARANTINE, [_quarantine(unfit)])
    write_json(out / "history.json", {name: result.pop(name) for name in ("history", "adapted_modules")})
    shutil.rmtree(out / ".training")
    if result["not_reached"]:
        log(f"adapter: max_steps={settings.max_steps} ended before {result['not_reached']} records were seen once")
    return result | {"set_aside": len(unfit), "validation_records": len(validation)}


def macro_f1(truth: Mapping[str, Mapping[str, str]], judged: Sequence[Judgement]) -> dict[str, float]:
    """Macro-F1 of the verdicts, of the categories, and their mean, over the labels that occur (scikit-learn's f1_score).

    The mean chooses the checkpoint: verdicts alone are nearly right long before the categories are.
    """
    from sklearn.metrics import f1_score

    scores = {}
    for name in ("verdict", "category"):
        true = [truth[j.post_id][name] for j in judged]
        given = [getattr(j, name) for j in judged]
        score = f1_score(true, given, labels=sorted(set(true)), average="macro", zero_division=0)
        scores[f"{name}_macro_f1"] = float(score)
    return scores | {"macro_f1": sum(scores.values()) / len(scores)}


def _quarantine(unfit: list[Unfit]) -> pa.RecordBatch:
    rows = [{"post_id": u.post_id, "stage": "adapter", "reason": u.reason, "detail": u.detail} for u in unfit]
    return pa.RecordBatch.from_pylist(rows, schema=QUARANTINE)


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
    # what a user of the folder needs to put the same question in the same words
    write_json(
        Path(out) / MODEL_CARD,
        {
            "policy_version": policy.version,
            "prompt": prompt_digest(policy, settings.prompt, processor.chat_template),
            "profile": settings.model_dump(),
        },
    )
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
