"""A file of posts judged into a file of lines, chunk by chunk: cleaned in worker processes, asked, decided, counted.

What the command line runs (xhs_pipeline.judge, which documents the lines). Memory holds a few chunks, and every post's id.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from xhs_pipeline.artifacts import digest
from xhs_pipeline.curation import ocr
from xhs_pipeline.curation.clean import CLEAN_TABLES, CleanedBatch, CleanSettings, clean_stream
from xhs_pipeline.judge.agreement import Agreement, beside_label
from xhs_pipeline.judge.lines import resumable
from xhs_pipeline.judge.rows import Label, ReadRow, chunked, read_posts, source_of
from xhs_pipeline.judgement.calibration import Calibration
from xhs_pipeline.judgement.in_use import calibration_of, version_of
from xhs_pipeline.judgement.judge import Judge, as_post, decided_row
from xhs_pipeline.policy import Policy, load_policy
from xhs_pipeline.posts.rows import BadRow
from xhs_pipeline.posts.schema import RAW_POSTS
from xhs_pipeline.posts.source_yaml import Source
from xhs_pipeline.vlm.batches import Unfit
from xhs_pipeline.vlm.card import read_card
from xhs_pipeline.vlm.scoring import Judgement

SAY_EVERY_SECONDS = 10.0
ASKED = ["post_id", "title", "body", "images", "ocr_text", "qr_codes"]
SHOWN_IMAGES = 3  # names in a line about images that were left out

Line = dict[str, Any]
Say = Callable[[str], None]


@dataclass
class Tally:
    """What became of the rows: judged + not judged (by reason) = rows read. Images that were left out, by reason.

    `agreement` is None where no labels were asked for.
    """

    judged: int = 0
    not_judged: Counter[str] = field(default_factory=Counter)
    images_left_out: Counter[str] = field(default_factory=Counter)
    agreement: Agreement | None = None

    @property
    def rows(self) -> int:
        return self.judged + self.not_judged.total()

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a line of this run or of the one that it goes on with."""
        self.images_left_out.update(line.get("images_left_out", {}))
        if "error" in line:
            self.not_judged[line["error"]] += 1
            return
        self.judged += 1
        if self.agreement:
            self.agreement.add(line)


def judge_file(
    model: Path,
    posts: Path,
    out: Path,
    source_file: Path | None = None,
    *,
    calibration: Calibration | None = None,
    compare: bool = False,
    processes: int = 1,
    say: Say = print,
    clean_with: str = CLEAN_TABLES,
) -> Tally:
    """Judge every row of `posts` into `out`, going on where an earlier run with the same arguments was cut off.

    calibration: None = the one that the model was released with, if any. compare: read labels and write them beside the answers.
    processes: that clean posts; the result does not depend on it. say: told of progress, rows not judged and images left out.
    clean_with: see curation.clean.clean_stream.
    Raises ValueError or OSError, one line each, when the model folder, the posts as a whole or `out` cannot be used, when another
    process is writing `out`, or when the model was trained with text in images and the extra that reads it is not installed.
    """
    _check_paths(posts, out)
    policy, source = load_policy(), source_of(posts, source_file)
    if read_card(model, policy).profile.ocr:
        ocr.require()
    calibration = calibration or calibration_of(model)
    tally = Tally(agreement=Agreement() if compare else None)
    with resumable(out, _made_from(model, posts, source, policy, calibration, compare), say) as lines:
        seen = set()
        for line in lines.earlier():
            tally.add(line)
            if line["post_id"] is not None:
                seen.add(line["post_id"])
        rows = read_posts(posts, source, policy if compare else None, skip=tally.rows, seen=seen)
        chunks = chunked(rows)
        first = list(islice(chunks, 1))  # a file that cannot be used shows before minutes of loading a model
        if tally.rows:
            say(f"going on after {tally.rows} rows of an earlier run ({tally.judged} judged)")
        total = pq.read_metadata(posts).num_rows if source.format == "parquet" else None
        judging = _Judging(Judge(model, policy), calibration, version_of(model))
        settings = CleanSettings(ocr=judging.judge.profile.ocr)
        progress = _Progress(say, tally, total)
        ahead = chain(first, chunks)
        del first  # it would stay to the end
        for chunk, cleaned in _cleaned(ahead, settings, processes, say, clean_with):
            made = judging.lines(chunk, cleaned, say)
            lines.add(made)
            for line in made:
                tally.add(line)
            progress.add()
    return tally


def _check_paths(posts: Path, out: Path) -> None:
    if not posts.exists():
        raise FileNotFoundError(f"{posts}: no such file, expected the posts to judge")
    if out.is_dir():
        raise IsADirectoryError(f"{out}: a folder, expected the name of a file to write")
    if not out.resolve().parent.is_dir():
        raise FileNotFoundError(f"{out}: no such folder; make it first")
    if out.resolve() == posts.resolve() or (out.is_file() and out.samefile(posts)):
        raise ValueError(f"{out}: OUT is the file of the posts, which it would replace; name another OUT")


def _made_from(
    model: Path, posts: Path, source: Source, policy: Policy, calibration: Calibration | None, compare: bool
) -> dict[str, str]:
    """Everything that the lines depend on; files by name, size and time of change, since a model holds gigabytes.

    Of pictures beside the posts nothing is looked at: a post that was judged stays judged.
    """

    def stamp(file: Path) -> list[Any]:
        return [str(file), (status := file.stat()).st_size, status.st_mtime_ns]

    files = [stamp(file)[1:] + [file.name] for file in sorted(model.rglob("*")) if file.is_file()]
    read_as = [source.format, source.columns, source.values, str(source.images_dir.resolve())]
    return {
        "model": digest([version_of(model), files]),
        "file of posts": digest(stamp(posts.resolve())),
        "source": digest(read_as),
        "policy": digest([policy.version, policy.wording, policy.costs]),
        "calibration": digest(calibration and calibration.as_dict()),
        "--compare": digest(compare),
    }


