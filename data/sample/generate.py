"""Makes the synthetic sample: posts, pictures, appeals and the list of what was planted. Needs Pillow, nothing else.

    python data/sample/generate.py --out DIR --week 2026-02-16=1200 --week 2026-02-23=250 --appeals 60 --seed 7

The same arguments give the same bytes (with the same Pillow version, which ground_truth.json records). Without --out the
committed sample is written again. Counts include the planted rows, all of which go in whatever the count (--no-plants
leaves them out, for large data sets).
"""

import argparse
import json
import random
import shutil
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import PIL
from pictures import SPECIAL, difference_hash, draw, encode
from plants import Plant, plants
from posts import MOST_ALIKE, VERDICT_WEIGHTS, Alike, Post, compose, grams

HERE = Path(__file__).resolve().parent
ZONE = timezone(timedelta(hours=8))  # Asia/Shanghai has had no summer time since 1991
LABELS = {"pass": "通过", "needs_edit": "需要修改", "remove": "违规删除", "escalate": "人工复核"}
# Posts of each category in 1,200; another count keeps the shares.
SHARES = {
    "虚假宣传": 200, "私域引流": 200, "医疗违规": 150, "诱导互动": 100, "歧视": 25, "违法违规": 25, "政治安全": 25,
    "暴恐": 25, "色情低俗": 25, "赌博": 25, "诈骗": 25, "辱骂引战": 25, "正常": 350,
}  # fmt: skip
# What follows a filed appeal, twenty at a time; the empty one is still open, of the double one two reviewers disagree. Before a post
# of a category in TWO_REVIEWERS is let pass, another reviewer votes for it.
OUTCOMES: list[list[str]] = [["upheld"]] * 7 + [["overturned"]] * 5 + [["modified"]] * 4
OUTCOMES += [["withdrawn"], ["expired"], [], ["overturned", "upheld"]]
TWO_REVIEWERS = {"违法违规", "政治安全", "暴恐", "赌博", "诈骗"}
# What follows when a post that passed is drawn for an audit, twenty at a time. There are half as many audits as appeals.
AUDITS: list[list[str]] = [["upheld"]] * 17 + [["modified"], [], ["upheld", "modified"]]
JUDGES = [f"demo_judge_{n:02d}" for n in range(1, 7)]
# Bits of 64 by which the perceptual hashes of two pictures differ at least, so that none is a duplicate by chance.
PICTURE_DISTANCE = 7
SOURCE_YAML = """\
# The synthetic sample as a source. Its columns carry our names already, so nothing is mapped.
format: jsonl
path: posts-{week}.jsonl
images_dir: images
appeals: appeals.jsonl
"""
README = """\
# Sample data: synthetic

Every post, person, picture and appeal here is invented by `generate.py`; nothing was taken from a platform or a person, and
nothing in it is a claim about anyone. Some posts imitate what moderators remove: insults, fraud, false cures.

| file | what it holds |
|---|---|
| `source.yaml` | tells the pipeline how to read the rest |
| `posts-<week>.jsonl` | one post a line; {rows} |
| `images/` | {images} small drawn pictures, among them broken ones and a decompression bomb |
| `appeals.jsonl` | {appeals} appeals and {audits} audits of posts that passed, as events, one a line |
| `ground_truth.json` | what was planted and what should become of it, for tests |

Some lines are broken on purpose (cut in half, not UTF-8): `ground_truth.json` lists them under `planted`.

## Events of appeals and audits

| field | what it holds |
|---|---|
| `event_id`, `appeal_id`, `post_id`, `at` | the event's number in the file, the case, the post, the time |
| `event` | `filed` or `sampled` (an audit) opens a case; `triaged`, `voted`, `upheld`, `overturned`, `modified`, `withdrawn`, `expired` follow |
| `verdict`, `category` | of an opening event: what was decided first; of the others: what the reviewer says |
| `actor`, `decided_by` | who did it, and who decided first; stored as keyed hashes alone |
| `decision_id`, `model_version`, `policy_version` | optional |

A case that two reviewers answer differently is disputed and gives no label. Letting a post of severity 3 pass takes a `voted` by one
reviewer and an `overturned` by another.

## Fake identifiers

| kind | range used |
|---|---|
| mobile | 154 0000 xxxx; the prefix 154 belongs to no operator |
| landline | 021-5550 xxxx; China reserves no range for fiction |
| QQ | 99999xxxxx, above any number issued |
| e-mail, URL | example.com, example.org (RFC 2606) |
| IP | 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24 (RFC 5737) |
| ID card | region code 990101, which does not exist, with a valid check digit |
| bank card | Luhn-valid, prefix of UnionPay's published test card 6200 0000 0000 0005 |
| plate | 藏Z, a letter that Tibet does not issue |
| WeChat id, @name, address, order number | invented words and streets; no reserved range exists |

## Making it again

    python data/sample/generate.py                                     # these files, byte for byte
    python data/sample/generate.py --out DIR --week 2026-02-16=5000 --appeals 200 --seed 1

The wording stands in `wording.py`, the pictures in `pictures.py`, the plants in `plants.py`. A week of 20,000
posts takes about two minutes. No two posts that were not planted share 0.6 or more of their character 3-grams (Jaccard),
so near-duplicate groups are the planted ones.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write into (default: the committed sample)")
    parser.add_argument(
        "--week", action="append", metavar="MONDAY=ROWS", help="default: 2026-02-16=1200 2026-02-23=250"
    )
    parser.add_argument("--appeals", type=int, default=60)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--no-plants", action="store_true", help="only ordinary posts")
    args = parser.parse_args()
    weeks = {}
    for item in args.week or ["2026-02-16=1200", "2026-02-23=250"]:
        monday, _, rows = item.partition("=")
        if not rows.isdigit() or datetime.fromisoformat(monday).weekday() != 0:
            parser.error(f"--week {item}: expected MONDAY=ROWS, e.g. 2026-02-16=1200")
        weeks[monday] = int(rows)
    generate(args.out, weeks, args.appeals, args.seed, with_plants=not args.no_plants)


def generate(out: Path, weeks: dict[str, int], appeals: int, seed: int, with_plants: bool = True) -> None:
    """Write the sample into `out`, replacing one that is there (and nothing else: see `_clear`)."""
    made = plants(_rng(seed, "plants")) if with_plants else []
    posts = make_posts(weeks, made, seed)
    _clear(out)
    drawn = draw_pictures(posts, out / "images")
    lines = {week: write_week(out / f"posts-{week}.jsonl", posts[week]) for week in weeks}
    events = make_appeals([p for week in weeks for p in posts[week]], appeals, _rng(seed, "appeals"))
    (out / "appeals.jsonl").write_text("".join(_json(event) + "\n" for event in events), encoding="utf-8")
    truth = ground_truth(posts, made, lines, drawn, seed)
    (out / "ground_truth.json").write_text(json.dumps(truth, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (out / "source.yaml").write_text(SOURCE_YAML, encoding="utf-8")
    rows = ", ".join(f"{len(posts[week])} in week {week}" for week in weeks)
    counted = README.replace("{rows}", rows).replace("{images}", str(len(drawn))).replace("{appeals}", str(appeals))
    counted = counted.replace("{audits}", str(appeals // 2))
    (out / "README.md").write_text(counted, encoding="utf-8")


def _rng(seed: int, purpose: str) -> random.Random:
    """One generator per purpose, so that a change to one part of the sample leaves the others as they were."""
    return random.Random(f"{seed}/{purpose}")


def _json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _clear(out: Path) -> None:
    images = out / "images"
    if images.exists():
        if not (out / "ground_truth.json").exists():
            raise SystemExit(f"{images} exists and is not from this generator; choose another --out")
        shutil.rmtree(images)
    images.mkdir(parents=True)


def make_posts(weeks: dict[str, int], made: list[Plant], seed: int) -> dict[str, list[Post]]:
    """The posts of every week in order of time, with ids; no two unplanted ones are alike."""
    rng = _rng(seed, "frequency")
    samples = (compose(rng, *_label(rng)) for _ in range(1500))
    alike = Alike(Counter(gram for post in samples for gram in grams(post.title + post.body)))
    result: dict[str, list[Post]] = {week: [] for week in weeks}
    days = list(weeks)
    for plant in made:
        texts = [grams(p.title + p.body) for p in plant.posts if (p.title + p.body).strip()]
        closest = max((alike.closest(text) for text in texts), default=0.0)
        if closest >= MOST_ALIKE:
            raise SystemExit(
                f"seed {seed}: a {plant.kind} reads like an earlier plant ({closest:.2f}); choose another seed"
            )
        for text in texts:
            alike.add(text)
        result[days[0]] += plant.posts
        result[days[min(1, len(days) - 1)]] += plant.later
    for week, rows in weeks.items():
        rng = _rng(seed, f"posts {week}")
        have = Counter(post.category for post in result[week])
        for category, count in _counts(rows).items():
            for _ in range(count - have[category]):
                result[week].append(_unlike(rng, alike, category))
        for post in result[week]:
            post.week = week
            start = datetime.fromisoformat(week).replace(tzinfo=ZONE)
            post.created_at = start + timedelta(seconds=rng.randrange(60, 7 * 86400 - 60))
        result[week].sort(key=lambda post: str(post.created_at))
        for i, post in enumerate(result[week], start=1):
            post.post_id = f"s{week[5:7]}{week[8:10]}-{i:05d}"
    for plant in made:
        if plant.kind == "duplicate_post_id":
            plant.posts[1].post_id = plant.posts[0].post_id
    return result


def _counts(rows: int) -> dict[str, int]:
    counts = {category: round(rows * share / sum(SHARES.values())) for category, share in SHARES.items()}
    counts["正常"] += rows - sum(counts.values())
    return counts


def _label(rng: random.Random) -> tuple[str, str]:
    category = rng.choices(list(SHARES), list(SHARES.values()))[0]
    return category, _verdict(rng, category)


def _verdict(rng: random.Random, category: str) -> str:
    return "pass" if category == "正常" else rng.choices(list(VERDICT_WEIGHTS), list(VERDICT_WEIGHTS.values()))[0]


def _unlike(rng: random.Random, alike: Alike, category: str) -> Post:
    """A new post that is not too much like any so far."""
    verdict = _verdict(rng, category)
    for _ in range(200):
        post = compose(rng, category, verdict)
        text = grams(post.title + post.body)
        if alike.closest(text) < MOST_ALIKE:
            alike.add(text)
            return post
    raise SystemExit(f"the wording for {category} / {verdict} is used up; extend wording.py or ask for fewer rows")


def draw_pictures(posts: dict[str, list[Post]], folder: Path) -> dict[str, str]:
    """Write every post's pictures and return {file name: kind}. Equal (kind, key) pairs give equal bytes."""
    drawn: dict[str, str] = {}
    finished: dict[tuple[str, str], tuple[str, bytes]] = {}
    hashes: list[int] = []
    for post in (p for week in posts.values() for p in week):
        names = []
        for i, picture in enumerate(post.pictures, start=1):
            if isinstance(picture, str):
                names.append(picture)
                continue
            if picture not in finished:
                finished[picture] = _picture(*picture, hashes)
            extension, data = finished[picture]
            names.append(f"{post.post_id}-{i}.{extension}")
            (folder / names[-1]).write_bytes(data)
            drawn[names[-1]] = picture[0]
        post.overrides = {"images": names} | post.overrides
    return drawn


