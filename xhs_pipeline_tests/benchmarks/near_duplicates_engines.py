"""The engines that near_duplicates.py compares, each in a function from texts to pairs. Runs by path in either environment.

    python near_duplicates_engines.py ENGINE TEXTS.arrow OUT.npz LIMIT

A function prepares (imports, strings, compilation) and returns the part that is measured. Every engine gets the same character 3-grams and 24 bands of 6 rows, the setting with which all of them reach the recall
wanted; datasketch also with what it chooses by itself for a threshold of 0.8.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

BANDS, ROWS = 24, 6
SETTINGS = {
    "ours": "24 x 6, verified exactly",
    "rensa": "24 x 6, from_token_sets, insert_many, query_all",
    "rensa-flags": "24 x 6, flat hashes by numpy; flags of posts, no pairs",
    "rensa-flags-16x8": "16 x 8, flat hashes by numpy; flags of posts, no pairs",
    "datasketch": "24 x 6, bulk, xxhash",
    "datasketch-default": "threshold 0.8, 128 permutations, bulk, xxhash",
    "datatrove": "24 x 6, signature, buckets and cluster, 32-bit xxhash, no normalisation",
}
Found = dict[str, Any]


def trigrams(text: str) -> list[str]:
    return [text[place : place + 3] for place in range(max(1, len(text) - 2))]


def read_texts(file: Path, limit: int = 0) -> pa.Array:
    with pa.OSFile(str(file)) as source:
        column = pa.ipc.open_file(source).read_all()["text"].combine_chunks()
    return column[:limit] if limit else column


def ours(texts: pa.Array) -> Callable[[], Found]:
    from xhs_pipeline.curation.minhash import near_duplicate_pairs

    near_duplicate_pairs(texts[:100])

    def find() -> Found:
        pairs = near_duplicate_pairs(texts)
        return {"left": pairs.left, "right": pairs.right}

    return find


def rensa(texts: pa.Array) -> Callable[[], Found]:
    from rensa import RMinHash, RMinHashLSH

    strings = texts.to_pylist()

    def find() -> Found:
        sketches = RMinHash.from_token_sets((trigrams(text) for text in strings), BANDS * ROWS, 42)
        index = RMinHashLSH(0.8, BANDS * ROWS, BANDS)
        index.insert_many(sketches)
        return {"candidates": index.query_all(sketches)}

    return find


def rensa_flags(texts: pa.Array, bands: int = BANDS, rows: int = ROWS) -> Callable[[], Found]:
    from rensa import RMinHash, RMinHashLSH

    strings = texts.to_pylist()

    def find() -> Found:
        # As fast as Python can feed it: all grams as integers at once. Posts of under three characters do not occur.
        codes = np.frombuffer("".join(strings).encode("utf-32-le"), np.uint32).astype(np.uint64)
        lengths = np.fromiter(map(len, strings), np.int64, len(strings))
        grams = (codes[:-2] << np.uint64(42)) | (codes[1:-1] << np.uint64(21)) | codes[2:]
        ends = np.cumsum(lengths)
        inside = np.ones(len(codes), np.bool_)
        inside[ends - 1] = inside[ends - 2] = False
        hashes = grams[inside[:-2]] * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(32)
        offsets = np.concatenate(([0], np.cumsum(lengths - 2))).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, bands * rows, 42)
        flags = RMinHashLSH(0.8, bands * rows, bands).query_duplicate_flags_matrix_one_shot(matrix)
        return {"flags": np.array(flags, np.bool_)}

    return find


def datasketch(texts: pa.Array, **settings: Any) -> Callable[[], Found]:
    import xxhash
    from datasketch import MinHash, MinHashLSH

    strings = texts.to_pylist()

    def find() -> Found:
        tokens = ([gram.encode() for gram in trigrams(text)] for text in strings)
        index = MinHashLSH(**settings)
        candidates = []
        sketches = MinHash.bulk(tokens, num_perm=settings["num_perm"], hashfunc=xxhash.xxh32_intdigest)
        for text, sketch in enumerate(sketches):
            candidates.append(index.query(sketch))
            index.insert(text, sketch, check_duplication=False)
        return {"candidates": candidates}

    return find


def datatrove(texts: pa.Array) -> Callable[[], Found]:
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.logging import logger
    from datatrove.utils.text import TextNormConfig
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Characters(MinhashDedupSignature):
        """Character 3-grams of the text as it stands, as every other engine gets them, and no joining with spaces."""

        def get_shingles(self, text: str) -> Any:
            return np.fromiter(map(self._hash_func, trigrams(text)), np.uint64).reshape(-1, 1)

    class NoWords(WordTokenizer):
        """Stands where a word tokenizer has to: the default one would need spaCy, and is not asked."""

        def word_tokenize(self, text: str) -> list[str]:
            return list(text)

        sent_tokenize = span_tokenize = word_tokenize

    logger.remove()
    strings = texts.to_pylist()
    plain = TextNormConfig(**{name: False for name in TextNormConfig.__dataclass_fields__})
    config = MinhashConfig(3, BANDS, ROWS, norm_config=plain, hash_config=HashConfig(precision=32, hash_fc="xxhash"))
    work = Path(tempfile.mkdtemp())

    def find() -> Found:
        documents = (Document(text=text, id=str(place)) for place, text in enumerate(strings))
        Characters(str(work / "signatures"), config, NoWords()).run(documents)
        buckets = MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)
        for band in range(BANDS):
            buckets.run(None, band, BANDS)
        MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config).run(None, 0, 1)
        return {"folder": work / "buckets"}

    return find


def _pairs(found: Found) -> Found:
    """What an engine reported, brought to {left, right} with every pair once; outside of the time measured."""
    if "candidates" in found:
        both = [(other, text) for text, others in enumerate(found["candidates"]) for other in others]
    elif "folder" in found:
        records = [np.fromfile(file, "<u4").reshape(-1, 4) for file in sorted(found["folder"].glob("*.dups"))]
        both = np.concatenate(records)[:, [1, 3]].tolist()
    else:
        return found
    pairs = np.sort(np.array(both, np.int64).reshape(-1, 2), axis=1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    return {"left": pairs[:, 0], "right": pairs[:, 1]}


def main() -> None:
    engine, file, out, limit = sys.argv[1:]
    prepare: dict[str, Callable[[pa.Array], Callable[[], Found]]] = {
        "ours": ours,
        "rensa": rensa,
        "rensa-flags": rensa_flags,
        "rensa-flags-16x8": lambda texts: rensa_flags(texts, 16, 8),
        "datasketch": lambda texts: datasketch(texts, num_perm=BANDS * ROWS, params=(BANDS, ROWS)),
        "datasketch-default": lambda texts: datasketch(texts, num_perm=128, threshold=0.8),
        "datatrove": datatrove,
    }
    texts = read_texts(Path(file), int(limit))
    find = prepare[engine](texts)
    started = time.process_time()
    found = find()
    cpu = time.process_time() - started
    # Not getrusage: its maximum outlives exec, so it would be that of the process which started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    np.savez(out, **_pairs(found))
    print(json.dumps({"docs": len(texts), "cpu_s": cpu, "peak_mb": peak}))


if __name__ == "__main__":
    main()
