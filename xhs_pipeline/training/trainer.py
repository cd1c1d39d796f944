"""transformers' Trainer as this recipe uses it: whole updates as rows, loss over an update's weights, checkpoints that last."""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xhs_pipeline.profile import Profile
from xhs_pipeline.splits.exports import SCHEDULES

# What fsdp gathers one by one. The vision tower's blocks are gathered with the rest of the model: a process whose records have
# no image would never ask for its share of them, and the others would wait for it.
LAYERS = ["Qwen2VLDecoderLayer"]


def run_arguments(profile: Profile, steps: int, validating: bool, folder: Path) -> Any:
    """The profile as transformers' TrainingArguments, for a run of `steps` updates that checkpoints into `folder`.

    Raises ValueError when the profile's optimizer needs a GPU and there is none.
    """
    import torch
    from transformers import TrainingArguments

    gpu, sharded = torch.cuda.is_available(), profile.distribution == "fsdp" and profile.num_processes > 1
    if profile.optimizer != "adamw" and not gpu:
        raise ValueError(f"optimizer is {profile.optimizer!r} and there is no GPU; expected 'adamw'")
    # A row is the whole share of an update (training.qlora), so the library sees batches of one and nothing to accumulate.
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,  # the run's order already repeats the records `epochs` times
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        optim={"adamw": "adamw_torch"}.get(profile.optimizer, profile.optimizer),
        learning_rate=profile.learning_rate,
        lr_scheduler_type=SCHEDULES.get(profile.schedule, profile.schedule),
        warmup_steps=math.ceil(profile.warmup * steps),
        weight_decay=profile.weight_decay,
        adam_beta2=profile.adam_beta2,
        max_grad_norm=profile.max_grad_norm,
        bf16=profile.precision == "bf16",
        use_cpu=not gpu,
        # a process whose records have no image has no gradient for the vision tower
        ddp_find_unused_parameters=profile.lora_modules == "all",
        eval_strategy="steps" if validating else "no",
        eval_steps=math.ceil(steps / profile.evaluations),
        save_strategy="steps",
        save_steps=math.ceil(steps / profile.checkpoints),
        save_total_limit=2,
        logging_steps=max(1, steps // 40),
        logging_nan_inf_filter=False,  # a loss that is not finite ends the run
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=profile.seed,
        data_seed=profile.seed,
        **(fsdp_settings() if sharded else {}),
    )
    if sharded:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        # Computed in the type that the frozen weights are stored in (anything else would convert packed 4-bit weights as if they
        # were numbers); gradients are summed in float32, and the loss and its weights stay as they are.
        kind = torch.bfloat16 if arguments.bf16 else torch.float32
        policy = MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
        arguments.fsdp_plugin_args["mixed_precision_policy"] = policy
    arguments._n_gpu = min(
        arguments.n_gpu, 1
    )  # with several in sight, the library would split batches within one process
    return arguments


def fsdp_settings() -> dict[str, Any]:
    """Fully sharded data parallelism, layer by layer, as TrainingArguments take it."""
    config = {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": LAYERS,
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
    }
    return {"fsdp": True, "fsdp_config": config}


