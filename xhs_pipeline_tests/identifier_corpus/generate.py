"""Write the corpus of identifiers with known spans. Run: python xhs_pipeline_tests/identifier_corpus/generate.py

Two files of JSON lines, the same on every machine: corpus.jsonl.gz, which the detector is built with, and held_out.jsonl.gz,
from other sentences and another seed. A line: text, spans [[start, end, type, evasion], ...], kind ("identifier" or what the
ordinary numbers are). A span is the identifier alone, without the cue before it; for accounts the evasion is `cue/account`.
"""

import gzip
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import contexts  # noqa: E402
import ordinary  # noqa: E402
import values  # noqa: E402
import whereabouts  # noqa: E402

Record = dict[str, Any]
MAKERS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "手机号": values.mobile, "座机": values.landline, "邮箱": values.email, "身份证号": values.id_card, "银行卡号": values.bank_card, "IP地址": whereabouts.ip,
    "车牌号": whereabouts.plate, "地址": whereabouts.address, "用户名": whereabouts.at_name, "链接": whereabouts.url, "订单号": values.order_number,
}  # fmt: skip
FILES = {
    "corpus.jsonl.gz": (20260216, 450, 5500, contexts.BUILT, ordinary.BUILT),
    "held_out.jsonl.gz": (1409, 160, 2000, contexts.HELD_OUT, ordinary.HELD_OUT),
}


def records(name: str) -> Iterator[Record]:
    """Every record of one of FILES, in the order of the file."""
    seed, per_type, negatives, sentences, numbers = FILES[name]
    rng = random.Random(seed)
    for type_ in [*MAKERS, "微信号", "QQ号"]:
        for _ in range(per_type * (2 if type_ == "微信号" else 1)):
            yield _identifier(rng, type_, sentences)
    for _ in range(negatives):
        text, kind = ordinary.ordinary(rng, numbers)
        yield {"text": text, "spans": [], "kind": kind}


def _identifier(rng: random.Random, type_: str, sentences: contexts.Contexts) -> Record:
    if type_ in MAKERS:
        value, evasion = MAKERS[type_](rng)
        before, _, after = rng.choice(sentences.cores[type_]).partition("{}")
    else:
        cues, make = (
            (sentences.wechat_cues, values.wechat_id) if type_ == "微信号" else (sentences.qq_cues, values.qq_number)
        )
        value, evasion = make(rng)
        cue, disguise = rng.choice(cues)
        before, after = cue + rng.choice(sentences.joints), ""
        if before[-1] in "Vvx" and value[0].isascii() and value[0].isalpha():
            before += rng.choice([" ", "：", ":"])  # 加vlin520 cannot be told apart, and nobody writes it
        evasion = f"{disguise}/{evasion}"
    opening, closing = rng.choice(sentences.openings), rng.choice(sentences.closings)
    if type_ == "用户名" and closing[:1].isalnum():
        closing = " " + closing  # a name ends where something that cannot belong to it begins
    start = len(opening) + len(before)
    return {
        "text": opening + before + value + after + closing,
        "spans": [[start, start + len(value), type_, evasion]],
        "kind": "identifier",
    }


def read(name: str) -> list[Record]:
    with gzip.open(HERE / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main() -> None:
    for name in FILES:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records(name))
        (HERE / name).write_bytes(gzip.compress(lines.encode(), 9, mtime=0))
        print(name, lines.count("\n"), "records")


if __name__ == "__main__":
    main()
