"""Scoring every allowed answer, against letting the model write one, and against one forward pass per answer.

    XHS_DATA_DIR=/tmp/x dagster asset materialize -m xhs_pipeline.definitions --select '*' --partition 2026-02-16
    python -m xhs_pipeline_tests.benchmarks.scoring --data /tmp/x                      # the embedded model
    python -m xhs_pipeline_tests.benchmarks.scoring --data /tmp/x --shape 2b --device cuda
    python -m xhs_pipeline_tests.benchmarks.scoring --data /tmp/x --shape smallest --posts 8
    python -m xhs_pipeline_tests.benchmarks.scoring --data /tmp/x --patches            # embedding image patches

    scored         this project: `judge_examples`
    generated      transformers' generate(), greedy, with its cache, on this project's model, batches and images, stopped after the
                   longest allowed answer: what it writes of a reason is not waited for
    stock_decided  the same on transformers as it comes: the checkpoint folder loaded by Qwen2VLForConditionalGeneration (its own
                   patch embedding), images decoded by Pillow and made into patches by transformers' own image processor
    stock          the same until the end of the turn or the profile's answer_length: the whole answer that the model was trained
                   to write, with its reason where it gives one. Left out with random weights, which never end a turn
    naive          one forward pass per allowed answer over prompt and answer, logits of the answer only, images decoded once

All get the test split's posts in the same batches, of like length, and start from the same token ids and JPEG bytes. One process
runs them in turn, `--repeats` times; figures are medians, ratios medians of the ratios within a repeat. CPU seconds are those of
all threads: scoring decodes the next batch's images in a second thread, which only wall seconds show, where a core is free for
it. Peak is the largest resident size above that at the start of a way (on a GPU torch.cuda.max_memory_allocated).

off by: largest difference of any answer's probability between scored and naive. same: of the generated answers that are
allowed ones, the share that are the likeliest by score too; where not, greedy took the likeliest start and missed the
likeliest whole. `--shape 2b` is Qwen2-VL-2B's published shape with random weights in bfloat16 and its profile's long prompt, see
gpu_training; its answers are noise, its cost is not. Its tokenizer holds each phrase of an answer as one token: the published
one needs more tokens, so more steps of generate().
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from xhs_pipeline.worker import run

KINDS = ("text only", "with images", "as they come")
WAYS = ("scored", "generated", "stock_decided", "stock", "naive")


@dataclass(frozen=True)
class Loaded:
    """One checkpoint, loaded by this project and by transformers alone."""

    model: Any
    processor: Any
    policy: Any
    profile: Any
    example: Callable[[Any], Any]
    stock_model: Any
    stock_images: Any

    @property
    def end(self) -> int:
        return int(self.processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))

    @property
    def decided(self) -> int:
        """Tokens of the longest allowed answer, and the end of the turn."""
        from xhs_pipeline.vlm.answers import answer_tree

        return 1 + max(map(len, answer_tree(self.processor.tokenizer, self.policy).paths))


def loaded(data: Path, shape: str) -> Loaded:
    """The embedded model, or one of a true shape."""
    from transformers import AutoImageProcessor, Qwen2VLForConditionalGeneration

    from xhs_pipeline.judgement.judge import Judge
    from xhs_pipeline.policy import load_policy
    from xhs_pipeline.profile import load_profile
    from xhs_pipeline.vlm.base import load_model
    from xhs_pipeline.vlm.processor import load_processor
    from xhs_pipeline_tests.benchmarks.gpu_training import WORDS, write_checkpoint

    folder = latest(data, "merged_model")
    judge = Judge(folder, load_policy())
    with tempfile.TemporaryDirectory() as made:
        if shape != "tiny":
            folder = Path(made)
            changes = {"max_pixels": 12544, "precision": "fp32"} if shape == "smallest" else {}
            judge.profile = load_profile("qwen2-vl-2b", changes)
            write_checkpoint(folder, shape, 5_000 if shape == "smallest" else WORDS)
            limits = (judge.profile.min_pixels, judge.profile.max_pixels)
            judge.processor = load_processor(folder, *limits, keep_images=False)
            judge.model = load_model(folder, judge.profile)
        place = {"dtype": judge.model.dtype, "device_map": {"": judge.model.device}}
        stock = Qwen2VLForConditionalGeneration.from_pretrained(folder, **place).eval()
        images = AutoImageProcessor.from_pretrained(folder, backend="pil")
    images.size = judge.processor.image_processor.size
    return Loaded(judge.model.eval(), judge.processor, judge.policy, judge.profile, judge.example, stock, images)


def latest(data: Path, key: str) -> Path:
    from xhs_pipeline.artifacts import read_json

    return data / key / str(read_json(data / key / "latest.json")["version"])


def scored(own: Loaded, batches: Sequence[Sequence[Any]]) -> list[Any]:
    from xhs_pipeline.vlm.scoring import judge_examples

    examples = [example for batch in batches for example in batch]
    return list(judge_examples(own.model, own.processor, own.policy, examples, len(batches[0])))


def generated(own: Loaded, batches: Sequence[Sequence[Any]]) -> list[str]:
    from xhs_pipeline.vlm.batches import pad

    def inputs(batch: Sequence[Any]) -> dict[str, Any]:
        return {k: v for k, v in pad(batch, own.processor).items() if k not in ("labels", "loss_weights")}

    return _written(own, own.model, map(inputs, batches), own.decided)


def stock_decided(own: Loaded, batches: Sequence[Sequence[Any]]) -> list[str]:
    return _written(own, own.stock_model, (_stock_inputs(own, batch) for batch in batches), own.decided)


def stock(own: Loaded, batches: Sequence[Sequence[Any]]) -> list[str]:
    return _written(own, own.stock_model, (_stock_inputs(own, batch) for batch in batches), own.profile.answer_length)


def _stock_inputs(own: Loaded, batch: Sequence[Any]) -> dict[str, Any]:
    from PIL import Image

    prompts = {"input_ids": [example.prompt for example in batch]}
    inputs = dict(own.processor.tokenizer.pad(prompts, padding_side="left", return_tensors="pt"))
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == own.processor.image_token_id).int()
    images = [Image.open(io.BytesIO(data)) for example in batch for data in example.images]
    return inputs | (dict(own.stock_images(images=images, return_tensors="pt")) if images else {})


def _written(own: Loaded, model: Any, batches: Iterable[dict[str, Any]], tokens: int) -> list[str]:
    """What `model` writes greedily to each prompt, at most `tokens`."""
    import torch

    tokenizer, found = own.processor.tokenizer, []
    ends = {"eos_token_id": own.end, "pad_token_id": tokenizer.pad_token_id}
    for inputs in batches:
        inputs = {name: value.to(model.device) for name, value in inputs.items()}
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=tokens, **ends)
        found += tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :].cpu(), skip_special_tokens=True)
    return found


def naive(own: Loaded, batches: Sequence[Sequence[Any]]) -> list[Any]:
    from dataclasses import replace

    import numpy as np
    import torch

    from xhs_pipeline.splits.conversation import render_answer
    from xhs_pipeline.vlm.batches import answer_ids, pad
    from xhs_pipeline.vlm.processor import pixels

    model, processor, policy = own.model, own.processor, own.policy
    answers = [answer_ids(processor.tokenizer, render_answer(*pair, policy), end=False) for pair in policy.answers()]
    found = []
    for batch in batches:
        images = [(image, example.max_pixels) for example in batch for image in example.images]
        pictures = pixels(processor, images) if images else {}
        scores = []
        for answer in answers:
            inputs = pad([replace(example, answer=answer, images=[]) for example in batch], processor) | pictures
            inputs = {k: v.to(model.device) for k, v in inputs.items() if k not in ("labels", "loss_weights")}
            with torch.inference_mode():
                logits = model(**inputs, use_cache=False, logits_to_keep=len(answer) + 1).logits[:, :-1].float()
                wanted = torch.tensor(answer, device=model.device).expand(len(batch), -1)[..., None]
                scores.append(logits.log_softmax(-1).gather(-1, wanted).sum((1, 2)).double().cpu().numpy())
        found += list(np.stack(scores, axis=1))
    return found


def measure(
    data: str, shape: str, posts: int, batch: int, repeats: int, ways: list[str], log: Callable[[str], None]
) -> dict[str, Any]:
    """For each kind of post the figures of each way, and how far they agree."""
    import torch

    from xhs_pipeline.judgement.predict import read_posts

    own = loaded(Path(data), shape)
    size = batch or own.profile.score_batch_size
    examples = [own.example(post) for post in read_posts(latest(Path(data), "sharegpt_splits") / "test.parquet")]
    split = {
        "text only": [e for e in examples if not e.images][: posts or None],
        "with images": [e for e in examples if e.images][: posts or None],
        "as they come": examples[: posts or None],
    }
    found: dict[str, Any] = {"batch": size, "device": str(own.model.device), "gpu": ""}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    for kind, chosen in split.items():
        chosen = sorted(
            chosen, key=lambda example: (bool(example.images), len(example.prompt))
        )  # as judge_examples does
        batches = [chosen[begin : begin + size] for begin in range(0, len(chosen), size)]
        runs: list[dict[str, Any]] = []
        answers: dict[str, Any] = {}
        functions = [globals()[way] for way in ways]
        for way in functions:  # a first batch each, so that no way pays for what happens once
            way(own, batches[:1])
        for _ in range(repeats):
            turn = {}
            for way in functions:
                answers[way.__name__], turn[way.__name__] = timed(partial(way, own, batches))
            runs.append(turn)
        found[kind] = {"posts": len(chosen), "runs": runs, **agreement(answers, own.policy)}
        log(f"{kind}: {len(chosen)} posts in batches of {size}, tokens a prompt: {_range(chosen)}")
    return found


def _range(examples: Sequence[Any]) -> str:
    lengths = [len(example.prompt) for example in examples]
    return f"{min(lengths)} to {max(lengths)}, median {statistics.median(lengths):.0f}"


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `work` returns, with its wall and CPU seconds and its peak memory in MB above what was there before."""
    import gc

    import torch

    gc.collect()
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew at the present size
        before = resident("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    value = work()
    if gpu:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else resident("VmHWM")
    return value, {"wall": wall, "cpu": cpu, "mb": peak - before}


def resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 2**10


def agreement(answers: dict[str, Any], policy: Any) -> dict[str, Any]:
    """How far scored is off naive, and of what each other way wrote the share that is scored's, of the share that is allowed."""
    import numpy as np

    from xhs_pipeline.splits.conversation import render_answer

    def shares(scores: Any) -> Any:
        likely = np.exp(scores - scores.max(1, keepdims=True))
        return likely / likely.sum(1, keepdims=True)

    ours = np.array([judgement.scores for judgement in answers["scored"]])
    off = float(abs(shares(ours) - shares(np.stack(answers["naive"]))).max()) if "naive" in answers else 0.0
    places = {render_answer(*pair, policy): place for place, pair in enumerate(policy.answers())}
    found: dict[str, Any] = {"off": off}
    for way in {"generated", "stock_decided", "stock"} & answers.keys():
        allowed = ["\n".join(text.split("\n")[:2]).strip() for text in answers[way]]
        same = [places[text] == row.argmax() for text, row in zip(allowed, ours, strict=True) if text in places]
        found[way] = f"{sum(same) / max(len(same), 1):.1%} of {len(same) / len(ours):.1%}"
    return found


def patches(data: Path) -> None:
    """CPU milliseconds to embed 1,024 image patches, by matrix product and by the convolution: medians of 20 of each in turn."""
    import torch

    from xhs_pipeline.judgement.judge import Judge
    from xhs_pipeline.policy import load_policy

    embed = Judge(latest(data, "merged_model"), load_policy()).model.model.visual.patch_embed
    some = torch.randn(1024, 1176, device=embed.proj.weight.device)
    ways = {"product": embed.forward, "convolution": type(embed).__mro__[1].forward.__get__(embed)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        for _ in range(20):
            for name, way in ways.items():
                seconds[name].append(timed(partial(way, some))[1]["cpu"])
    for name, found in seconds.items():
        print(f"{name}: {1000 * statistics.median(found):.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="XHS_DATA_DIR of a materialised sample")
    parser.add_argument("--shape", choices=("tiny", "2b", "smallest"), default="tiny")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--posts", type=int, default=0, help="at most so many of each kind")
    parser.add_argument("--batch", type=int, default=0, help="instead of the profile's score_batch_size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-naive", action="store_true", help="leave out the slowest way")
    parser.add_argument("--patches", action="store_true", help="time the embedding of image patches instead")
    asked = parser.parse_args()
    if asked.patches:
        return patches(asked.data)
    import torch

    if (asked.device == "cuda") != torch.cuda.is_available():
        parser.error(f"--device {asked.device}: this machine {'has a' if torch.cuda.is_available() else 'has no'} GPU")
    left_out = {"naive": asked.no_naive, "stock": asked.shape != "tiny"}
    ways = [way for way in WAYS if not left_out.get(way)]
    arguments = {
        "data": str(asked.data), "shape": asked.shape, "posts": asked.posts, "batch": asked.batch, "repeats": asked.repeats,
        "ways": ways,
    }  # fmt: skip
    found = run("xhs_pipeline_tests.benchmarks.scoring:measure", arguments)
    print(f"\nbatches of {found['batch']}, on {found['gpu'] or found['device']}\n")
    print(
        "| posts | way | posts per CPU s | posts per s | scored is, CPU | scored is, wall | peak MB | off by | same, of allowed |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in KINDS:
        runs, posts = found[kind]["runs"], found[kind]["posts"]
        for way in runs[0]:
            rates = [posts / statistics.median(turn[way][of] for turn in runs) for of in ("cpu", "wall")]
            ratios = [statistics.median(turn[way][of] / turn["scored"][of] for turn in runs) for of in ("cpu", "wall")]
            off = f"{found[kind]['off']:.1e}" if way == "naive" else ""
            print(
                f"| {posts} {kind} | {way} | {rates[0]:.1f} | {rates[1]:.1f} | {ratios[0]:.2f}x | {ratios[1]:.2f}x "
                f"| {max(turn[way]['mb'] for turn in runs):.0f} | {off} | {found[kind].get(way, '')} |"
            )


if __name__ == "__main__":
    main()
