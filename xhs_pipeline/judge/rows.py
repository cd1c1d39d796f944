"""Posts to judge out of a file of any source format, in chunks that fit into memory, with their labels where those are asked for."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xhs_pipeline.policy import Policy
from xhs_pipeline.posts.fields import Reject, post_id_value, read_images, term_value, text_value
from xhs_pipeline.posts.rows import BadRow, read_rows
from xhs_pipeline.posts.source_yaml import FORMATS, Source, SourceError, load_source

# Posts that are cleaned and judged together, fewer when their images and texts reach the bytes: some hundred photographs are
# enough to batch by length, and a handful of chunks is in memory at once, in several forms each.
CHUNK, CHUNK_BYTES = 256, 16 * 1024 * 1024
CONTENT = ("post_id", "title", "body", "images")
LABELS = ("verdict", "category")


@dataclass(frozen=True)
class Label:
    """What the file says of a post, in the policy's terms; None without a usable one, and `problems` say why (reason codes)."""

    verdict: str | None
    category: str | None
    problems: tuple[str, ...] = ()


class ReadRow(NamedTuple):
    """A row's number in the file, its RAW_POSTS columns without labels or why there are none, and its label when asked for."""

    number: int
    post: dict[str, Any] | BadRow
    label: Label | None = None


def source_of(posts: Path, source_file: Path | None) -> Source:
    """How `posts` is read: by a source YAML, else by our own column names and the format that its name tells (JSON lines)."""
    if source_file:
        return load_source(source_file)
    kind = posts.suffix.lstrip(".").lower()
    return Source(posts, kind if kind in FORMATS else "jsonl", posts.name, posts.parent, {}, {})


def read_posts(
    posts: Path,
    source: Source,
    labels_of: Policy | None = None,
    skip: int = 0,
    seen: Collection[str] = (),
) -> Iterator[ReadRow]:
    """Every row of the file `posts`, after the first `skip`; `seen` are the ids of the posts among those.

    labels_of: the policy in whose terms labels are read, None for no labels. Of rows that share an id the first that can be
    read is a post. Raises SourceError for an unusable file, and when labels are wanted and it has no column with any.
    """
    wanted = CONTENT + LABELS if labels_of else CONTENT
    columns = {ours: theirs for ours, theirs in source.columns.items() if ours in wanted}
    known = set(seen)
    for place, (number, row) in enumerate(read_rows(posts, source.format, columns, required=("post_id",))):
        if place < skip:
            continue
        if isinstance(row, BadRow):
            yield ReadRow(number, row)
            continue
        if labels_of and source.format != "jsonl" and row.keys().isdisjoint(LABELS):
            raise SourceError(
                f"{posts}: no labels to compare with, nothing is mapped to verdict or category; "
                "map them in the source YAML under `columns` (ours: theirs)"
            )
        try:
            post = {"post_id": post_id_value(row.get("post_id"), _column(source, "post_id"))}
            post |= _content(row, source.images_dir)
        except Reject as reject:
            yield ReadRow(number, BadRow(reject.reason, reject.detail))
            continue
        if post["post_id"] in known:
            yield ReadRow(number, BadRow("duplicate_post_id", "post_id repeats an earlier row's; the first is judged"))
            continue
        known.add(post["post_id"])
        yield ReadRow(number, post, _label(row, source, labels_of) if labels_of else None)


def _column(source: Source, ours: str) -> str:
    return f"column {source.columns.get(ours, ours)!r}"


def _content(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    images, errors = read_images(row.get("images"), "images", folder)
    return {
        "title": text_value(row.get("title"), "title") or "",
        "body": text_value(row.get("body"), "body") or "",
        "images": images,
        "image_errors": errors,
    }


def _label(row: dict[str, Any], source: Source, policy: Policy) -> Label:
    finders: dict[str, Callable[[str], str | None]] = {
        "verdict": policy.verdict_id,
        "category": lambda term: term if policy.category(term) else None,
    }
    found: dict[str, str | None] = dict.fromkeys(finders)
    problems = []
    for ours in (ours for ours in LABELS if ours in row):
        try:
            mapping = source.values.get(ours, {})
            term, found[ours] = term_value(row[ours], _column(source, ours), mapping, finders[ours])
            if found[ours] is None:
                problems.append(f"{'unknown' if term else 'missing'}_{ours}")
        except Reject as reject:
            problems.append(f"{reject.reason}_{ours}")
    return Label(found["verdict"], found["category"], tuple(problems))


def chunked(rows: Iterable[ReadRow]) -> Iterator[list[ReadRow]]:
    """Rows in lists of at most CHUNK, cut as soon as their images and texts reach CHUNK_BYTES.

    Where a chunk ends depends on the rows in it alone, so reading that begins after one finds the same chunks.
    """
    chunk: list[ReadRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        if isinstance(row.post, dict):
            size += len(row.post["title"]) + len(row.post["body"])
            size += sum(len(image["bytes"] or b"") for image in row.post["images"])
        if len(chunk) >= CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