def _picture(kind: str, key: str, hashes: list[int]) -> tuple[str, bytes]:
    """(extension, bytes) of a picture unlike those before it."""
    if kind in SPECIAL:
        extension, make = SPECIAL[kind]
        return extension, make()
    for attempt in range(100):
        image = draw(kind, f"{key}/{attempt}")
        own = difference_hash(image)
        if all((own ^ other).bit_count() >= PICTURE_DISTANCE for other in hashes):
            break
    hashes.append(own)
    extension = random.Random(f"{key}/format").choices(["jpg", "png", "webp", "gif"], [90, 4, 4, 2])[0]
    return extension, encode(image, extension)


def write_week(path: Path, posts: list[Post]) -> dict[int, int]:
    """Write one post a line and return {id(post): line number}."""
    lines = {}
    with path.open("wb") as file:
        for number, post in enumerate(posts, start=1):
            lines[id(post)] = number
            row = {
                "post_id": post.post_id,
                "title": post.title,
                "body": post.body,
                "images": [],
                "created_at": post.created_at.isoformat() if post.created_at else None,
                "verdict": LABELS[post.verdict],
                "category": post.category,
                "author": post.author,
                "label_source": post.label_source,
            }
            row |= ({"rationale": post.rationale} if post.rationale else {}) | post.overrides
            text = _json(row)
            file.write((post.raw(text) if post.raw else text.encode()) + b"\n")
    return lines


