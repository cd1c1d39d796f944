"""A few dozen synthetic posts and the smallest model of the real class: what the tests of the model's stages share."""

import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.appeals.outcomes import OUTCOMES
from xhs_pipeline.curation.duplicates import LABEL_CONFLICTS
from xhs_pipeline.curation.labels import LABEL_ISSUES
from xhs_pipeline.policy import load_policy
from xhs_pipeline.posts.schema import REMOVED, UNIQUE_POSTS, write_table
from xhs_pipeline.profile import Profile, load_profile
from xhs_pipeline.splits.conversation import render_answer, render_prompt, to_messages
from xhs_pipeline.splits.sharegpt import write_splits

POLICY = load_policy()

# The path of the embedded default (NF4, LoRA, trained embeddings, several shards) at a size where a step takes milliseconds.
PROFILE = load_profile(
    "tiny",
    {
        "tiny_vocabulary": 700, "tiny_hidden_size": 64, "tiny_layers": 2, "tiny_heads": 4, "tiny_vision_size": 32,
        "tiny_vision_depth": 1, "tiny_pretrain_epochs": 1, "shard_size": "100KB", "max_pixels": 12544,
        "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.05, "epochs": 8, "max_steps": 0, "batch_size": 4,
        "answer_length": 20, "learning_rate": 0.01, "augmentation": 0.2, "evaluations": 6, "score_batch_size": 8,
        "pack_length": 4096, "validation_share": 0.2, "calibration_share": 0.05, "test_share": 0.15,
    },
)  # fmt: skip

KINDS = (
    (("pass", "正常"), "周末 公园 散步 风 咖啡 面包 猫 花 晴天 书店 阳台 早餐 电影 野餐"),
    (("remove", "诈骗"), "稳赚 本金 导师 内幕 返利 垫付 保证 客服 冻结 转账 解冻 投资 名额 暴富"),
    (("needs_edit", "私域引流"), "私聊 主页 拉群 资料 暗号 戳我 滴滴 领取 二维码 站外 进群 备注 小窗 扣一"),
    (("escalate", "医疗违规"), "根治 偏方 疗程 祖传 停药 秘方 失眠 湿气 排毒 疗效 断根 老中医 药丸 复发"),
)


