"""The tokenised records of a split as a file that is mapped, not read: JPEGs stay on disk until a batch needs them.

Every process of a run maps the same file, so the records are tokenised once. Scratch, not an artefact: Arrow, uncompressed.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from xhs_pipeline.vlm.batches import Example

RECORDS = pa.schema(
    [
        ("post_id", pa.string()),
        ("prompt", pa.list_(pa.int32())),
        ("answer", pa.list_(pa.int32())),
        ("images", pa.list_(pa.binary())),
        ("decided", pa.int32()),
        ("max_pixels", pa.int32()),
        ("images_left_out", pa.int32()),
        ("weight", pa.float64()),
    ]
)


def write_records(file: Path, examples: Iterable[Example]) -> int:
    """Write `examples` to `file` one by one, and return how many. Memory holds one batch of 64."""
    count = 0
    waiting: list[dict[str, Any]] = []
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, RECORDS) as writer:
        for example in examples:
            waiting.append(vars(example))
            count += 1
            if len(waiting) == 64:
                writer.write_batch(pa.RecordBatch.from_pylist(waiting, schema=RECORDS))
                waiting = []
        if waiting:
            writer.write_batch(pa.RecordBatch.from_pylist(waiting, schema=RECORDS))
    return count


class Records(Sequence[Example]):
    """What `write_records` wrote, as a sequence of Examples read on demand. `lengths` are the tokens of each."""

    def __init__(self, file: Path):
        self._table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()  # maps the buffers, copies nothing
        tokens = pc.add(pc.list_value_length(self._table["prompt"]), pc.list_value_length(self._table["answer"]))
        self.lengths: list[int] = tokens.to_pylist()

    def __len__(self) -> int:
        return self._table.num_rows

    @overload
    def __getitem__(self, place: int) -> Example: ...

    @overload
    def __getitem__(self, place: slice) -> "list[Example]": ...

    def __getitem__(self, place: int | slice) -> "Example | list[Example]":
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return Example(**self._table.slice(place % len(self), 1).to_pylist()[0])
