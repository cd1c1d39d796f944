"""Retention under disguise: judges whose weakness is known show it in the figures, and nothing else shows."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from xhs_pipeline.judgement.evasion import transforms as evasion
from xhs_pipeline.judgement.evasion import variants
from xhs_pipeline.judgement.evasion.robustness import measure
from xhs_pipeline.judgement.evasion.transforms import CHINESE_NAMES, IN_IMAGE
from xhs_pipeline.judgement.evasion.variants import IMAGE_ORDER, UNRELATED_PHOTO, Variants, choose
from xhs_pipeline.judgement.judge import Judge, Post, as_post
from xhs_pipeline.splits.sharegpt import SHAREGPT
from xhs_pipeline_tests.small import POLICY, PROFILE, jpeg
from xhs_pipeline_tests.test_judgement_metrics import FRAUD, HARMLESS, LURE, frame

WORDS = ["周末", "公园", "散步", "咖啡", "面包", "晴天", "书店", "阳台", "早餐", "电影", "野餐", "朋友", "旅行", "拍照"]
FONT = True
try:
    evasion.chinese_font()
except evasion.FontMissing:
    FONT = False


def split(violating: int = 60, harmless: int = 60) -> pa.Table:
    """Test posts of which the violating ones say 稳赚; every second one has one, two or three images; two posts a group."""
    rows = []
    for number in range(violating + harmless):
        rng = random.Random(number)
        chosen = rng.choices(WORDS, k=8)
        bad = number < violating
        verdict, category = (FRAUD if number % 3 else LURE) if bad else HARMLESS
        sizes = [(60 + number, 80), (90, 60), (70, 70)][: number % 3 + 1] if number % 2 else []
        images = [jpeg(*size, colour=(number, 90 * i, 200)) for i, size in enumerate(sizes)]
        rows.append(
            {
                "post_id": f"p{number:03}", "group_id": f"g{number // 2:03}", "title": "".join(chosen[:2]),
                "body": f"{'，'.join(chosen[2:])}，{'稳赚不赔' if bad else '心情很好'}，加V：<微信号>，2024年",
                "verdict": verdict, "category": category, "week": "2026-02-16", "label_source": "source", "images_left_out": 0,
                "images": [{"bytes": data, "path": f"p{number:03}_{i}.jpg"} for i, data in enumerate(images)],
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SHAREGPT)


def judge(says: Callable[[Post], bool]) -> Callable[[list[Post], pa.Table], pd.DataFrame]:
    """A model that calls a post fraud where `says` is true and lets every other one pass."""

    def ask(posts: list[Post], labels: pa.Table) -> pd.DataFrame:
        truth = list(zip(labels["verdict"].to_pylist(), labels["category"].to_pylist(), strict=True))
        columns = {name: labels[name].to_pylist() for name in ("post_id", "group_id", "title", "body")}
        return frame(truth, [FRAUD if says(post) else HARMLESS for post in posts], **columns)

    return ask


def asked_of(ask: Callable[[list[Post], pa.Table], pd.DataFrame], test: pa.Table) -> pd.DataFrame:
    return ask([as_post(row) for row in test.to_pylist()], test)


def measured(
    says: Callable[[Post], bool], test: pa.Table, seed: int = 3, most: int = 200, **kwargs: Any
) -> dict[str, Any]:
    ask = judge(says)
    return measure(test, asked_of(ask, test), ask, POLICY, PROFILE, seed, most, log=lambda line: None, **kwargs)


def keyword(post: Post) -> bool:
    return "稳赚" in post.title + post.body


def test_a_keyword_loses_recall_where_it_is_rewritten_and_none_where_cleaning_undoes_that() -> None:
    found = measured(keyword, split())
    transforms = found["transforms"]
    assert set(transforms) == set(CHINESE_NAMES)
    for name in ("homophones", "pinyin", "initials", "emoji"):
        assert transforms[name]["retention"]["value"] < 0.9, name
        assert transforms[name]["recall_before"]["value"] == 1.0
    kept = transforms["zero_width"]
    assert kept["changed_violating"] == kept["changed_benign"] == 60
    assert kept["retention"]["value"] == kept["recall_after"]["value"] == 1.0
    assert found["worst"] == "traditional", "every 稳赚 is 稳賺 then; the first of those that lose everything"
    assert found["worst_retention"] == transforms["traditional"]["retention"]
    values = [t["retention"]["value"] for t in transforms.values() if t["retention"]["value"] is not None]
    assert found["macro_retention"]["value"] == pytest.approx(sum(values) / len(values))
    assert found["worst_retention"]["value"] == min(values) == 0.0
    assert found["benign_fpr_change"]["value"] == 0.0


def test_retention_is_recall_after_over_recall_before_of_the_posts_that_changed() -> None:
    half = measured(lambda post: keyword(post) and int(post.post_id[1:4]) % 4 > 0, split())
    one = half["transforms"]["homophones"]
    assert one["recall_before"] | {"low": 0, "high": 0} == {"value": 0.75, "n": 60, "reason": None, "low": 0, "high": 0}
    assert one["retention"]["value"] == pytest.approx(one["recall_after"]["value"] / 0.75)
    assert one["retention"]["low"] < one["retention"]["value"] < one["retention"]["high"]
    assert half["macro_retention"]["low"] < half["macro_retention"]["value"] < half["macro_retention"]["high"]
    assert half["transforms"]["digits"]["retention"]["value"] == 1.0


def test_a_post_that_a_transform_does_not_change_does_not_count_for_it() -> None:
    test = split()
    bodies = [
        b if i % 2 else b.replace("，2024年", "").replace("加V", "加") for i, b in enumerate(test["body"].to_pylist())
    ]
    test = test.set_column(test.schema.get_field_index("body"), "body", pa.array(bodies))
    digits = measured(keyword, test)["transforms"]["digits"]
    assert (digits["changed_violating"], digits["changed_benign"]) == (30, 30)
    assert digits["recall_after"]["n"] == digits["retention"]["n"] == 30


def test_a_judge_that_suspects_mixed_scripts_flags_harmless_posts_written_in_them() -> None:
    def mixed(post: Post) -> bool:
        return sum(c.isascii() and c.isalpha() for c in post.title + post.body) > 4

    found = measured(mixed, split())
    assert found["transforms"]["pinyin"]["fpr_before"]["value"] == 0.0
    assert (
        found["transforms"]["pinyin"]["fpr_after"]["value"]
        == found["transforms"]["pinyin"]["fpr_change"]["value"]
        > 0.9
    )
    assert found["transforms"]["traditional"]["fpr_change"]["value"] == 0.0
    assert found["benign_fpr_change"] == found["transforms"]["pinyin"]["fpr_change"]
    retention = found["transforms"]["pinyin"]["retention"]
    assert retention["value"] is None and "nothing to keep" in retention["reason"]
    assert found["worst"] is None and found["macro_retention"]["value"] is None and found["macro_retention"]["reason"]


def test_the_order_of_images_and_a_photo_more_matter_to_a_judge_that_looks_at_them_and_to_no_other() -> None:
    test = split()
    blind = measured(keyword, test)["metamorphic"]
    assert {name: m["verdict_changed"]["value"] for name, m in blind.items()} == {
        UNRELATED_PHOTO: 0.0,
        IMAGE_ORDER: 0.0,
    }
    first = dict(
        zip(
            test["post_id"].to_pylist(),
            (row[0]["bytes"] if row else b"" for row in test["images"].to_pylist()),
            strict=True,
        )
    )

    def by_first(post: Post) -> bool:
        return post.images[:1] == (first[post.post_id[:4]],)

    found = measured(by_first, test)["metamorphic"]
    several = int(pc.sum(pc.greater(pc.list_value_length(test["images"]), 1)).as_py())
    assert found[IMAGE_ORDER]["n"] == several and found[IMAGE_ORDER]["verdict_changed"]["value"] == 1.0
    assert found[IMAGE_ORDER]["category_changed"]["value"] == 1.0
    room = test.num_rows - sum(len(row) >= PROFILE.max_images for row in test["images"].to_pylist())
    assert found[UNRELATED_PHOTO]["n"] == room
    assert found[UNRELATED_PHOTO]["verdict_changed"]["value"] == 0.0, "the first image stays the first"
    counting = measured(lambda post: len(post.images) == 1, test)["metamorphic"][UNRELATED_PHOTO]["verdict_changed"]
    assert 0 < counting["low"] < counting["value"] < counting["high"] <= 1


def test_the_same_seed_gives_the_same_figures_from_a_table_or_its_file_in_any_order(tmp_path: Path) -> None:
    test = split()
    ask = judge(keyword)
    predictions = asked_of(ask, test)
    turned = test.take(list(range(test.num_rows))[::-1])
    pq.write_table(turned, tmp_path / "test.parquet", row_group_size=16)
    found = [
        measure(of, frame_, ask, POLICY, PROFILE, seed, 20, lambda line: None)
        for of, frame_, seed in (
            (test, predictions, 3),
            (test, predictions, 3),
            (tmp_path / "test.parquet", predictions[::-1], 3),
            (test, predictions, 4),
        )  # fmt: skip
    ]
    assert found[0] == found[1] == found[2] != found[3]
    assert json.loads(json.dumps(found[0], allow_nan=False)) == found[0]


def test_few_posts_give_reasons_instead_of_figures() -> None:
    few = measured(keyword, split(29, 29))
    assert few["posts"] == {"violating": 29, "benign": 29}
    for figures in few["transforms"].values():
        assert figures["retention"]["value"] is None and figures["fpr_change"]["value"] is None
    assert "29 violating posts changed, at least 30" in few["transforms"]["homophones"]["retention"]["reason"]
    assert few["transforms"]["homophones"]["recall_before"]["value"] == 1.0
    nobody = measured(keyword, split(0, 0))
    assert nobody["posts"] == {"violating": 0, "benign": 0} and nobody["macro_retention"]["value"] is None
    assert nobody["metamorphic"][IMAGE_ORDER]["verdict_changed"]["reason"]
    assert nobody["transforms"]["homophones"]["recall_before"]["reason"]


def test_a_sample_holds_every_kind_of_post_and_stays_when_the_split_grows() -> None:
    test = split(90, 90)
    most = 12
    sample = choose(test, POLICY, 1, most)
    assert [post.violating for post in sample].count(True) == most and len(sample) == 2 * most
    kinds = dict(
        zip(
            test["post_id"].to_pylist(),
            zip(test["category"].to_pylist(), pc.list_value_length(test["images"]).to_pylist(), strict=True),
            strict=True,
        )
    )
    assert {(kinds[p.post_id][0], kinds[p.post_id][1] > 0) for p in sample} == {(c, bool(n)) for c, n in kinds.values()}
    smaller = choose(test.filter(pc.not_equal(pc.utf8_slice_codeunits(test["post_id"], 3), "7")), POLICY, 1, most)
    assert len({p.post_id for p in sample} & {p.post_id for p in smaller}) >= 0.75 * len(sample)
    assert choose(test, POLICY, 2, most) != sample
    assert len(choose(test, POLICY, 1, 1000)) == 180


def test_what_the_model_reads_went_through_cleaning_and_keeps_its_placeholders() -> None:
    asked: list[Post] = []

    def ask(posts: list[Post], labels: pa.Table) -> pd.DataFrame:
        asked.extend(posts)
        return judge(keyword)(posts, labels)

    test = split(10, 10)
    measure(test, asked_of(judge(keyword), test), ask, POLICY, PROFILE, 3, 20, lambda line: None)
    by_name: dict[str, list[Post]] = {}
    for post in asked:
        by_name.setdefault(post.post_id.partition("#")[2], []).append(post)
    assert "zero_width" not in by_name, "cleaning gives back the post that was judged already"
    assert set(by_name) | {"zero_width"} == {
        *(CHINESE_NAMES if FONT else set(CHINESE_NAMES) - {IN_IMAGE}),
        UNRELATED_PHOTO,
        IMAGE_ORDER,
    }
    for name, posts in by_name.items():
        if name != IN_IMAGE:
            assert all("<微信号>" in post.body for post in posts), name


def test_a_photo_comes_from_another_group_and_from_a_harmless_post() -> None:
    test = split(20, 20)
    photos = variants.harmless_photos(test, POLICY, 5)
    made, rows = Variants(PROFILE, 5, photos), test.to_pylist()
    group_of = {row["images"][0]["bytes"]: row["group_id"] for row in rows if row["images"]}
    harmless = {row["group_id"] for row in rows if row["category"] == "正常"}
    for row in rows:
        post = made.of(UNRELATED_PHOTO, row, as_post(row))
        if post is not None:
            assert group_of[post.images[-1]] in harmless - {row["group_id"]} and post.images[:-1] == as_post(row).images
    alone = Variants(PROFILE, 5, ()).of(UNRELATED_PHOTO, rows[0], as_post(rows[0]))
    assert alone is not None and alone.images == (variants.gradient(),)
    full = Variants(PROFILE.model_copy(update={"max_images": 1}), 5, photos)
    assert full.of(UNRELATED_PHOTO, rows[1], as_post(rows[1])) is None
    assert made.of(IMAGE_ORDER, {**rows[1], "images_left_out": 1}, as_post(rows[1])) is None


def test_a_machine_without_a_chinese_font_measures_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import font_manager

    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    evasion.chinese_font.cache_clear()
    try:
        found = measured(keyword, split(30, 30))
    finally:
        evasion.chinese_font.cache_clear()
    drawn = found["transforms"][IN_IMAGE]
    assert "no font" in drawn["retention"]["reason"] and "no font" in drawn["recall_after"]["reason"]
    assert drawn["changed_violating"] == 0 and found["transforms"]["homophones"]["retention"]["value"] is not None


def test_answers_about_other_posts_and_a_split_that_was_not_judged_are_refused() -> None:
    test, ask = split(4, 4), judge(keyword)
    predictions = asked_of(ask, test)
    with pytest.raises(ValueError, match="lack 1 of 8 sampled test posts"):
        measure(test, predictions[:-1], ask, POLICY, PROFILE, 3, 20, lambda line: None)
    with pytest.raises(ValueError, match="in the order asked"):
        measure(test, predictions, lambda p, t: ask(p, t)[::-1], POLICY, PROFILE, 3, 20, lambda line: None)


@pytest.mark.skipif(not FONT, reason="no font with Chinese characters")
def test_where_the_profile_reads_images_the_text_moved_into_one_is_read_and_so_is_a_new_order() -> None:
    pytest.importorskip("rapidocr")
    row = split(1, 0).to_pylist()[0]
    pages = evasion.render_text("周末公园散步咖啡"), evasion.render_text("导师内幕稳赚不赔")
    images = [{"bytes": page, "path": "a.jpg"} for (page,) in pages]
    row |= {"images": images, "ocr_text": "周末公园散步咖啡\n导师内幕稳赚不赔", "qr_codes": 0}
    made, stored = Variants(PROFILE.model_copy(update={"ocr": True}), 1, ()), as_post(row)
    turned, moved = made.of(IMAGE_ORDER, row, stored), made.of(IN_IMAGE, row, stored)
    assert turned is not None and turned.ocr_text == "导师内幕稳赚不赔\n周末公园散步咖啡"
    assert moved is not None and (moved.title, moved.body, len(moved.images)) == ("", "", 3)
    assert "稳赚不赔" in (moved.ocr_text or "") and (moved.ocr_text or "").endswith(stored.ocr_text or "-")
    assert "微信号" in (moved.ocr_text or "")


def test_a_real_model_is_measured_on_the_splits_that_the_pipeline_wrote(small_splits: Path, tmp_path: Path) -> None:
    from xhs_pipeline.judgement.decisions import decided
    from xhs_pipeline.judgement.frame import judged_frame
    from xhs_pipeline.splits.conversation import prompt_digest
    from xhs_pipeline.vlm.card import ModelCard, write_card
    from xhs_pipeline.vlm.processor import load_processor
    from xhs_pipeline.vlm.tiny import build_tiny

    build_tiny(tmp_path, ["周末公园散步", "稳赚不赔加我"] * 8, POLICY, PROFILE, lambda line: None)
    processor = load_processor(tmp_path, PROFILE.min_pixels, PROFILE.max_pixels)
    write_card(tmp_path, ModelCard(PROFILE, POLICY, prompt_digest(POLICY, PROFILE.prompt, processor.chat_template)))
    model = Judge(tmp_path, POLICY)

    def ask(posts: list[Post], labels: pa.Table) -> pd.DataFrame:
        return decided(judged_frame(labels, model.judge(posts), POLICY), POLICY)

    file = small_splits / "test.parquet"
    test = pq.read_table(file)
    lines: list[str] = []
    found = measure(file, asked_of(ask, test), ask, POLICY, model.profile, 1, 8, lines.append)
    assert 0 < found["posts"]["violating"] <= 8 and found["transforms"]["homophones"]["changed_violating"] > 0
    assert found["metamorphic"][UNRELATED_PHOTO]["n"] > 0
    assert any(
        line.startswith(f"evasion: {sum(found['posts'].values())}/{sum(found['posts'].values())} test posts")
        for line in lines
    )
    assert set(found) == {
        "posts", "seed", "transforms", "macro_retention", "worst_retention", "worst", "benign_fpr_change", "unmade", "metamorphic",
    }  # fmt: skip
