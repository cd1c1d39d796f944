"""The model stages as functions over folders and JSON values, so that each runs in a process of its own.

Each reads what an earlier stage wrote, calls the recipe, and writes into the folder it is given. No Dagster, no versions.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import file_digest, read_json, write_json
from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.schema import QUARANTINE, write_table
from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.conversation import prompt_digest
from xhs_pipeline.vlm.batches import Example, Unfit, fit, quiet_libraries
from xhs_pipeline.vlm.card import ModelCard, write_card
from xhs_pipeline.vlm.scoring import Judgement, judge_examples

PROBE_POSTS = 64
_READ = ["post_id", "messages", "images", "label_weight"]


def checkpoint_folder(base: Path) -> Path:
    """The checkpoint that a base_model artefact stands for: its own `model` folder, or the one it points to."""
    return (base / read_json(base / "checkpoint.json")["folder"]).resolve()


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
            examples.append(replace(found, weight=row["label_weight"]))
    return examples, unfit


def _rows(file: Path, limit: int | None) -> Iterator[dict[str, Any]]:
    left = limit
    for batch in pq.ParquetFile(file).iter_batches(columns=_READ, batch_size=64):
        rows = batch.to_pylist()[:left]
        yield from rows
        left = None if left is None else left - len(rows)


def build_base(splits: str, profile: dict[str, Any], out: str, log: Callable[[str], None]) -> dict[str, Any]:
    """base_model: build the tiny model, or find the checkpoint that the profile names, check it and record its file hashes."""
    quiet_libraries()
    from xhs_pipeline.vlm.base import check_checkpoint, resolve_checkpoint
    from xhs_pipeline.vlm.processor import load_processor

    settings = Profile(**profile)
    folder = resolve_checkpoint(settings)
    counts: dict[str, Any] = {}
    note = ""
    if folder is None:
        from xhs_pipeline.vlm.tiny import NOTE, build_tiny

        note = NOTE

        texts = [
            f"{row['title']}\n{row['body']}\n{row['ocr_text'] or ''}".strip()
            for row in pq.read_table(Path(splits) / "train.parquet", columns=["title", "body", "ocr_text"]).to_pylist()
        ]
        counts = build_tiny(Path(out) / "model", texts, load_policy(), settings, log)
        folder = Path(out) / "model"
    facts = check_checkpoint(folder)
    processor = load_processor(folder, settings.min_pixels, settings.max_pixels)
    inside = folder.is_relative_to(out)
    write_json(
        Path(out) / "checkpoint.json",
        {
            "folder": str(folder.relative_to(out)) if inside else str(folder),
            "name": settings.base_model,
            "revision": settings.base_revision,
            "note": note,
            "files": {p.name: file_digest(p) for p in sorted(folder.iterdir()) if p.is_file()},
            "prompt": prompt_digest(load_policy(), settings.prompt, processor.chat_template),
        },
    )
    return counts | {"vocabulary": len(processor.tokenizer), "weight_files": len(facts["shards"])}


def train_adapter(
    base: str, splits: str, profile: dict[str, Any], work: str, log: Callable[[str], None]
) -> dict[str, Any]:
    """adapter: train on the train split, keep the checkpoint with the best macro-F1 on the validation split.

    Writes the peft adapter, history.json and quarantine.parquet into `work`; `work/.training` holds what a resume needs.
    Raises ValueError when a record is neither trained nor quarantined, or when nothing is left to train on.
    """
    quiet_libraries()
    from xhs_pipeline.training.qlora import train
    from xhs_pipeline.vlm.processor import load_processor

    settings, policy, out = Profile(**profile), load_policy(), Path(work)
    checkpoint = checkpoint_folder(Path(base))
    processor = load_processor(checkpoint, settings.min_pixels, settings.max_pixels)
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
    """merged_model: merge and prove it on posts of the validation split."""
    quiet_libraries()
    from xhs_pipeline.training.merge import merge
    from xhs_pipeline.vlm.processor import load_processor

    settings, policy = Profile(**profile), load_policy()
    checkpoint = checkpoint_folder(Path(base))
    processor = load_processor(checkpoint, settings.min_pixels, settings.max_pixels)
    probe, _ = load_examples(Path(splits) / "validation.parquet", processor, settings, limit=PROBE_POSTS)
    counts = merge(checkpoint, Path(adapter), probe, processor, policy, settings, Path(out), log)
    prompt = prompt_digest(policy, settings.prompt, processor.chat_template)
    write_card(Path(out), ModelCard(settings, policy, prompt))
    return counts
