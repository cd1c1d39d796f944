"""The two texts of a post: what the model reads, and the form posts are compared in."""

import random
import time

import pytest

from xhs_pipeline.curation.text import matching_form, normalise


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("微\u200b信\u200d号\ufe0f", "微信号"),
        ("\ufeff好\u202e看\u2066的\x00\x07", "好看的"),
        ("全角\u3000空格\xa0\t 在", "全角 空格 在"),
        ("一\n\n\n\n二  \n  三", "一\n\n二\n三"),
        ("hi\U000e0069\U000e0067\U000e006e", "hi"),
        ("坏\ud800字", "坏\ufffd字"),
        (None, ""),
        (" \u200b\u3164\u2800 \n", ""),
    ],
)
def test_what_no_reader_can_see_is_removed(raw: str | None, clean: str) -> None:
    assert normalise(raw) == clean


@pytest.mark.parametrize("text", ["👨‍👩‍👧 ❤️ 1️⃣", "Ｖ①③⑧ 繁體 ……！！", "加 V：abc\n第二行"])
def test_the_authors_wording_emoji_and_disguises_stay(text: str) -> None:
    assert normalise(text) == text


def test_nothing_is_ever_cut() -> None:
    assert len(normalise("好" * 300_000)) == 300_000


def test_normalising_twice_changes_nothing() -> None:
    generator = random.Random(1)
    alphabet = "a好 \n\r\t\u200b\u200d\ufe0f❤👩\u20e31\u202e\x00\u3000\u0301"
    for _ in range(5_000):
        once = normalise("".join(generator.choices(alphabet, k=generator.randint(0, 30))))
        assert normalise(once) == once


def test_disguises_of_one_text_share_a_matching_form() -> None:
    plain = matching_form("加微信", "ABC123 好看")
    for title, body in [
        ("加*微*信", "ａｂｃ①②③ 好看"),
        ("加，微…信", "A👉B👉C 1️⃣2️⃣3️⃣ 好看"),
        ("加 微 信!!!", "Abc123……好🔥看"),
        ("加\u200b微\ufe0f信", "A-B-C-1-2-3，好看。。。"),
    ]:
        assert matching_form(title, body) == plain == "加微信abc123好看"


@pytest.mark.parametrize(
    ("traditional", "simplified"),
    [
        ("臺灣訊號，頭髮乾燥", "台湾讯号头发干燥"),
        ("皇后在後面", "皇后在后面"),
        ("乾坤", "乾坤"),
        ("麵*包 裡.面", "面包里面"),
        ("ＬＩＮＥ：繁體", "line繁体"),
    ],
)
def test_traditional_and_simplified_writing_share_a_matching_form(traditional: str, simplified: str) -> None:
    assert matching_form("", traditional) == matching_form("", simplified) == simplified


def test_a_lone_surrogate_does_not_stop_the_matching_form() -> None:
    assert "后" in matching_form("後\ud800", "")


def test_texts_of_symbols_only_stay_apart() -> None:
    assert matching_form("🔥🔥", "") != matching_form("❤", "")
    assert matching_form("", None) == ""


@pytest.mark.parametrize("piece", ["x\u0315\u0300\u0323", "\u0315\u0300", "ﷺ", "\u2764\u200d", "\ufe0f\u200d", "\n "])
def test_hostile_text_takes_linear_time(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    started = time.process_time()
    assert normalise(normalise(text)) == normalise(text)
    matching_form(text, text)
    assert time.process_time() - started < 5
