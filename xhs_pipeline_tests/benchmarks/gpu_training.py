"""Memory and speed of QLoRA at the true shapes of Qwen2-VL 2B and 7B, on one GPU, with random weights.

    python -m xhs_pipeline_tests.benchmarks.gpu_training              # everything below
    python -m xhs_pipeline_tests.benchmarks.gpu_training --smallest   # a small shape, a few posts: runs on a CPU
    python -m xhs_pipeline_tests.benchmarks.gpu_training --budget     # what the memory must hold, by counting: no GPU, no weights

    2b-memory   the 2B profile, one record of 2,048 tokens with three images an update
    2b-run      the 2B profile, 1,020 posts, 3 epochs, packed: the whole run as the adapter stage does it, without validation
    7b-memory   the 7B profile, one record of 4,096 tokens with six images an update

Speed and memory do not depend on the values of the weights. The shapes are those of the published config.json files; the
checkpoint is written in the published layout and goes through this project's loading, packing and training. Its tokenizer is
built here, with a token for nearly every Chinese character, where the published one has fewer: posts are longer in tokens.

Model FLOP: for every token of the language model 4 per weight (forward, and the gradient of its input; frozen weights have
none of their own), for every image patch 2 per weight of the vision tower, and 8 * layers * hidden * length / 2 per token for
causal attention. Recomputation by gradient checkpointing is not counted. Utilisation: that by the seconds of the steps and by
the rate of bfloat16 matrix products of 8,192 x 8,192, measured on the same card in the same run.

Each case runs in a process of its own. Peak MB: torch.cuda.max_memory_reserved (on a CPU the process's resident size).
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xhs_pipeline.worker import run

# hidden, layers, heads, key-value heads, MLP, tied embeddings; vision depth, vision size (published config.json)
SHAPES = {
    "2b": (1536, 28, 12, 2, 8960, True, 32, 1280),
    "7b": (3584, 28, 28, 4, 18944, False, 32, 1280),
    "smallest": (128, 2, 4, 2, 256, True, 2, 96),
}
WORDS = 151_936
CASES: dict[str, dict[str, Any]] = {
    "2b-memory": {"shape": "2b", "profile": "qwen2-vl-2b", "tokens": 2048, "images": 3, "posts": 4, "epochs": 1},
    "2b-run": {"shape": "2b", "profile": "qwen2-vl-2b", "tokens": 0, "images": 2, "posts": 1020, "epochs": 3},
    "7b-memory": {"shape": "7b", "profile": "qwen2-vl-7b", "tokens": 4096, "images": 6, "posts": 4, "epochs": 1},
}


def shaped(config: dict[str, Any], shape: str, words: int) -> dict[str, Any]:
    """A Qwen2-VL config with the sizes of SHAPES."""
    hidden, layers, heads, shared, mlp, tied, depth, width = SHAPES[shape]
    head = hidden // heads
    section = [head // 8, head // 2 - head // 8 - 3 * head // 16, 3 * head // 16]  # [16, 24, 24] of 128
    config["text_config"] |= {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": shared,
        "intermediate_size": mlp, "vocab_size": words, "tie_word_embeddings": tied, "layer_types": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section},
    }  # fmt: skip
    config["vision_config"] |= {
        "depth": depth, "embed_dim": width, "hidden_size": hidden, "num_heads": 16 if width > 96 else 4,
        "mlp_ratio": 4 if width > 96 else 2,
    }  # fmt: skip
    config["tie_word_embeddings"] = tied
    return config


def budget(shape: str, profile_name: str, tokens: int) -> dict[str, float]:
    """MB (2**20 bytes) that one record of `tokens` must take on a card, from the shapes alone (meta device).

    NF4: half a byte a weight and, double-quantised, a byte for every 64 weights and a float32 for every 256 of those (QLoRA,
    Dettmers et al. 2023, section 3). What is not quantised: 2 bytes. LoRA: weight, gradient and AdamW's two moments in float32.
    Activations with gradient checkpointing: the input of every layer, and one layer's own while it is recomputed (inputs of
    its linears and what their LoRA reads, in float32 at worst). Logits of one chunk of the loss, three times: logits, their
    gradient, the softmax; and the largest weight, unpacked. Not counted: CUDA's context and the gaps between allocations.
    """
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    from xhs_pipeline.profile import load_profile
    from xhs_pipeline.training.lora import lora_model, trained_parts
    from xhs_pipeline.training.loss import LOGITS_BYTES

    profile = load_profile(profile_name)
    hidden, layers, _, _, mlp, *_ = SHAPES[shape]
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**shaped(Qwen2VLConfig().to_dict(), shape, WORDS)))
    linears = (m for m in model.model.language_model.modules() if isinstance(m, torch.nn.Linear))
    packed = sum(linear.weight.numel() for linear in linears)
    whole = sum(weight.numel() for weight in model.parameters()) - packed
    with torch.device("meta"):
        trained = trained_parts(lora_model(model, profile))["trainable_parameters"]
    held = {
        "4-bit weights": packed / 2 + packed / 64 * (1 + 4 / 256), "bfloat16 weights": 2 * whole, "LoRA and AdamW": 16 * trained,
        "inputs of the layers": 2 * layers * tokens * hidden, "one layer again": 4 * tokens * (4 * mlp + 8 * hidden),
        "logits": 3 * LOGITS_BYTES, "a weight unpacked": 2 * hidden * mlp,
    }  # fmt: skip
    return {name: size / 2**20 for name, size in (held | {"all": sum(held.values())}).items()}


def write_checkpoint(folder: Path, shape: str, words: int) -> dict[str, int]:
    """A checkpoint of that shape with random weights; the parameters of its language and vision parts."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    from xhs_pipeline.profile import load_profile
    from xhs_pipeline.vlm.tiny import build_tiny
    from xhs_pipeline_tests.small import POLICY, synthetic_posts

    texts = [post["title"] + post["body"] for post in synthetic_posts()]
    build_tiny(folder, texts, POLICY, load_profile("tiny", {"tiny_pretrain_epochs": 0}), lambda line: None)
    config = shaped(Qwen2VLConfig.from_pretrained(folder).to_dict(), shape, words)
    for shard in folder.glob("*.safetensors*"):
        shard.unlink()
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config)).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="2GB")
    parts = {"language": model.model.language_model.layers, "vision": model.model.visual}
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def make_examples(processor: Any, profile: Any, case: dict[str, Any]) -> list[Any]:
    """Posts of log-normal length (117 characters on average), 40% with images; or records of exactly `tokens` tokens."""
    from xhs_pipeline.splits.conversation import render_answer, render_prompt, to_messages
    from xhs_pipeline.vlm.batches import Example, fit
    from xhs_pipeline_tests.small import KINDS, POLICY, jpeg

    rng = random.Random(0)
    pictures = [jpeg(1024, 768, (i * 20, 90, 200)) for i in range(case["images"])]
    examples = []
    for number in range(case["posts"]):
        label, words = KINDS[number % len(KINDS)]
        images = pictures if case["tokens"] else pictures[: rng.choice((0, 0, 0, 1, 2))]
        characters = 40 if case["tokens"] else round(rng.lognormvariate(4.5, 0.7))
        body = "".join(rng.choices(words.replace(" ", ""), k=characters))
        for _ in range(3):  # to the exact length: a character more is a token more, or nearly
            messages = to_messages(
                render_prompt("标题", body, POLICY, profile.prompt), len(images), render_answer(*label, POLICY)
            )
            example = fit(processor, f"p{number}", messages, images, 1 << 20, profile.answer_length)
            assert isinstance(example, Example)
            body += "花" * max(0, case["tokens"] - len(example))
        examples.append(example)
    return examples


