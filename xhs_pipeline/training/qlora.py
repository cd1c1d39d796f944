"""The QLoRA recipe: an NF4 base, LoRA on the language model, loss on the answer, resumable at any checkpoint.

One recipe for every checkpoint, device and number of processes; transformers' Trainer runs the loop. What is judged, and how,
is not here.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from xhs_pipeline.profile import Profile
from xhs_pipeline.training.lora import lora_model, trained_parts
from xhs_pipeline.training.loss import answer_loss
from xhs_pipeline.training.order import augment, run_batches
from xhs_pipeline.training.packing import attend_within_records, micro_batches, pack, share_out
from xhs_pipeline.training.progress import progress
from xhs_pipeline.training.records import Records
from xhs_pipeline.training.trainer import best_step, newest_checkpoint, out_of_patience, run_arguments, trainer_class
from xhs_pipeline.vlm.batches import Example, pad


def plan(lengths: list[int], profile: Profile) -> list[list[tuple[int, int]]]:
    """The run's updates: which (epoch, record)s each of them learns from, `batch_size * accumulation` but for the last."""
    padded = not profile.pack_length and profile.batch_size > 1
    batches = run_batches(len(lengths), profile.batch_size, profile.epochs, profile.seed, lengths if padded else None)
    size = profile.accumulation
    updates = [sum(batches[i : i + size], []) for i in range(0, len(batches), size)]
    return updates[: profile.max_steps or None]


def _rows(examples: Records, updates: list[list[tuple[int, int]]], profile: Profile, protected: frozenset[int]) -> Any:
    """The whole run as one list: row `step * processes + process` is that process's share of that update.

    So the step number alone says what comes next, also after a resume. A row is a list of micro-batches of Examples.
    """
    import torch

    processes = profile.num_processes

    class Run(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(updates) * processes

        def __getitem__(self, place: int) -> list[list[Example]]:
            step, process = divmod(place, processes)
            update = updates[step]
            shares = share_out(update, [examples.lengths[r] for _, r in update], processes)
            rows = [self.micro(share) for share in shares]
            # The last update may have fewer records than processes, and each must take part in it; where the weights are
            # shared out, processes wait for one another in every micro-batch. What fills up weighs nothing.
            number = max(map(len, rows)) if profile.distribution == "fsdp" else 1
            batches = [[self.record(*place) for place in batch] for batch in rows[process]]
            if len(batches) < number:
                shortest = min((record for _, record in update), key=lambda record: examples.lengths[record])
                batches += [[replace(examples[shortest], weight=0.0)]] * (number - len(batches))
            return batches

        def micro(self, share: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
            lengths = [examples.lengths[record] for _, record in share]
            return micro_batches(share, lengths, profile.batch_size, profile.pack_length)

        def record(self, epoch: int, record: int) -> Example:
            rng = random.Random(f"{profile.seed}:{epoch}:{record}")
            return augment(examples[record], rng, protected, profile.augmentation)

    return Run()


def train(
    base: Path,
    examples: Records,
    validate: Callable[[Any], dict[str, float]] | None,
    processor: Any,
    profile: Profile,
    work: Path,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train an adapter for `base`, writing checkpoints under `work/checkpoints`, the best adapter to `work/adapter` and
    TensorBoard events to `work/runs`.

    Resumes from the newest complete checkpoint in `work`. Returns the history (loss and validation by step), the list of
    adapted modules, the number of trainable parameters, the resolved settings and the best step. Raises FloatingPointError on
    a non-finite loss, naming the records, and OSError when a checkpoint cannot be written.
    """
    from transformers import PrinterCallback, TrainerState, set_seed

    from xhs_pipeline.vlm.base import load_model

    set_seed(profile.seed)
    updates = plan(examples.lengths, profile)
    arguments = run_arguments(profile, len(updates), validate is not None, work / "checkpoints")
    loaded = load_model(base, profile, profile.quantization, on=str(arguments.device))
    answer_loss(loaded)
    attend_within_records(loaded)
    model = lora_model(loaded, profile)
    protected = frozenset(processor.tokenizer.all_special_ids) | frozenset(
        processor.tokenizer("\n", add_special_tokens=False)["input_ids"]
    )

    def tensors(rows: list[Example]) -> dict[str, Any]:
        if profile.pack_length:
            return pack(rows, processor, loaded.model.get_rope_index, profile.rationale_weight)
        return pad(rows, processor, profile.rationale_weight)

    def collate(rows: list[list[list[Example]]]) -> list[dict[str, Any]]:
        return [
            {**tensors(batch), "examples": batch, "tokens": sum(len(e) for e in batch if e.weight)} for batch in rows[0]
        ]

    run = _rows(examples, updates, profile, protected)
    best, patience = work / "adapter", profile.early_stopping
    kind = trainer_class(run, validate, best, patience, lambda example: tensors([example]))
    trainer = kind(model=model, args=arguments, train_dataset=run, eval_dataset=run, data_collator=collate)
    if arguments.fsdp and not trainer.is_fsdp_enabled:
        raise ValueError(
            f"distribution is 'fsdp', and accelerate shares out no weights on a {arguments.device.type}; expected 'ddp'"
        )
    trainer.model_accepts_loss_kwargs = True  # the loss is divided by the update's weights, not by micro-batches
    trainer.remove_callback(PrinterCallback)  # our own progress lines say it better
    trainer.add_callback(progress(log, work / "runs", lambda: trainer.tokens * profile.num_processes))
    newest = newest_checkpoint(work / "checkpoints")
    state = TrainerState.load_from_json(f"{newest}/trainer_state.json") if newest else None
    if state and out_of_patience(state.log_history, patience):
        trainer.state = state  # it was killed after its last step
    else:
        trainer.train(resume_from_checkpoint=newest)
    if validate is None:
        trainer.keep()  # nothing to choose by: the last step
    state, reached = trainer.state, {r for update in updates[: trainer.state.global_step] for _, r in update}
    return {
        "history": [entry for entry in state.log_history if "loss" in entry or "eval_verdict_macro_f1" in entry],
        "settings": _resolved(arguments, profile, len(updates)),
        **trained_parts(model),
        "steps": state.global_step,
        "best_step": best_step(state.log_history) or state.global_step,
        "train_records": len(reached),
        "not_reached": len(examples) - len(reached),
    }


def _resolved(arguments: Any, profile: Profile, steps: int) -> dict[str, Any]:
    """What the profile came to on this machine and for this many records, for manifest and metadata."""
    return {
        "planned_steps": steps,
        "warmup_steps": int(arguments.warmup_steps),
        "validate_every": int(arguments.eval_steps),
        "save_every": int(arguments.save_steps),
        "records_per_update": profile.batch_size * profile.accumulation,
        "processes": int(arguments.world_size),
        "device": arguments.device.type,
        "optimizer": str(arguments.optim.value),
    }