@dataclass
class _Chunk:
    """What stays of rows while they are cleaned: why some could not be read, and the posts' numbers and labels by id."""

    unread: list[Line]
    numbers: dict[str, int]
    labels: dict[str, Label]


def _cleaned(
    chunks: Iterable[list[ReadRow]], settings: CleanSettings, processes: int, say: Say, clean_with: str
) -> Iterator[tuple[_Chunk, CleanedBatch]]:
    """Chunks in order with their cleaned posts; at most two per process are under way."""
    waiting: deque[_Chunk] = deque()

    def batches() -> Iterator[pa.RecordBatch]:
        for rows in chunks:
            unread = [
                _not_judged(r.number, None, r.post.reason, r.post.detail) for r in rows if isinstance(r.post, BadRow)
            ]
            posts = {row.number: row.post for row in rows if isinstance(row.post, dict)}
            numbers = {post["post_id"]: number for number, post in posts.items()}
            labels = {row.post["post_id"]: row.label for row in rows if isinstance(row.post, dict) and row.label}
            waiting.append(_Chunk(unread, numbers, labels))
            batch = pa.RecordBatch.from_pylist(list(posts.values()), schema=RAW_POSTS)
            rows.clear()  # whoever made the list holds it until the next one is asked for, and so do the names here
            posts.clear()
            yield batch

    with closing(clean_stream(batches(), settings, processes, say, clean_with)) as stream:
        for cleaned in stream:
            yield waiting.popleft(), cleaned


class _Judging:
    """A model that makes lines of chunks: asked, brought to its temperature, decided by the policy's costs."""

    def __init__(self, judge: Judge, calibration: Calibration | None, version: str):
        self.judge = judge
        self._using = calibration or Calibration(min_confidence=judge.profile.min_confidence)
        self._version = version

    def lines(self, chunk: _Chunk, cleaned: CleanedBatch, say: Say) -> list[Line]:
        """One line per row, in the order of the file; `say` is told which were not judged and which images were left out."""
        number_of = chunk.numbers
        made = list(chunk.unread)
        for row in cleaned.quarantine.to_pylist():
            made.append(_not_judged(number_of[row["post_id"]], row["post_id"], row["reason"], row["detail"]))
        posts = [as_post(row) for row in cleaned.posts.select(ASKED).to_pylist()]
        for post, judged in zip(posts, self.judge.judge(posts), strict=True):
            number = number_of[post.post_id]
            if isinstance(judged, Unfit):
                made.append(_not_judged(number, post.post_id, judged.reason, judged.detail))
            elif not judged.valid:
                why = "the model gave no usable answer"
                made.append(_not_judged(number, post.post_id, "no_finite_probability", why))
            else:
                made.append(self._judged(number, judged, chunk.labels.get(post.post_id)))
        made.sort(key=lambda line: line["row"])
        lost = _by_post_and_reason(cleaned.dropped_images.to_pylist())
        for line in made:
            for reason, images in lost.get(line["post_id"], {}).items():
                line.setdefault("images_left_out", {})[reason] = len(images)
                names = ", ".join(images[:SHOWN_IMAGES]) + (", ..." if len(images) > SHOWN_IMAGES else "")
                say(f"row {line['row']}: {len(images)} image(s) left out: {reason}: {names}")
            if "error" in line:
                say(f"row {line['row']} not judged: {line['error']}: {line['detail']}")
        return made

    def _judged(self, number: int, judgement: Judgement, label: Label | None) -> Line:
        decided = decided_row(judgement, self.judge.policy, self._using, self._version)
        line = {"row": number, "post_id": judgement.post_id, **decided}
        if label:
            line |= beside_label(decided["verdict"], decided["category"], label.verdict, label.category)
            if label.problems:
                line["label_problems"] = label.problems
        return line


def _not_judged(number: int, post_id: str | None, reason: str, detail: str) -> Line:
    return {"row": number, "post_id": post_id, "error": reason, "detail": detail}


def _by_post_and_reason(dropped: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Names of images that were left out, as DROPPED_IMAGES shows them."""
    grouped: dict[str, dict[str, list[str]]] = {}
    for image in dropped:
        grouped.setdefault(image["post_id"], {}).setdefault(image["reason"], []).append(image["path"])
    return grouped


class _Progress:
    """A line after the first chunk and every ten seconds: rows done, rate and, where the number of rows is known, time left."""

    def __init__(self, say: Say, tally: Tally, total: int | None):
        self._say, self._tally, self._total = say, tally, total
        self._before, self._started, self._spoken = tally.rows, time.monotonic(), -SAY_EVERY_SECONDS

    def add(self) -> None:
        """To be called after every chunk."""
        now, rows = time.monotonic(), self._tally.rows
        if now - self._spoken < SAY_EVERY_SECONDS and rows != self._total:
            return
        self._spoken = now
        rate = (rows - self._before) / (now - self._started)
        of, left = "", ""
        if self._total is not None:
            of, left = f"/{self._total}", f", {(self._total - rows) / rate:.0f} s left"
        self._say(f"judged {self._tally.judged} of {rows}{of} rows, {rate:.1f} rows/s{left}")
