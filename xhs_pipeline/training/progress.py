"""What a run says while it trains: progress lines, and curves that TensorBoard draws. Decides nothing."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def memory_mb() -> int:
    """MB that training needs now at most: the peak on the GPU where there is one, else this process's resident size."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() // 2**20)
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) // 2**10  # kB


def progress(log: Callable[[str], None], folder: Path, tokens: Callable[[], int]) -> Any:
    """A TrainerCallback: a line at every logging step through `log`, and the same figures as events in `folder`.

    `tokens()` is how many tokens this run has trained on, padding not counted, all processes together.
    """
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        started = 0.0
        first = 0
        writer: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started, self.first = time.monotonic(), state.global_step
            if state.is_world_process_zero:
                # events after the step of the checkpoint were written by a run that was killed: they are passed over
                self.writer = SummaryWriter(str(folder), purge_step=state.global_step + 1)
            if state.global_step:
                self.say(state, f"adapter: resumed from step {state.global_step}/{state.max_steps}")

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs = kwargs["logs"]
            seconds = max(time.monotonic() - self.started, 1e-9)
            done = state.global_step - self.first
            left = (state.max_steps - state.global_step) * seconds / done if done else math.nan
            if "loss" in logs:
                rate, memory = tokens() / seconds, memory_mb()
                self.say(
                    state,
                    f"adapter: step {state.global_step}/{state.max_steps}, loss {float(logs['loss']):.4f}, "
                    f"lr {float(logs['learning_rate']):.2e}, {rate:.0f} tokens/s, {left:.0f} s left, {memory} MB",
                )
                logs = {**logs, "tokens_per_second": rate, "memory_mb": memory}
            elif "eval_verdict_macro_f1" in logs:
                scores = ", ".join(f"{name[5:]} {logs[name]:.4f}" for name in logs if name.endswith("_f1"))
                self.say(state, f"adapter: step {state.global_step}, validation {scores}")
            if self.writer is not None:
                for name, value in logs.items():
                    if isinstance(value, int | float) and name != "epoch":
                        group = "validation" if name.startswith("eval_") else "train"
                        self.writer.add_scalar(f"{group}/{name.removeprefix('eval_')}", value, state.global_step)
                self.writer.flush()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.writer is not None:
                self.writer.close()

        @staticmethod
        def say(state: Any, line: str) -> None:
            if state.is_world_process_zero:
                log(line)

    return Progress()
