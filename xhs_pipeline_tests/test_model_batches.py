"""From conversations to batches: the loss lies on the answer's tokens and nowhere else, and nothing is cut in silence."""

import io
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from xhs_pipeline.splits.conversation import IMAGE_PLACEHOLDER, chat_parts
from xhs_pipeline.training.order import augment, run_batches
from xhs_pipeline.training.stages import load_examples
from xhs_pipeline.vlm.batches import IGNORED, Example, Unfit, answer_ids, fit, pad, tokenise
from xhs_pipeline.vlm.processor import load_processor
from xhs_pipeline_tests.small import PROFILE, conversation, jpeg

FRAUD = ("remove", "诈骗")
DECISION = "审核结论：违规删除\n违规类别：诈骗"


def decode(processor: Any, ids: Any) -> str:
    return str(processor.tokenizer.decode([int(i) for i in ids]))


# tokens


@pytest.mark.parametrize("sizes", [[], [(150, 90)], [(64, 220), (300, 60), (28, 28)]], ids=["none", "one", "three"])
def test_a_prompt_has_the_ids_of_the_processors_own_call(small_processor: Any, sizes: list[tuple[int, int]]) -> None:
    images = [jpeg(*size) for size in sizes]
    messages = conversation("标题", "正文，稳赚不赔。", len(images))
    text = small_processor.apply_chat_template(chat_parts(messages), add_generation_prompt=True, tokenize=False)
    pictures = [Image.open(io.BytesIO(data)) for data in images]
    called = small_processor(text=[text], images=pictures or None, return_tensors="pt")
    example = tokenise(small_processor, "p", messages, images)
    assert example.prompt == called["input_ids"][0].tolist()
    batch = pad([example], small_processor)
    if images:
        assert batch["image_grid_thw"].tolist() == called["image_grid_thw"].tolist()
        assert batch["pixel_values"].equal(called["pixel_values"])
        expected = [int(t * h * w) // 4 for t, h, w in called["image_grid_thw"].tolist()]
        assert example.prompt.count(small_processor.image_token_id) == sum(expected)
    else:
        assert "pixel_values" not in batch and small_processor.image_token_id not in example.prompt


def test_images_are_resized_into_the_profiles_pixel_limits(small_processor: Any) -> None:
    for size in [(20, 20), (2000, 1500), (600, 120)]:
        example = tokenise(small_processor, "p", conversation("标题", "", 1), [jpeg(*size)])
        tokens = example.prompt.count(small_processor.image_token_id)
        assert PROFILE.min_pixels <= tokens * 784 <= PROFILE.max_pixels, size


def test_a_training_keeps_resized_images_and_not_the_files_they_came_from(small_checkpoint: Path) -> None:
    processor = load_processor(small_checkpoint, PROFILE.min_pixels, PROFILE.max_pixels)
    file = jpeg(300, 200)
    held = sys.getrefcount(file)
    image = processor.resized(file, 0)
    assert processor.resized(bytes(bytearray(file)), 0) is image and sys.getrefcount(file) == held
    assert processor.resized(file, PROFILE.min_pixels).size != image.size


def test_prompt_and_answer_are_tokenised_apart_and_the_answer_ends_the_turn(small_processor: Any) -> None:
    with_answer = tokenise(small_processor, "p", conversation("标题", "正文", answer=FRAUD), [])
    assert with_answer.prompt == tokenise(small_processor, "p", conversation("标题", "正文"), []).prompt
    assert decode(small_processor, with_answer.prompt).endswith("<|im_start|>assistant\n")
    assert decode(small_processor, with_answer.answer) == DECISION + "<|im_end|>"
    assert with_answer.answer == answer_ids(small_processor.tokenizer, DECISION)


@pytest.mark.parametrize(("placeholders", "images"), [(1, 0), (0, 1), (2, 1)])
def test_another_number_of_placeholders_than_images_is_an_error_that_names_the_post(
    small_processor: Any, placeholders: int, images: int
) -> None:
    with pytest.raises(ValueError, match=rf"post p7: {placeholders} image placeholders but {images} images"):
        tokenise(small_processor, "p7", conversation("标题", "正文", placeholders), [jpeg(60, 60)] * images)


def test_an_image_token_smuggled_past_the_rendering_is_an_error_too(small_processor: Any) -> None:
    messages = [{"role": "user", "content": IMAGE_PLACEHOLDER + "正文<|image_pad|>"}]
    with pytest.raises(ValueError, match="2 image placeholders but 1 images"):
        tokenise(small_processor, "p", messages, [jpeg(60, 60)])


# loss


@pytest.mark.parametrize("images", [0, 2])
def test_the_loss_weights_cover_exactly_the_answer_and_a_rationale_counts_as_the_profile_says(
    small_processor: Any, images: int
) -> None:
    rationale = "要求先垫付，再以内幕消息催促转账"
    pictures = [jpeg(90, 120)] * images
    plain = tokenise(small_processor, "a", conversation("标", "正文" * 9, images, FRAUD), pictures)
    reasoned = tokenise(small_processor, "b", conversation("标题", "正文", 0, FRAUD, rationale), [])
    batch = pad([plain, reasoned], small_processor, rationale_weight=0.25)
    for row, example in enumerate([plain, reasoned]):
        ids, labels, weights, mask = (
            batch[name][row] for name in ("input_ids", "labels", "loss_weights", "attention_mask")
        )
        space = len(ids) - len(example)
        assert mask.tolist() == [0] * space + [1] * len(example), "padding stands at the left"
        assert ids[space:].tolist() == example.prompt + example.answer
        learnt = labels != IGNORED
        assert (weights > 0).equal(learnt)
        assert ids[learnt].tolist() == labels[learnt].tolist() == example.answer
        assert decode(small_processor, ids[weights == 1]) == DECISION + "<|im_end|>"
    light = batch["input_ids"][1][batch["loss_weights"][1] == 0.25]
    assert decode(small_processor, light) == "\n分析：" + rationale
    assert 0.25 not in batch["loss_weights"][0]


def test_a_rationale_of_weight_zero_is_not_learnt_and_of_weight_one_is_learnt_like_the_rest(
    small_processor: Any,
) -> None:
    example = tokenise(small_processor, "b", conversation("标题", "正文", 0, FRAUD, "催促转账"), [])
    silent, equal = (pad([example], small_processor, weight)["loss_weights"] for weight in (0.0, 1.0))
    assert int((silent > 0).sum()) == example.decided + 1
    assert int(equal.sum()) == len(example.answer)


def test_a_records_weight_scales_the_weights_of_its_tokens(small_processor: Any) -> None:
    full = tokenise(small_processor, "a", conversation("标题", "正文", 0, FRAUD, "催促转账"), [])
    one, quarter = pad([full, replace(full, weight=0.25)], small_processor, 0.5)["loss_weights"]
    assert quarter.equal(one * 0.25) and float(one.max()) == 1


def test_prompts_without_their_answers_make_a_batch_whatever_was_decided(small_processor: Any) -> None:
    texts = ("正文", "稳赚不赔，先垫付，再返利，名额有限")
    records = [tokenise(small_processor, t, conversation("标题", t, 0, FRAUD, "催促"), []) for t in texts]
    batch = pad([replace(record, answer=[]) for record in records], small_processor)
    width = max(len(record.prompt) for record in records)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == dict.fromkeys(batch, (2, width))
    assert not batch["loss_weights"].any()


def test_the_splits_label_weight_is_the_weight_a_record_is_trained_with(
    small_splits: Path, small_processor: Any, tmp_path: Path
) -> None:
    rows = pq.read_table(small_splits / "train.parquet")
    weights = [0.3 if n % 5 == 0 else 1.0 for n in range(rows.num_rows)]
    place = rows.schema.get_field_index("label_weight")
    weighed = rows.set_column(place, rows.schema.field(place), pa.array(weights, pa.float32()))
    pq.write_table(weighed, tmp_path / "t.parquet")
    examples, unfit = load_examples(tmp_path / "t.parquet", small_processor, PROFILE)
    assert not unfit and [e.weight for e in examples] == pytest.approx(weights)


def test_image_tokens_are_marked_for_the_rotary_positions(small_processor: Any) -> None:
    examples = [
        tokenise(small_processor, "a", conversation("标题", "正文", 1), [jpeg(100, 80)]),
        tokenise(small_processor, "b", conversation("标题", "正文"), []),
    ]
    batch = pad(examples, small_processor)
    assert batch["mm_token_type_ids"].bool().equal(batch["input_ids"] == small_processor.image_token_id)
    assert len(batch["image_grid_thw"]) == 1


# length


def text_ids(processor: Any, example: Example) -> list[int]:
    return [i for i in example.prompt if i not in processor.tokenizer.all_special_ids]


def large(count: int) -> list[bytes]:
    return [jpeg(140, 100), jpeg(100, 140), jpeg(112, 112)][:count]


def test_a_record_that_is_too_long_gets_smaller_images_then_fewer_and_loses_no_text(small_processor: Any) -> None:
    images = large(3)
    messages = conversation("标题", "正文一二三四五", 3, FRAUD)
    full = tokenise(small_processor, "p", messages, images)
    seen = []
    for room in range(len(full.prompt), 0, -1):
        found = fit(small_processor, "p", messages, images, room + 30, 30)
        if isinstance(found, Unfit):
            break
        assert len(found.prompt) <= room and found.answer == full.answer
        assert text_ids(small_processor, found) == text_ids(small_processor, full)
        assert found.images == images[: len(found.images)] and len(found.images) + found.images_left_out == 3
        assert found.prompt == tokenise(
            small_processor, "p", conversation("标题", "正文一二三四五", len(found.images), FRAUD), found.images,
            found.max_pixels,
        ).prompt  # fmt: skip
        if (len(found.images), found.max_pixels) not in seen[-1:]:
            seen.append((len(found.images), found.max_pixels))
    limit, least = PROFILE.max_pixels, PROFILE.min_pixels
    assert seen[0] == (3, limit) and [n for n, _ in seen] == sorted((n for n, _ in seen), reverse=True)
    assert {n for n, _ in seen} == {3, 2, 1, 0}
    assert [size for n, size in seen if n == 3] == [limit, limit // 2, limit // 4] and limit // 4 == least
    assert len(images) == 3 and messages[-2]["content"].count(IMAGE_PLACEHOLDER) == 3, "the caller's lists stay whole"


def test_smaller_images_have_the_tokens_and_patches_that_were_counted(small_processor: Any) -> None:
    messages = conversation("标题", "正文", 2, FRAUD)
    full = tokenise(small_processor, "p", messages, large(2))
    found = fit(small_processor, "p", messages, large(2), len(full.prompt) + 19, 20)
    assert isinstance(found, Example) and found.max_pixels < full.max_pixels
    batch = pad([found, full], small_processor)
    patches = [int(t * h * w) for t, h, w in batch["image_grid_thw"].tolist()]
    assert found.prompt.count(small_processor.image_token_id) == sum(patches[:2]) // 4
    assert full.prompt.count(small_processor.image_token_id) == sum(patches[2:]) // 4
    assert all(4 * 196 * tokens // 4 <= found.max_pixels for tokens in patches[:2])
    assert sum(patches) == len(batch["pixel_values"])


def test_a_post_is_shown_in_the_same_way_with_its_answer_and_without(small_processor: Any) -> None:
    """Training has the answer, evaluation and use do not; a long rationale must not change what the model sees."""
    plain = conversation("标题", "正文一二三", 2)
    for rationale in (None, "要求先垫付" * 3):
        answered = conversation("标题", "正文一二三", 2, FRAUD, rationale)
        for limit in range(60, 130, 7):
            asked = fit(small_processor, "p", plain, large(2), limit, 30)
            trained = fit(small_processor, "p", answered, large(2), limit, 30)
            if isinstance(asked, Example) and isinstance(trained, Example):
                assert (asked.prompt, asked.images, asked.max_pixels) == (
                    trained.prompt,
                    trained.images,
                    trained.max_pixels,
                )
            elif isinstance(asked, Example):
                assert isinstance(trained, Unfit) and trained.reason == "answer_too_long"
            else:
                assert isinstance(trained, Unfit) and trained.reason == "too_long"


def test_a_record_whose_text_alone_is_too_long_is_set_aside_with_the_tokens_counted(small_processor: Any) -> None:
    messages = conversation("标题", "稳赚不赔" * 60, 1, FRAUD)
    found = fit(small_processor, "p9", messages, [jpeg(100, 100)], 64, 20)
    without = len(tokenise(small_processor, "p9", conversation("标题", "稳赚不赔" * 60, 0), []))
    assert isinstance(found, Unfit) and (found.post_id, found.reason) == ("p9", "too_long")
    assert f"{without} without its images" in found.detail and "max_length 64 less answer_length 20" in found.detail
    assert "稳赚" not in found.detail


def test_an_answer_that_does_not_fit_is_set_aside_and_not_cut(small_processor: Any) -> None:
    messages = conversation("标题", "正文", 0, FRAUD, "要求先垫付" * 20)
    found = fit(small_processor, "p", messages, [], 64, 20)
    assert isinstance(found, Unfit) and found.reason == "answer_too_long"
    assert "of answer; the profile's max_length is 64" in found.detail and "垫付" not in found.detail


def test_every_record_of_a_split_is_either_kept_whole_or_named(small_splits: Path, small_processor: Any) -> None:
    file = small_splits / "train.parquet"
    rows = pq.read_table(file, columns=["post_id"])["post_id"].to_pylist()
    everything, none = load_examples(file, small_processor, PROFILE)
    assert not none and [e.post_id for e in everything] == rows
    limit = sorted(len(e.prompt) for e in everything)[len(everything) // 2] + PROFILE.answer_length
    kept, unfit = load_examples(file, small_processor, PROFILE.model_copy(update={"max_length": limit}))
    assert sorted([e.post_id for e in kept] + [u.post_id for u in unfit]) == sorted(rows)
    assert unfit and {u.reason for u in unfit} <= {"too_long", "answer_too_long"}
    whole = {e.post_id: e for e in everything}
    assert all(len(e) <= limit and e.answer == whole[e.post_id].answer for e in kept)
    first, _ = load_examples(file, small_processor, PROFILE, limit=5)
    assert [e.post_id for e in first] == rows[:5]


def test_the_tokenizer_that_is_built_here_cuts_no_text_wherever_it_is_read(
    small_checkpoint: Path, small_processor: Any
) -> None:
    from tokenizers import Tokenizer

    text = "公园散步" * 100
    assert len(Tokenizer.from_file(str(small_checkpoint / "tokenizer.json")).encode(text).ids) >= 100
    assert decode(small_processor, small_processor.tokenizer(text)["input_ids"]) == text


# order


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("records", "batch", "epochs"), [(1, 4, 3), (7, 4, 2), (230, 4, 3), (64, 1, 2)])
def test_a_run_meets_every_record_once_an_epoch_in_an_order_that_its_arguments_decide(
    records: int, batch: int, epochs: int, grouped: bool
) -> None:
    lengths = [random.Random(i).randint(10, 90) for i in range(records)] if grouped else None
    batches = run_batches(records, batch, epochs, 3, lengths)
    order = [place for rows in batches for place in rows]
    assert Counter(order) == Counter((e, r) for e in range(epochs) for r in range(records))
    assert {len(rows) for rows in batches[:-1]} <= {batch}, "every update but the last is whole"
    first = {r: n for n, (e, r) in enumerate(order) if e == 0}
    assert max(first.values()) < records + batch * 50, "an epoch ends before the next is far on"
    random.seed(99)
    assert run_batches(records, batch, epochs, 3, lengths and list(lengths)) == batches
    if records > 7:
        assert run_batches(records, batch, epochs, 4, lengths) != batches
        assert [r for e, r in order if e == 0] != [r for e, r in order if e == 1]


def test_records_of_like_length_share_a_batch() -> None:
    lengths = [random.Random(i).randint(10, 500) for i in range(401)]

    def padding(batches: list[list[tuple[int, int]]]) -> int:
        sizes = [[lengths[r] for _, r in rows] for rows in batches]
        return sum(max(b) * len(b) - sum(b) for b in sizes)

    shuffled = [(0, r) for r in random.Random(1).sample(range(401), 401)]
    assert padding(run_batches(401, 8, 2, 1, lengths)) < 0.2 * padding([shuffled[i : i + 8] for i in range(0, 401, 8)])


# augmentation


def test_augmentation_touches_the_posts_own_tokens_only_and_keeps_the_answer(small_processor: Any) -> None:
    tokenizer = small_processor.tokenizer
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    protected = frozenset(tokenizer.all_special_ids) | frozenset(newline)
    messages = conversation("早安", "导师带你投资，内幕消息，本金保证返利，名额有限，先垫付再解冻。", 2, FRAUD, "催促")
    example = tokenise(small_processor, "p", messages, [jpeg(100, 60), jpeg(60, 100)])
    start, end = ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    changed = 0
    for seed in range(200):
        found = augment(example, random.Random(seed), protected, 1.0)
        assert [t for t in found.prompt if t in protected] == [t for t in example.prompt if t in protected]
        assert replace(found, prompt=example.prompt) == example, "answer, images and all else stay"
        text = decode(small_processor, found.prompt)
        assert text.startswith(start) and text.endswith(end)
        assert not Counter(found.prompt) - Counter(example.prompt), "no token is added"
        changed += found.prompt != example.prompt
    assert changed > 180
    assert augment(example, random.Random(5), protected, 1.0) == augment(example, random.Random(5), protected, 1.0)
    assert augment(example, random.Random(5), protected, 0.0) is example


@pytest.mark.parametrize(("title", "body"), [("", ""), ("好", ""), ("", "嗯")])
def test_augmentation_leaves_the_template_alone_when_a_post_says_little_or_nothing(
    small_processor: Any, title: str, body: str
) -> None:
    tokenizer = small_processor.tokenizer
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    protected = frozenset(tokenizer.all_special_ids) | frozenset(newline)
    example = tokenise(small_processor, "p", conversation(title, body, 1, FRAUD), [jpeg(100, 60)])
    for seed in range(50):
        text = decode(small_processor, augment(example, random.Random(seed), protected, 1.0).prompt)
        assert text.startswith("<|im_start|>user\n<|vision_start|>")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
