"""Scoring every allowed answer, against letting the model write one, and against one forward pass per answer.

    XHS_DATA_DIR=/tmp/x dagster asset materialize -m xhs_pipeline.definitions --select '*' --partition 2026-02-16
    python -m xhs_pipeline_tests.benchmarks.scoring --data /tmp/x                      # the embedded model
    python -m xhs_pipeline_tests.benchmarks.scoring --data /tmp/x --shape 2b --device cuda
    python -m xhs_pipeline_tests.benchmarks.scoring --data /tmp/x --shape smallest --posts 8
    python -m xhs_pipeline_tests.benchmarks.scoring --data /tmp/x --memory 2000        # judging a large split
    python -m xhs_pipeline_tests.benchmarks.scoring --data /tmp/x --patches            # embedding image patches

    scored     this project: `judge_examples`
    generated  transformers' generate(), greedy, with its cache, until the end of the turn or the longest allowed answer
    naive      one forward pass per allowed answer over prompt and answer, logits of the answer only, images decoded once

All three get the test split's posts in the same batches, of like length, and start from tokenised prompts and JPEG bytes. One
process runs them in turn, `--repeats` times; figures are medians, ratios medians of the ratios within a repeat. Peak is the
largest resident size above that at the start of a way (on a GPU torch.cuda.max_memory_allocated).

off by: largest difference of any answer's probability between scored and naive. same: of the generated answers that are
allowed ones, the share that are the likeliest by score too; where not, greedy took the likeliest start and missed the
likeliest whole. `--shape 2b` is Qwen2-VL-2B's published shape with random weights in bfloat16 and its profile's long prompt, see
gpu_training; its answers are noise, its cost is not. Its tokenizer holds each phrase of an answer as one token: the published
one needs more tokens, so more steps of generate().

--memory judges that many posts of the split, repeated, each with up to three distinct JPEGs of 1024 x 768 (file sizes like photos'):
whole is all posts read first and judged as one window, as_read is `predict`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from xhs_pipeline.worker import run

KINDS = ("text only", "with images", "as they come")
WAYS = ("scored", "generated", "naive")


def loaded(data: Path, shape: str, folder: Path) -> tuple[Any, Any, Any, int]:
    """(model, processor, function from post to Example, batch size) for the embedded model or one of a true shape."""
    import torch

    from xhs_pipeline.judgement.judge import Judge
    from xhs_pipeline.policy import load_policy
    from xhs_pipeline.profile import load_profile
    from xhs_pipeline.vlm.base import load_model
    from xhs_pipeline.vlm.processor import load_processor
    from xhs_pipeline_tests.benchmarks.gpu_training import WORDS, write_checkpoint

    judge = Judge(_latest(data, "merged_model"), load_policy())
    if shape != "tiny":
        changes = {"max_pixels": 12544, "precision": "fp32"} if shape == "smallest" else {}
        judge.profile = load_profile("qwen2-vl-2b", changes)
        write_checkpoint(folder, shape, 5_000 if shape == "smallest" else WORDS)
        limits = (judge.profile.min_pixels, judge.profile.max_pixels)
        judge.processor = load_processor(folder, *limits, keep_images=False)
        judge.model = load_model(folder, judge.profile)
    torch.manual_seed(0)
    return judge.model.eval(), judge.processor, judge.example, judge.profile.score_batch_size


def _latest(data: Path, key: str) -> Path:
    from xhs_pipeline.artifacts import read_json

    return data / key / str(read_json(data / key / "latest.json")["version"])


def scored(model: Any, processor: Any, policy: Any, batches: Sequence[Sequence[Any]]) -> list[Any]:
    from xhs_pipeline.vlm.scoring import judge_examples

    return [found for batch in batches for found in judge_examples(model, processor, policy, batch, len(batch))]


def generated(model: Any, processor: Any, policy: Any, batches: Sequence[Sequence[Any]]) -> list[str]:
    import torch

    from xhs_pipeline.vlm.batches import pad
    from xhs_pipeline.vlm.scoring import answer_tree

    longest = 1 + max(map(len, answer_tree(processor.tokenizer, policy).paths))  # and the end of the turn
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    found = []
    for batch in batches:
        inputs = {
            k: v.to(model.device) for k, v in pad(batch, processor).items() if k not in ("labels", "loss_weights")
        }
        with torch.inference_mode():
            ids = model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=longest,
                eos_token_id=end,
                pad_token_id=processor.tokenizer.pad_token_id,
            )
        new = ids[:, inputs["input_ids"].shape[1] :].cpu()
        found += processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return found


def naive(model: Any, processor: Any, policy: Any, batches: Sequence[Sequence[Any]]) -> list[Any]:
    from dataclasses import replace

    import numpy as np
    import torch

    from xhs_pipeline.splits.conversation import render_answer
    from xhs_pipeline.vlm.batches import answer_ids, pad
    from xhs_pipeline.vlm.processor import pixels

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
    from xhs_pipeline.policy import load_policy

    policy = load_policy()
    with tempfile.TemporaryDirectory() as folder:
        model, processor, example_of, size = loaded(Path(data), shape, Path(folder))
    size = batch or size
    examples = [example_of(post) for post in read_posts(_latest(Path(data), "sharegpt_splits") / "test.parquet")]
    split = {
        "text only": [e for e in examples if not e.images][: posts or None],
        "with images": [e for e in examples if e.images][: posts or None],
        "as they come": examples[: posts or None],
    }
    found: dict[str, Any] = {"batch": size, "device": str(model.device), "gpu": ""}
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
            way(model, processor, policy, batches[:1])
        for _ in range(repeats):
            turn = {}
            for way in functions:
                answers[way.__name__], turn[way.__name__] = timed(partial(way, model, processor, policy, batches))
            runs.append(turn)
        found[kind] = {"posts": len(chosen), "runs": runs, **agreement(answers, policy)}
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
        before = _resident("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    value = work()
    if gpu:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = torch.cuda.max_memory_allocated() / 2**20 if gpu else _resident("VmHWM")
    return value, {"wall": wall, "cpu": cpu, "mb": peak - before}


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 2**10


def agreement(answers: dict[str, Any], policy: Any) -> dict[str, float]:
    import numpy as np

    from xhs_pipeline.splits.conversation import render_answer

    def shares(scores: Any) -> Any:
        likely = np.exp(scores - scores.max(1, keepdims=True))
        return likely / likely.sum(1, keepdims=True)

    ours = np.array([judgement.scores for judgement in answers["scored"]])
    off = float(abs(shares(ours) - shares(np.stack(answers["naive"]))).max()) if "naive" in answers else 0.0
    places = {render_answer(*pair, policy): place for place, pair in enumerate(policy.answers())}
    allowed = ["\n".join(text.split("\n")[:2]).strip() for text in answers["generated"]]
    pairs = [(places[text], row.argmax()) for text, row in zip(allowed, ours, strict=True) if text in places]
    return {
        "off": off,
        "allowed": len(pairs) / len(ours),
        "same": sum(a == b for a, b in pairs) / len(pairs) if pairs else float("nan"),
    }


# judging a large split


def write_large(file: Path, split: Path, posts: int) -> int:
    """`posts` rows of `split`, repeated under new ids; each image is a distinct file of 1024 x 768. Returns the images' bytes."""
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from xhs_pipeline.posts.schema import TableWriter

    def photo(number: int) -> bytes:
        coarse = np.random.default_rng(number).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(coarse).resize((1024, 768), Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
        return out.getvalue()

    photos = [photo(number) for number in range(16)]
    schema, rows, size, serial = pq.read_schema(split), pq.read_table(split).to_pylist(), 0, 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal size, serial
        for begin in range(0, posts, 64):
            made = []
            for number in range(begin, min(begin + 64, posts)):
                row = rows[number % len(rows)]
                images = []
                for _ in row["images"]:
                    serial += 1
                    data = photos[serial % len(photos)]
                    # a JPEG comment makes every file a different one
                    images.append(
                        {
                            "bytes": data[:2] + b"\xff\xfe\x00\x06" + serial.to_bytes(4) + data[2:],
                            "path": f"{serial}.jpg",
                        }
                    )
                    size += len(images[-1]["bytes"])
                made.append(row | {"post_id": f"{row['post_id']}-{number}", "images": images})
            yield pa.RecordBatch.from_pylist(made, schema)

    with TableWriter(file, schema) as writer:
        for batch in batches():
            writer.write(batch)
    return size


def memory(data: str, file: str, way: str, log: Callable[[str], None]) -> dict[str, Any]:
    """Judge a split in one of two ways. The worker adds the process's peak memory and CPU seconds."""
    import pyarrow.parquet as pq

    from xhs_pipeline.judgement import judge as judging
    from xhs_pipeline.judgement import predict
    from xhs_pipeline.policy import load_policy

    judge = judging.Judge(_latest(Path(data), "merged_model"), load_policy())
    start = _resident("VmRSS")
    if way == "as_read":
        found = predict.predict(judge, Path(file), log)
    else:
        judging.WINDOW_POSTS = judging.WINDOW_BYTES = 1 << 60
        table = pq.read_table(file)
        posts = list(predict.read_posts(Path(file)))
        found = list(judge.judge(posts, log, table.num_rows))
    return {"start": start, "posts": len(found)}


def judge_large(data: Path, posts: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "test.parquet"
        size = write_large(file, _latest(data, "sharegpt_splits") / "test.parquet", posts)
        print(f"{posts} posts, {size / 2**20:.0f} MB of images\n")
        print("| way | peak MB | of it before judging | CPU s |\n|---|---|---|---|")
        for way in ("whole", "as_read"):
            arguments = {"data": str(data), "file": str(file), "way": way}
            f = run("xhs_pipeline_tests.benchmarks.scoring:memory", arguments, print)
            print(f"| {way} | {f['peak_memory_mb']:,} | {f['start']:,.0f} | {f['cpu_seconds']:.0f} |", flush=True)


def patches(data: Path) -> None:
    """CPU milliseconds to embed 1,024 image patches, by matrix product and by the convolution: medians of 20 of each in turn."""
    import torch

    from xhs_pipeline.judgement.judge import Judge
    from xhs_pipeline.policy import load_policy

    embed = Judge(_latest(data, "merged_model"), load_policy()).model.model.visual.patch_embed
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
    parser.add_argument("--memory", type=int, default=0, metavar="POSTS", help="judge a split of so many posts instead")
    parser.add_argument("--patches", action="store_true", help="time the embedding of image patches instead")
    asked = parser.parse_args()
    if asked.patches:
        return patches(asked.data)
    if asked.memory:
        return judge_large(asked.data, asked.memory)
    import torch

    if (asked.device == "cuda") != torch.cuda.is_available():
        parser.error(f"--device {asked.device}: this machine {'has a' if torch.cuda.is_available() else 'has no'} GPU")
    arguments = {
        "data": str(asked.data), "shape": asked.shape, "posts": asked.posts, "batch": asked.batch, "repeats": asked.repeats,
        "ways": WAYS[:2] if asked.no_naive else WAYS,
    }  # fmt: skip
    found = run("xhs_pipeline_tests.benchmarks.scoring:measure", arguments)
    clock = "wall" if asked.device == "cuda" else "cpu"
    print(f"\nbatches of {found['batch']}, on {found['gpu'] or found['device']}; ratios of {clock} seconds\n")
    print("| posts | way | posts per CPU s | posts per s | scored is | peak MB | off by | same, of allowed |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in KINDS:
        runs, posts = found[kind]["runs"], found[kind]["posts"]
        for way in runs[0]:
            cpu, wall = (statistics.median(turn[way][of] for turn in runs) for of in ("cpu", "wall"))
            ratio = statistics.median(turn[way][clock] / turn["scored"][clock] for turn in runs)
            peak = max(turn[way]["mb"] for turn in runs)
            off = f"{found[kind]['off']:.1e}" if way == "naive" else ""
            same = f"{found[kind]['same']:.1%} of {found[kind]['allowed']:.1%}" if way == "generated" else ""
            print(
                f"| {posts} {kind} | {way} | {posts / cpu:.1f} | {posts / wall:.1f} | {ratio:.2f}x | {peak:.0f} | {off} | {same} |"
            )


if __name__ == "__main__":
    main()
