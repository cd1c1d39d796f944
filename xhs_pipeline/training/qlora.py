"""The QLoRA recipe: an NF4 base, LoRA on the language model, loss on the answer, resumable at any checkpoint.

One recipe for every checkpoint and device; transformers' Trainer runs the loop. What is judged, and how, is not here.
"""

import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xhs_pipeline.profile import Profile
from xhs_pipeline.training.order import augment, run_order
from xhs_pipeline.vlm.batches import Example, loss_total, pad


def lora_model(base: Any, profile: Profile) -> Any:
    """Wrap `base` with LoRA on the named linears of the language model (and trained embeddings where the profile says)."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if getattr(base, "is_loaded_in_4bit", False):
        base = prepare_model_for_kbit_training(
            base,
            use_gradient_checkpointing=profile.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    elif profile.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    names = "|".join(profile.lora_targets)
    config = LoraConfig(
        r=profile.lora_rank,
        lora_alpha=profile.lora_alpha,
        lora_dropout=profile.lora_dropout,
        target_modules=rf".*language_model.*\.(?:{names})",
        modules_to_save=["embed_tokens", "lm_head"] if profile.train_embeddings else None,
        ensure_weight_tying=profile.train_embeddings and base.config.tie_word_embeddings,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def answer_loss(model: Any) -> None:
    """Make `model.forward`, given labels, return the loss of the answer's tokens only, and no logits.

    The head is applied to the hidden states that predict an answer token: with a vocabulary of 151,936, logits of whole
    sequences would be the largest tensor of the step by far. Weighted cross-entropy, sum(w_i * nll_i) / sum(w_i), or over
    loss_total where that is given (see batches.loss_total).
    """
    import torch
    from transformers.modeling_outputs import CausalLMOutputWithPast

    forward = model.forward

    def answer_forward(labels: Any = None, loss_weights: Any = None, loss_total: Any = None, **inputs: Any) -> Any:
        if labels is None:
            return forward(**inputs)
        hidden = model.model(**{**inputs, "use_cache": False}).last_hidden_state
        weights = loss_weights[:, 1:]
        chosen = weights > 0
        losses = torch.nn.functional.cross_entropy(
            model.lm_head(hidden[:, :-1][chosen]).float(), labels[:, 1:][chosen], reduction="none"
        )
        total = weights[chosen].sum() if loss_total is None else loss_total
        return CausalLMOutputWithPast(loss=(losses * weights[chosen]).sum() / total)

    model.forward = answer_forward


def _dataset(examples: Sequence[Example], profile: Profile, protected: frozenset[int]) -> Any:
    """The whole run as one list: the step number alone says which records come next, also after a resume."""
    import torch

    order = run_order([len(e) for e in examples], profile.batch_size, profile.epochs, profile.seed)
    if profile.max_steps:
        order = order[: profile.max_steps * profile.batch_size * profile.accumulation]

    class Run(torch.utils.data.Dataset):
        records = {record for _, record in order}  # fewer than all when max_steps ends the run within its first epoch

        def __len__(self) -> int:
            return len(order)

        def __getitem__(self, place: int) -> Example:
            epoch, record = order[place]
            rng = random.Random(f"{profile.seed}:{epoch}:{record}")
            return augment(examples[record], rng, protected, profile.augmentation)

    return Run()


def _trainer_class(run: Any, validate: Callable[[Any], dict[str, float]] | None, keep: Callable[[Any], None]) -> Any:
    import torch
    from transformers import Trainer

    class AnswerTrainer(Trainer):
        """Trainer with the run's own order, logits for the answer's positions only, and validation by scoring."""

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(run)

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            names = inputs.pop("post_ids")
            loss = model(**inputs).loss
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"loss is {loss.item()} at step {self.state.global_step + 1}; records: {', '.join(names)}. "
                    "Lower learning_rate, or look at these posts"
                )
            return (loss, None) if return_outputs else loss

        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            assert validate is not None
            metrics = {f"eval_{k}": v for k, v in validate(self.model).items()}
            # The Trainer notes the best score after this; it is part of a checkpoint, so a resumed run compares with it too.
            if self.state.best_metric is None or metrics["eval_macro_f1"] > self.state.best_metric:
                keep(self.model)
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    return AnswerTrainer


def _progress(log: Callable[[str], None]) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        started = 0.0
        first = 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started, self.first = time.monotonic(), state.global_step
            if state.global_step:
                log(f"adapter: resumed from step {state.global_step}/{state.max_steps}")

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs = kwargs["logs"]
            done = state.global_step - self.first
            rate = done / max(time.monotonic() - self.started, 1e-9)
            left = (state.max_steps - state.global_step) / rate if rate else math.nan
            if "loss" in logs:
                log(
                    f"adapter: step {state.global_step}/{state.max_steps}, loss {float(logs['loss']):.4f}, "
                    f"lr {float(logs['learning_rate']):.2e}, {rate * args.train_batch_size:.1f} posts/s, {left:.0f} s left"
                )
            elif "eval_macro_f1" in logs:
                scores = ", ".join(f"{name[5:]} {logs[name]:.4f}" for name in logs if name.endswith("_f1"))
                log(f"adapter: step {state.global_step}, validation {scores}")

    return Progress()


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint in `folder` that is whole, or None. One that a kill left half written is removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # the Trainer writes it last
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(path)
        else:
            whole.append((state["global_step"], str(path)))
    return max(whole)[1] if whole else None


def _arguments(profile: Profile, steps: int, validating: bool, folder: Path) -> Any:
    """The profile as transformers' TrainingArguments, for a run of `steps` optimiser steps that checkpoints into `folder`."""
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,  # the run's order already repeats the records `epochs` times
        per_device_train_batch_size=profile.batch_size,
        gradient_accumulation_steps=profile.accumulation,
        learning_rate=profile.learning_rate,
        lr_scheduler_type=profile.schedule,
        warmup_steps=math.ceil(profile.warmup * steps),
        weight_decay=profile.weight_decay,
        adam_beta2=profile.adam_beta2,
        max_grad_norm=profile.max_grad_norm,
        bf16=profile.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps" if validating else "no",
        eval_steps=math.ceil(steps / profile.evaluations),
        save_strategy="steps",
        save_steps=math.ceil(steps / profile.checkpoints),
        save_total_limit=2,
        metric_for_best_model="eval_macro_f1",
        greater_is_better=True,
        logging_steps=max(1, steps // 40),
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=profile.seed,
        data_seed=profile.seed,
    )