def gathered(model: Any) -> dict[str, Any]:
    """The trained weights of a sharded model, whole and on the CPU, in the first process. Every process must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return dict(get_model_state_dict(model, options=options))


def trainer_class(
    run: Any,
    validate: Callable[[Any], dict[str, float]] | None,
    best: Path,
    patience: int,
    alone: Callable[[Any], dict[str, Any]],
) -> Any:
    """The Trainer for `run`, whose rows are lists of micro-batches, met in their order.

    `validate` scores a model; a new best `verdict_macro_f1` (or an equal one with a better `category_macro_f1`) writes the
    adapter to `best`, and after `patience` validations without one (0 = never) the run ends. `alone` makes the batch of a
    single example, to find out which one broke a loss.
    """
    import torch
    from transformers import Trainer

    class AnswerTrainer(Trainer):
        tokens = 0  # trained on so far, by this process since it began

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return torch.utils.data.SequentialSampler(run)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # the library's estimate knows neither packing nor images

        def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
            """The weights of all records of the update, on all processes: what its loss is divided by."""
            own = sum(batch["loss_weights"][:, 1:].sum() for row in batch_samples for batch in row)
            return self.accelerator.reduce(own.to(device), "sum")

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            losses = []
            for number, batch in enumerate(inputs, start=1):
                self.tokens += batch.pop("tokens")
                # processes of ddp may differ in their number of micro-batches: they meet once, in the last one
                with contextlib.nullcontext() if number == len(inputs) else self.accelerator.no_sync(model):
                    losses.append(super().training_step(model, batch, num_items_in_batch))
            return torch.stack(losses).sum()

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            examples = inputs.pop("examples")
            # gradients of several processes are averaged, and the update's loss is a sum over them
            loss = model(**inputs, num_items_in_batch=num_items_in_batch).loss * self.accelerator.num_processes
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"loss is {loss.item()} at step {self.state.global_step + 1}; records: "
                    f"{', '.join(self._at_fault(examples))}. Lower learning_rate, or look at these posts"
                )
            return (loss, None) if return_outputs else loss

        def _at_fault(self, examples: Sequence[Any]) -> list[str]:
            """The posts whose loss is not finite when they stand alone; all of them when that cannot be told."""
            names, whole = [], self.accelerator.unwrap_model(self.model)
            if not self.is_fsdp_enabled:  # there, a forward pass needs all processes
                with torch.no_grad():
                    losses = [whole(**self._prepare_inputs(alone(example))).loss for example in examples]
                names = [e.post_id for e, loss in zip(examples, losses, strict=True) if not torch.isfinite(loss)]
            return names or [example.post_id for example in examples]

        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            scores = validate(self.model) if validate else {}
            metrics = {f"eval_{name}": score for name, score in scores.items()}
            self.log(metrics)  # into the history, which is part of a checkpoint: a resumed run compares with it too
            if best_step(self.state.log_history) == self.state.global_step:
                self.keep()
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            if out_of_patience(self.state.log_history, patience):
                self.control.should_training_stop = True
            return metrics

        def keep(self) -> None:
            """Write the adapter to `best`, whole or not at all. Every process calls this; the first one writes."""
            state = gathered(self.model) if self.is_fsdp_enabled else None
            if self.args.should_save:
                unfinished = best.with_name(f".{best.name}")
                shutil.rmtree(unfinished, ignore_errors=True)
                self.accelerator.unwrap_model(self.model).save_pretrained(unfinished, state_dict=state)
                shutil.rmtree(best, ignore_errors=True)
                os.replace(unfinished, best)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            folder = Path(str(self.args.output_dir))
            before = newest_checkpoint(folder) if self.args.should_save else None
            try:
                super()._save_checkpoint(model, trial)  # its own writes, several files of several kinds
            except _write_errors() as error:
                shutil.rmtree(folder / f"checkpoint-{self.state.global_step}", ignore_errors=True)
                kept = f"{before} is whole and the next run goes on from it" if before else "there is none before it"
                raise OSError(
                    errno.ENOSPC,
                    f"checkpoint at step {self.state.global_step} could not be written ({error}); "
                    f"{shutil.disk_usage(folder).free // 2**20} MB are free in {folder}; {kept}. Free space and run again",
                ) from error

    return AnswerTrainer


def _write_errors() -> tuple[type[Exception], ...]:
    """What the writers of a checkpoint raise on a full disk: Python, safetensors, and torch (a RuntimeError)."""
    from safetensors import SafetensorError

    return OSError, SafetensorError, RuntimeError


def validated(history: Sequence[dict[str, Any]]) -> list[tuple[int, tuple[float, float]]]:
    """Step and score (macro-F1 of the verdicts, then of the categories) of every validation in a log history."""
    return [
        (entry["step"], (entry["eval_verdict_macro_f1"], entry.get("eval_category_macro_f1", 0.0)))
        for entry in history
        if "eval_verdict_macro_f1" in entry
    ]


def best_step(history: Sequence[dict[str, Any]]) -> int | None:
    """The step of the best validation, the first one of equals; None without any."""
    found = validated(history)
    return max(found, key=lambda entry: (entry[1], -entry[0]))[0] if found else None


def out_of_patience(history: Sequence[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` validations of a log history brought no new best; 0 = never."""
    best = best_step(history)
    return bool(patience) and best is not None and sum(step > best for step, _ in validated(history)) >= patience


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
