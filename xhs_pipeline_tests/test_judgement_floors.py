"""The cheap answers that every model is compared with, on small texts and on real posts."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from xhs_pipeline.judgement import floors, metrics
from xhs_pipeline.vlm.batches import Unfit
from xhs_pipeline.vlm.scoring import Judgement, at_temperature
from xhs_pipeline_tests.test_judgement_metrics import EDIT, FRAUD, HARMLESS, LURE, POLICY, REMOVE, posts_table

REAL_POSTS = Path(__file__).resolve().parents[1].parent / "shared" / "real_posts" / "dev.jsonl"


def texts(answers: list[tuple[str, str]], bodies: list[str]) -> pa.Table:
    return posts_table(answers, title=[""] * len(bodies), body=bodies)


TRAIN = texts(
    [FRAUD, FRAUD, FRAUD, HARMLESS, HARMLESS, HARMLESS, LURE, LURE],
    [
        "投资返利稳赚",
        "投资返利翻倍",
        "返利投资群",
        "今天天气真好",
        "今天吃了火锅",
        "天气好去公园",
        "加微信领取",
        "微信私聊领取",
    ],
)


def test_the_majority_floor_gives_the_commonest_category_with_its_commonest_verdict():
    train = posts_table([HARMLESS, HARMLESS, (REMOVE, "诈骗"), (REMOVE, "诈骗"), (EDIT, "诈骗")])
    got = floors.majority_floor(train, posts_table([HARMLESS, FRAUD]), POLICY)
    assert set(zip(got[metrics.VERDICT], got[metrics.CATEGORY], strict=True)) == {(REMOVE, "诈骗")}
    assert got["p_category_诈骗"].tolist() == [0.6, 0.6]
    assert got["p_verdict_pass"].tolist() == [0.4, 0.4]


def test_the_linear_floor_learns_words_and_answers_only_what_the_policy_allows():
    test = texts([FRAUD, HARMLESS, LURE], ["投资返利", "今天天气", "微信领取"])
    got = floors.tfidf_floor(TRAIN, test, POLICY, seed=0)
    assert list(zip(got[metrics.VERDICT], got[metrics.CATEGORY], strict=True)) == [FRAUD, HARMLESS, LURE]
    assert metrics.usable(got, POLICY).all()
    np.testing.assert_allclose(got[metrics.category_columns(POLICY)].sum(axis=1), 1)
    np.testing.assert_allclose(got[metrics.verdict_columns(POLICY)].sum(axis=1), 1)


def test_the_linear_floor_gives_the_same_answers_twice():
    test = texts([FRAUD, HARMLESS], ["投资", "公园"])
    first, second = (floors.tfidf_floor(TRAIN, test, POLICY, seed=3) for _ in range(2))
    assert first.equals(second)


def test_a_training_set_with_one_class_is_answered_with_it():
    got = floors.tfidf_floor(texts([FRAUD] * 3, ["投资返利"] * 3), texts([HARMLESS], ["天气"]), POLICY, seed=0)
    assert (got[metrics.VERDICT][0], got[metrics.CATEGORY][0]) == FRAUD
    assert got["p_category_诈骗"][0] == 1.0


def test_an_empty_test_set_gives_an_empty_frame_with_all_columns():
    for got in (
        floors.majority_floor(TRAIN, TRAIN.slice(0, 0), POLICY),
        floors.tfidf_floor(TRAIN, TRAIN.slice(0, 0), POLICY, seed=0),
    ):
        assert len(got) == 0
        metrics.check_predictions(got, POLICY)


def test_texts_that_share_no_character_lower_min_df_and_say_so():
    got = floors.tfidf_floor(texts([FRAUD, HARMLESS], ["甲乙", "丙丁"]), texts([FRAUD], ["甲乙"]), POLICY, seed=0)
    assert got[metrics.CATEGORY][0] == "诈骗"
    assert "min_df is 1" in got.attrs["note"]


def test_posts_without_any_text_get_the_majority_answer_and_the_frame_says_so():
    got = floors.tfidf_floor(texts([FRAUD, FRAUD, HARMLESS], [""] * 3), texts([HARMLESS], [""]), POLICY, seed=0)
    assert got[metrics.CATEGORY][0] == "诈骗"
    assert "no text" in got.attrs["note"]


def test_the_untuned_base_is_a_floor_like_the_others_and_says_what_it_could_not_answer():
    answers = POLICY.answers()
    scores = {a: float(a == b) * 4 for a in answers for b in [FRAUD]}
    judged = at_temperature(Judgement("p0", "", "", {}, {}, True, tuple(scores[a] for a in answers)), POLICY, 1.0)
    broken = at_temperature(Judgement("p1", "", "", {}, {}, True, (float("nan"),) * len(answers)), POLICY, 1.0)
    got = floors.untuned_floor(
        posts_table([FRAUD, HARMLESS, LURE]), [judged, broken, Unfit("p2", "too_long", "")], POLICY
    )
    assert (got[metrics.VERDICT][0], got[metrics.CATEGORY][0]) == FRAUD
    assert metrics.usable(got, POLICY).tolist() == [True, False, False]
    assert got["p_category_诈骗"][0] == pytest.approx(judged.category_probs["诈骗"])
    assert got.attrs["note"] == "the untuned base gave no usable answer to 2 of 3 posts"
    assert metrics.evaluate(got, POLICY)["counts"]["invalid"] == 2


def test_a_model_that_never_heard_of_a_category_gives_it_no_probability():
    old = POLICY.with_wording("old", {**POLICY.wording, "categories": POLICY.wording["categories"][:-1]})
    judged = at_temperature(Judgement("p0", "", "", {}, {}, True, tuple(range(len(old.answers())))), old, 1.0)
    got = floors.untuned_floor(posts_table([FRAUD]), [judged], POLICY)
    assert got[metrics.category_columns(POLICY)[-1]][0] == 0.0 and metrics.usable(got, POLICY).all()


def test_a_floor_without_training_posts_or_with_impossible_labels_is_refused():
    with pytest.raises(ValueError, match="0 rows"):
        floors.majority_floor(TRAIN.slice(0, 0), TRAIN, POLICY)
    with pytest.raises(ValueError, match="remove with 正常"):
        floors.tfidf_floor(texts([(REMOVE, "正常")], ["字"]), TRAIN, POLICY, seed=0)


def test_the_linear_floor_reaches_what_was_measured_on_real_posts():
    if not REAL_POSTS.exists():
        pytest.skip(f"{REAL_POSTS} is not here; the floor on real posts is not measured")
    with REAL_POSTS.open(encoding="utf-8") as file:  # not splitlines(): texts hold U+2028
        rows = [json.loads(line) for line in file]
    random.Random(1).shuffle(rows)
    answers = [
        (PASS_OR_REMOVE[r["policy_verdict"]], CATEGORY.get(r["gold_category"], r["gold_category"])) for r in rows
    ]
    posts = texts(answers, [r["text"] for r in rows])
    got = floors.tfidf_floor(posts.slice(0, 2600), posts.slice(2600, 1000), POLICY, seed=0)
    figures = metrics.evaluate(got, POLICY)["headline"]
    # five random splits gave 0.771 to 0.806 and 0.838 to 0.851
    assert figures["category_macro_f1"]["value"] > 0.76
    assert figures["binary_accuracy"]["value"] > 0.83


PASS_OR_REMOVE = {"pass": HARMLESS[0], "remove": REMOVE}
CATEGORY = {"normal": HARMLESS[1]}