def train(
    base: Path,
    examples: Sequence[Example],
    validate: Callable[[Any], dict[str, float]] | None,
    processor: Any,
    profile: Profile,
    work: Path,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train an adapter for `base`, writing checkpoints under `work/checkpoints` and the best adapter to `work/adapter`.

    Resumes from the newest complete checkpoint in `work`. Returns the history (loss and validation by step), the list of
    adapted modules, the number of trainable parameters and the best step. Raises FloatingPointError on a non-finite loss,
    naming the records.
    """
    import torch
    from transformers import PrinterCallback, set_seed

    from xhs_pipeline.vlm.base import load_model

    set_seed(profile.seed)
    loaded = load_model(base, profile, profile.quantization)
    answer_loss(loaded)
    model = lora_model(loaded, profile)
    protected = frozenset(processor.tokenizer.all_special_ids) | frozenset(
        processor.tokenizer("\n", add_special_tokens=False)["input_ids"]
    )
    run = _dataset(examples, profile, protected)
    steps = math.ceil(len(run) / (profile.batch_size * profile.accumulation))
    best = work / "adapter"

    def collate(rows: list[Example]) -> dict[str, Any]:
        total = torch.tensor(loss_total(rows, profile.rationale_weight))
        batch = pad(rows, processor, profile.rationale_weight)
        return {**batch, "loss_total": total, "post_ids": [row.post_id for row in rows]}

    def keep(trained: Any) -> None:
        shutil.rmtree(work / ".adapter", ignore_errors=True)
        trained.save_pretrained(work / ".adapter")
        shutil.rmtree(best, ignore_errors=True)
        os.replace(work / ".adapter", best)

    trainer = _trainer_class(run, validate, keep)(
        model=model,
        args=_arguments(profile, steps, validate is not None, work / "checkpoints"),
        train_dataset=run,
        eval_dataset=run,
        data_collator=collate,
        callbacks=[_progress(log)],
    )
    # Every micro-batch brings the mean over its own tokens: the Trainer divides by the accumulation steps.
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)  # our own progress lines say it better
    trainer.train(resume_from_checkpoint=newest_checkpoint(work / "checkpoints"))
    if validate is None:
        keep(model)  # nothing to choose by: the last step
    return {
        "history": trainer.state.log_history,
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step if validate else trainer.state.global_step,
        "adapted_modules": sorted(n for n, m in model.named_modules() if hasattr(m, "lora_A")),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train_records": len(run.records),
        "not_reached": len(examples) - len(run.records),
    }