def jpeg(width: int, height: int, colour: tuple[int, int, int] = (40, 160, 200)) -> bytes:
    """A picture with some structure, so that its patches differ."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), colour)
    ImageDraw.Draw(image).ellipse((width // 5, height // 4, width // 2, height // 2), fill=colour[::-1])
    out = io.BytesIO()
    image.save(out, format="JPEG", quality=90)
    return out.getvalue()


def synthetic_posts(count: int = 96) -> list[dict[str, Any]]:
    """Posts of four categories, a third of them with one or two images, a quarter with a rationale."""
    posts = []
    for number in range(count):
        rng = random.Random(number)
        (verdict, category), words = KINDS[number % len(KINDS)]
        chosen = rng.choices(words.split(), k=rng.randint(4, 24))
        sizes = [(120 + 3 * number, 90), (64, 200)][: number % 3] if number % 5 < 3 else []
        posts.append(
            {
                "post_id": f"p{number:03}",
                "group_id": f"g{number:03}",
                "founders": [f"g{number:03}"],
                "title": "".join(chosen[:2]),
                "body": "，".join(chosen[2:]) + "。",
                "images": [
                    {"bytes": jpeg(*size, colour=(2 * number, 200 - number, 60)), "path": f"p{number:03}-{i}.jpg"}
                    for i, size in enumerate(sizes)
                ],
                "week": "2026-02-16",
                "verdict": verdict,
                "category": category,
                "severity": POLICY.severity(category),
                "rationale": f"提到{chosen[0]}与{chosen[-1]}" if number % 4 == 1 else None,
                "label_source": "source",
                "author_hash": f"{number:032x}",
                "schema_version": 1,
            }
        )
    return posts


def write_unique_folder(
    folder: Path,
    posts: list[dict[str, Any]],
    removed: list[dict[str, Any]] | None = None,
    conflicts: list[dict[str, Any]] | None = None,
) -> None:
    """A unique_posts folder of one week; `conflicts` are posts of UNIQUE_POSTS that stand aside, with a set_id each."""
    for name, rows in (("posts", posts), ("set_aside", conflicts or [])):
        (folder / name).mkdir(parents=True)
        write_table(
            folder / name / "2026-02-16.parquet", UNIQUE_POSTS, [pa.RecordBatch.from_pylist(rows, UNIQUE_POSTS)]
        )
    pq.write_table(pa.Table.from_pylist(removed or [], REMOVED), folder / "removed.parquet")
    pq.write_table(pa.Table.from_pylist(conflicts or [], LABEL_CONFLICTS), folder / "label_conflicts.parquet")


def make_splits(folder: Path, profile: Profile = PROFILE, count: int = 96) -> Path:
    """train / validation / calibration / test as sharegpt_splits writes them."""
    unique, outcomes, issues = folder / "unique", folder / "outcomes.parquet", folder / "label_issues.parquet"
    write_unique_folder(unique, synthetic_posts(count))
    pq.write_table(OUTCOMES.empty_table(), outcomes)
    pq.write_table(LABEL_ISSUES.empty_table(), issues)
    out = folder / "splits"
    out.mkdir()
    built = write_splits(unique, outcomes, issues, POLICY, profile, out)
    assert all(check.passed for check in built.checks if check.blocking), built.checks
    return out


def conversation(
    title: str, body: str, images: int = 0, answer: tuple[str, str] | None = None, rationale: str | None = None
) -> list[dict[str, str]]:
    """The messages of a post as sharegpt_splits writes them, with the embedded profile's prompt."""
    prompt = render_prompt(title, body, POLICY, PROFILE.prompt)
    return to_messages(prompt, images, render_answer(*answer, POLICY, rationale) if answer else None)


# What trains without quantisation, dropout or augmentation: nothing but the arithmetic differs between two ways to compute.
PLAIN = PROFILE.model_copy(update={"quantization": "none", "lora_dropout": 0.0, "augmentation": 0.0})
FRAUD = ("remove", "诈骗")


def record(processor: Any, name: str, text: str, images: int = 0, rationale: str | None = None) -> Any:
    """A tokenised training record with pictures of different sizes."""
    from xhs_pipeline.vlm.batches import tokenise

    messages = conversation("标题", text, images, FRAUD, rationale)
    return tokenise(processor, name, messages, [jpeg(90 + 20 * i, 120) for i in range(images)])


WORDS_KNOWN = ("周末公园散步", "稳赚不赔加我") * 8


def model_folder(folder: Path, profile: Profile = PROFILE, texts: Sequence[str] = WORDS_KNOWN) -> Path:
    """A folder as merged_model writes it: an untrained model of the real class, which answers in form.

    texts: what its tokenizer is built of; a character that is in none of them is three tokens instead of one.
    """
    from xhs_pipeline.splits.conversation import prompt_digest
    from xhs_pipeline.vlm.card import ModelCard, write_card
    from xhs_pipeline.vlm.processor import load_processor
    from xhs_pipeline.vlm.tiny import build_tiny

    build_tiny(folder, texts, POLICY, profile, lambda line: None)
    template = load_processor(folder, profile.min_pixels, profile.max_pixels).chat_template
    write_card(folder, ModelCard(profile, POLICY, prompt_digest(POLICY, profile.prompt, template)))
    return folder


def jsonl(folder: Path, *rows: dict[str, Any] | bytes, name: str = "posts.jsonl") -> Path:
    """A file of JSON lines; bytes are a line as they are."""
    file = folder / name
    encoded = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in rows]
    file.write_bytes(b"".join(line + b"\n" for line in encoded))
    return file


def records_file(file: Path, examples: Any) -> Any:
    """Examples as a training reads them: from a file."""
    from xhs_pipeline.training.records import Records, write_records

    write_records(file, examples)
    return Records(file)
