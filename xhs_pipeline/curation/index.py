"""The de-duplication index on disk: one segment a week, written once. Knows files and numbers; compares nothing.

    index/<week>/segment.json    counts, where each part of entries.u64 lies, CRC-32 of the other files
    index/<week>/entries.u64     sorted entries (buckets.py), uint64 little-endian, part after part
    index/<week>/texts.arrow     text: the matching texts that no earlier week had
    index/<week>/posts.arrow     one row a post, oldest first: what decisions need (POSTS)
    index/<week>/pairs.arrow     left, right (int64): nodes that this week found to be alike

Posts are numbered through all weeks in order of arrival, and so are NODES, what groups are made of: of each week its new texts,
then its nearly empty posts with images, which meet others by their images alone. A number that a week gave stays.
Arrow files are mapped for as long as something is taken from them; entries are read one part at a time.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xhs_pipeline.artifacts import read_json, write_json

# To be raised when anything in the index or in the parts is made in another way: earlier ones are then made anew.
FORMAT = 1
Numbers = npt.NDArray[np.int64]

# row: its place in the week's clean posts. hashes: of its images, joined by spaces. length: of title and body; text_length: of
# the matching text (characters). text, node: nodes, -1 for a post_id that came before. first: the first post of that id.
# founder: the oldest post of its group when the post arrived, -1 for a repeated id.
POSTS = pa.schema(
    [(name, pa.string()) for name in ("post_id", "hashes", "verdict", "category", "label_source")]
    + [("reasoned", pa.bool_())]
    + [(name, pa.int64()) for name in ("length", "text_length", "row", "text", "node", "first", "founder")]
)
TEXTS = pa.schema([("text", pa.large_string())])
POSTS_HASHES = pa.schema([POSTS.field("hashes")])


class Segment:
    """One week of the index, while it is written and ever after. `pictured` counts nearly empty posts with images; part_starts
    are the rows of the week's clean posts at which its parts begin (parts.py).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.posts = self.texts = self.pictured = 0
        self.part_starts: list[int] = []
        self.parts: dict[str, list[tuple[int, int]]] = {}
        self._end = 0

    @classmethod
    def load(cls, folder: Path) -> "Segment":
        segment, said = cls(folder), read_json(folder / "segment.json")
        segment.posts, segment.texts, segment.pictured = said["posts"], said["texts"], said["pictured"]
        segment.parts, segment.part_starts = said["parts"], said["part_starts"]
        return segment

    def add(self, name: str, entries: npt.NDArray[np.uint64]) -> None:
        """Append one part of `name`."""
        with (self.folder / "entries.u64").open("ab") as file:
            file.write(entries.astype("<u8", copy=False).data)
        self.parts.setdefault(name, []).append((self._end, len(entries)))
        self._end += len(entries)

    def entries(self, name: str, part: int) -> npt.NDArray[np.uint64]:
        start, count = self.parts[name][part]
        return np.fromfile(self.folder / "entries.u64", "<u8", count, offset=8 * start)

    def write(self, name: str, table: pa.Table) -> None:
        batch = pa.record_batch([whole(column) for column in table.columns], schema=table.schema)
        file = pa.OSFile(str(self.folder / f"{name}.arrow"), "wb")
        with file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_batch(batch)

    def read(self, name: str) -> pa.Table:
        """A table over the mapped file; let go of it soon."""
        with pa.memory_map(str(self.folder / f"{name}.arrow")) as file:
            return pa.ipc.open_file(file).read_all()

    def finish(self) -> None:
        """Write segment.json, which makes the segment one that can be loaded."""
        (self.folder / "entries.u64").touch()
        names = ("posts", "texts", "pictured", "parts", "part_starts")
        sums = {file.name: _crc(file) for file in sorted(self.folder.iterdir())}
        write_json(self.folder / "segment.json", {name: getattr(self, name) for name in names} | {"crc32": sums})

    def is_sound(self) -> bool:
        """Whether every file is what it was when it was written. Reads all of it."""
        sums = read_json(self.folder / "segment.json")["crc32"]
        return all((self.folder / name).is_file() and _crc(self.folder / name) == value for name, value in sums.items())


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; combine_chunks copies even a single chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _crc(file: Path) -> int:
    value = 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


_Read = Callable[[Segment, Numbers], pa.Table]


class Index:
    """The segments of the weeks folded so far, oldest first, and who is where in them."""

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._posts, self._nodes = [0], [0]

    def append(self, segment: Segment) -> None:
        self.segments.append(segment)
        self._posts.append(self.posts + segment.posts)
        self._nodes.append(self.nodes + segment.texts + segment.pictured)

    @property
    def posts(self) -> int:
        return self._posts[-1]

    @property
    def nodes(self) -> int:
        return self._nodes[-1]

    def week(self, place: int) -> slice:
        """The numbers of the posts of one segment."""
        return slice(self._posts[place], self._posts[place + 1])

    def entries(self, name: str, part: int | None = None) -> Iterator[tuple[npt.NDArray[np.uint64], int]]:
        """The sorted entries week by week, and what makes their members nodes (for `ids`: posts)."""
        for place, segment in enumerate(self.segments):
            base = self._posts[place] if name == "ids" else self._nodes[place]
            for number in range(len(segment.parts.get(name, []))) if part is None else [part]:
                yield segment.entries(name, number), base + (segment.texts if name == "images" else 0)

    def take_posts(self, numbers: Numbers, columns: Sequence[str]) -> pa.Table:
        """These columns of POSTS, in the order of `numbers`."""
        schema = pa.schema([POSTS.field(name) for name in columns])
        return self._take(numbers, self._posts, schema, lambda s, rows: s.read("posts").select(columns).take(rows))

    def take_texts(self, nodes: Numbers) -> pa.LargeStringArray:
        """The matching texts of nodes that are texts, in their order."""
        taken = self._take(nodes, self._nodes, TEXTS, lambda s, rows: s.read("texts").take(rows))
        return whole(taken["text"])

    def take_hashes(self, nodes: Numbers) -> list[str]:
        """The image hashes, joined by spaces, of nodes that are nearly empty posts, in their order."""

        def read(segment: Segment, rows: Numbers) -> pa.Table:
            posts = segment.read("posts")
            pictured = np.flatnonzero(posts["node"].to_numpy() != posts["text"].to_numpy())
            return posts.select(["hashes"]).take(pictured[rows - segment.texts])

        return list(self._take(nodes, self._nodes, POSTS_HASHES, read)["hashes"].to_pylist())

    def _take(self, numbers: Numbers, bases: list[int], schema: pa.Schema, read: _Read) -> pa.Table:
        """Rows from the segments that hold these numbers; `bases` are the segments' first numbers, `read` takes local ones."""
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        cuts = np.searchsorted(ordered, bases)
        tables = [schema.empty_table()]
        for segment, base, start, end in zip(self.segments, bases, cuts[:-1], cuts[1:], strict=False):
            if start < end:
                tables.append(read(segment, ordered[start:end] - base))
        taken = pa.concat_tables(tables).combine_chunks()
        if (ordered == numbers).all():
            return taken
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return taken.take(back)