def make_appeals(posts: list[Post], count: int, rng: random.Random) -> list[dict[str, Any]]:
    """Events of `count` appeals, and of audits of posts that passed, in order of time, with increasing ids."""
    punished = [p for p in posts if p.verdict in ("remove", "needs_edit") and not p.planted]
    passed = [p for p in posts if p.verdict == "pass" and not p.planted]
    events: list[dict[str, Any]] = []
    for letter, those, number, after in (("a", punished, count, OUTCOMES), ("s", passed, count // 2, AUDITS)):
        outcomes = [following for _ in range(number // len(after) + 1) for following in after][:number]
        rng.shuffle(outcomes)
        chosen = rng.sample(those, min(number, len(those)))
        severe = [i for i, post in enumerate(chosen) if post.category in TWO_REVIEWERS][:2]
        overturned = [i for i, following in enumerate(outcomes) if following == ["overturned"]]
        # chance may give none of the rare severe posts an outcome that takes two reviewers
        for i, j in zip(severe, overturned, strict=False):
            outcomes[i], outcomes[j] = outcomes[j], outcomes[i]
        for i, post in enumerate(chosen, start=1):
            events += _history(f"{letter}-{i:04d}", post, outcomes[i - 1], rng)
    events.sort(key=lambda event: (event["at"], event["appeal_id"]))
    return [{"event_id": i} | event | {"at": event["at"].isoformat()} for i, event in enumerate(events, start=1)]


def _history(case: str, post: Post, outcomes: list[str], rng: random.Random) -> list[dict[str, Any]]:
    """One case: filed by the author, or sampled, and what reviewers did after that, each another one than who decided first."""
    at = (post.created_at or datetime.now(ZONE)) + timedelta(hours=rng.randint(5, 60), seconds=rng.randrange(3600))
    base = {"appeal_id": case, "post_id": post.post_id}
    first = {"verdict": post.verdict, "category": post.category}
    decided_by, *reviewers = rng.sample(JUDGES, 4)
    filed = first | {"actor": post.author, "decided_by": decided_by}
    note = rng.choice(["我觉得判错了", "内容是我自己的经历", "没有留联系方式", "请再看一遍", "可以改，不要删", ""])
    opening = {"event": "filed", "at": at} | filed | {"note": note}
    if post.verdict == "pass":
        opening = {"event": "sampled", "at": at} | first | {"actor": None, "decided_by": decided_by, "note": ""}
    events = [base | opening]
    for event in outcomes:
        at += timedelta(hours=rng.randint(4, 72), seconds=rng.randrange(3600))
        said = {"overturned": {"verdict": "pass", "category": "正常"}, "modified": _changed(post)}.get(event, first)
        actor = post.author if event == "withdrawn" else None if event == "expired" else reviewers.pop()
        if event == "overturned" and post.category in TWO_REVIEWERS:
            events.append(base | {"event": "voted", "at": at} | said | {"actor": reviewers.pop(), "note": ""})
            at += timedelta(hours=rng.randint(1, 8))
        events.append(base | {"event": event, "at": at} | said | {"actor": actor, "note": ""})
    return events


def _changed(post: Post) -> dict[str, str]:
    if post.verdict == "pass":
        return {"verdict": "needs_edit", "category": "诱导互动"}
    return {"verdict": "needs_edit" if post.verdict == "remove" else "remove", "category": post.category}


def ground_truth(
    posts: dict[str, list[Post]], made: list[Plant], lines: dict[str, dict[int, int]], drawn: dict[str, str], seed: int
) -> dict[str, Any]:
    """What was planted, for tests: posts by id and line, the outcome to expect, and every fake identifier."""
    every = [post for week in posts.values() for post in week]
    numbers = {key: number for week in lines.values() for key, number in week.items()}
    planted = []
    for plant in made:
        rows = [{"post_id": p.post_id, "week": p.week, "line": numbers[id(p)]} for p in plant.posts + plant.later]
        planted.append(
            {"kind": plant.kind, "expect": plant.expect, "rows": rows} | ({"raw": plant.raw} if plant.raw else {})
        )
    return {
        "about": "Synthetic. What generate.py planted into the sample and what should become of it.",
        "seed": seed,
        "pillow": PIL.__version__,
        "weeks": {week: {"rows": len(rows)} for week, rows in posts.items()},
        "planted": planted,
        "identifiers": [{"post_id": p.post_id, "type": t, "raw": raw} for p in every for t, raw in p.identifiers],
        "image_decides": [p.post_id for p in every if p.image_decides],
        "pictures": drawn,
    }


if __name__ == "__main__":
    main()