def measure(case: dict[str, Any], small: bool, log: Callable[[str], None]) -> dict[str, Any]:
    """Train one case, and return tokens, seconds, peak memory and the rates."""
    import time

    import torch

    from xhs_pipeline.profile import load_profile
    from xhs_pipeline.training.progress import memory_mb
    from xhs_pipeline.training.qlora import train
    from xhs_pipeline.training.records import Records, write_records
    from xhs_pipeline.vlm.batches import quiet_libraries
    from xhs_pipeline.vlm.processor import load_processor

    quiet_libraries()
    gpu = torch.cuda.is_available()
    changes = {"epochs": case["epochs"], "checkpoints": 1} | ({"accumulation": 1} if case["tokens"] else {})
    profile = load_profile(case["profile"], changes | ({"max_pixels": 12544, "precision": "fp32"} if small else {}))
    with tempfile.TemporaryDirectory() as folder:
        base, work = Path(folder) / "model", Path(folder) / "work"
        work.mkdir()
        sizes = write_checkpoint(base, case["shape"], 5_000 if small else WORDS)
        processor = load_processor(base, profile.min_pixels, profile.max_pixels)
        examples = make_examples(processor, profile, case)
        write_records(work / "train.arrow", examples)
        rate = matrix_rate() if gpu else 0.0
        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        moments: list[float] = []

        def say(line: str) -> None:
            log(line)
            if "loss" in line:
                moments.append(time.monotonic())

        started = time.monotonic()
        found = train(base, Records(work / "train.arrow"), None, processor, profile, work, say)
        whole = time.monotonic() - started
    tokens = sum(map(len, examples)) * case["epochs"]
    patches = 4 * sum(e.prompt.count(processor.image_token_id) for e in examples) * case["epochs"]
    hidden, layers, *_ = SHAPES[case["shape"]]
    attention = sum(4 * layers * hidden * len(e) ** 2 for e in examples) * case["epochs"]
    flop = 4 * sizes["language"] * tokens + 2 * sizes["vision"] * patches + attention
    # loading, the first steps' warm-up and saving are in `whole`, not in the rate: that is taken between progress lines
    first, last = moments[0], moments[-1]
    share = 1 - found["history"][0]["step"] / found["steps"]
    seconds = (last - first) / share if share else whole
    return {
        "tokens": tokens, "samples_per_second": len(examples) * case["epochs"] / seconds, "tokens_per_second": tokens / seconds,
        "whole_seconds": whole, "peak_mb": int(torch.cuda.max_memory_reserved() // 2**20) if gpu else memory_mb(),
        "utilisation": flop / seconds / rate if rate else 0.0, "matrix_tflops": rate / 1e12, "steps": found["steps"],
        "longest": max(map(len, examples)),
    }  # fmt: skip


def matrix_rate() -> float:
    """FLOP a second of bfloat16 matrix products of 8,192 x 8,192: the median of 20 after 5 to warm up."""
    import statistics

    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(25):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return 2 * 8192**3 / statistics.median(times[5:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smallest", action="store_true", help="a small shape and few posts, on any machine")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be given again")
    parser.add_argument("--budget", action="store_true", help="count what the memory must hold, and measure nothing")
    asked = parser.parse_args()
    if asked.budget:
        for case in (CASES["2b-memory"], CASES["7b-memory"]):
            sizes = budget(case["shape"], case["profile"], case["tokens"])
            print(
                f"{case['shape']}, {case['tokens']:,} tokens:",
                ", ".join(f"{n} {mb:,.0f}" for n, mb in sizes.items()),
                "MB",
            )
        return
    print(
        "| case | longest record | steps | samples/s | tokens/s | FLOP utilisation | matrix TFLOP/s | whole run, s | peak MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in asked.case or CASES:
        case = dict(CASES[name])
        if asked.smallest:
            case |= {"shape": "smallest", "posts": min(case["posts"], 8), "epochs": 1, "tokens": case["tokens"] // 2}
        arguments = {"case": case, "small": asked.smallest}
        f = run("xhs_pipeline_tests.benchmarks.gpu_training:measure", arguments, lambda line: None)
        print(
            f"| {name} | {f['longest']:,} | {f['steps']} | {f['samples_per_second']:.2f} | {f['tokens_per_second']:,.0f} | "
            f"{f['utilisation']:.1%} | {f['matrix_tflops']:.0f} | {f['whole_seconds']:.0f} | {f['peak_mb']:,} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
