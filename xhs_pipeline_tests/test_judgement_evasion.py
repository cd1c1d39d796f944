"""Disguises as people write them: seeded, readable, and never a change where there was nothing to disguise."""

import io
import random

import pytest
from PIL import Image

from xhs_pipeline.curation.images import clean_image
from xhs_pipeline.curation.text import matching_form, normalise
from xhs_pipeline.judgement.evasion import transforms as evasion
from xhs_pipeline.judgement.evasion.tables import EMOJI, MARTIAN, SPLIT
from xhs_pipeline.judgement.evasion.transforms import CHINESE_NAMES, IN_IMAGE, TEXT_TRANSFORMS, Disguised, disguise

POST = Disguised(
    "加我微信领红包", "稳赚不赔，日赚500元，不要错过这个赚钱的好机会，名额有限先到先得，我们的老师带你一起投资理财"
)
TEXTS = sorted(TEXT_TRANSFORMS)


def apply(name: str, text: str, seed: int = 7) -> str:
    return TEXT_TRANSFORMS[name][1](text, random.Random(seed))


@pytest.mark.parametrize("name", TEXTS)
def test_a_disguise_changes_the_post_and_is_the_same_every_time(name: str) -> None:
    one, again = disguise(name, "p1", POST, 1), disguise(name, "p1", POST, 1)
    assert one is not None and one == again and one != POST
    assert one.images == POST.images


@pytest.mark.parametrize("name", ["homophones", "pinyin", "initials", "separators"])
def test_another_post_or_seed_gets_another_disguise(name: str) -> None:
    found = {disguise(name, post, POST, seed) for post, seed in (("p1", 1), ("p2", 1), ("p3", 1), ("p1", 2), ("p1", 3))}
    assert len(found) > 1


@pytest.mark.parametrize("name", sorted(CHINESE_NAMES))
def test_where_there_is_nothing_to_disguise_the_post_does_not_count(name: str) -> None:
    assert disguise(name, "p1", Disguised("", "!?…", (b"jpeg",)), 1) is None


def test_homophones_sound_the_same_and_are_other_characters() -> None:
    from pypinyin import lazy_pinyin

    text = "稳赚不赔名额有限先到先得"
    changed = apply("homophones", text)
    assert len(changed) == len(text) and lazy_pinyin(changed) == lazy_pinyin(text)
    assert 2 <= sum(a != b for a, b in zip(text, changed, strict=True)) < len(text), "still read at sight"


def test_transforms_do_what_their_name_says() -> None:
    assert apply("split_characters", "骗钱") == "马扁钅戋"
    assert apply("traditional", "领红包") == "領紅包"
    assert apply("emoji", "红包和枪") == "🧧和🔫"
    assert apply("martian", "我的") == "莪旳"
    assert set("abcdefghijklmnopqrstuvwxyz") & set(apply("pinyin", "微信转账稳赚不赔"))
    assert len(apply("initials", "微信转账稳赚不赔")) == len("微信转账稳赚不赔")
    assert {apply("digits", "a1", seed) for seed in range(20)} == {"ａ①", "ａ１"}


def test_cleaning_undoes_what_no_reader_sees_and_comparing_undoes_the_rest_of_it() -> None:
    hidden = apply("zero_width", POST.body)
    assert hidden != POST.body and normalise(hidden) == normalise(POST.body)
    for name in ("separators", "traditional", "digits"):
        assert matching_form("", apply(name, POST.body)) == matching_form("", POST.body), name


def test_the_text_moves_into_a_picture_and_leaves_the_body() -> None:
    try:
        evasion.chinese_font()
    except evasion.FontMissing as missing:
        pytest.skip(str(missing))
    moved = disguise(IN_IMAGE, "p1", Disguised(POST.title, POST.body, (b"other",)), 1)
    assert moved is not None and (moved.title, moved.body, moved.images[1]) == ("", "", b"other")
    image = Image.open(io.BytesIO(moved.images[0]))
    assert image.format == "JPEG" and image.width == evasion.IMAGE_WIDTH
    low, high = image.convert("L").getextrema()
    assert low < 60 < 200 < high, "something is written there"
    blank = Image.open(io.BytesIO(evasion.render_text("　")[0]))
    assert blank.convert("L").getextrema()[0] > 200


def test_a_text_too_long_for_a_page_takes_several_that_cleaning_does_not_shrink() -> None:
    try:
        evasion.chinese_font()
    except evasion.FontMissing as missing:
        pytest.skip(str(missing))
    moved = disguise(IN_IMAGE, "p1", Disguised("标题", "字" * 1000, (b"other",)), 1)
    assert moved is not None and len(moved.images) == 3 and moved.images[2] == b"other"
    for page in moved.images[:2]:
        clean = clean_image(page)
        assert (clean.width, clean.data) == (evasion.IMAGE_WIDTH, page)


@pytest.mark.parametrize("name", TEXTS)
def test_a_placeholder_stays_whole_whatever_stands_around_it(name: str) -> None:
    post = Disguised("加我<微信号:谐音>", "<手机号>领红包赚钱5元<QQ号:变体>稳赚不赔<not one5>")
    changed = disguise(name, "p1", post, 1)
    assert changed is not None and changed != post
    assert "<微信号:谐音>" in changed.title
    assert changed.body.startswith("<手机号>") and "<QQ号:变体>" in changed.body
    assert disguise(name, "p1", Disguised("<微信号:谐音>", "<QQ号><手机号:变体>"), 1) is None


def test_no_table_maps_a_character_to_itself() -> None:
    for table in (SPLIT, MARTIAN, EMOJI):
        assert not [key for key, value in table.items() if key == value or not value]
    assert all(len(key) == 1 for key in (*SPLIT, *MARTIAN))
