"""Near-duplicate texts: ours against datasketch, datatrove and rensa, one thread, and how ours grows to a million posts.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install datasketch 'datatrove[processing]' rensa xxhash orjson pyarrow
    python -m xhs_pipeline_tests.benchmarks.near_duplicates --peers /tmp/peers/bin/python --repeats 3

Runs are paired: every repeat runs each engine once, in turn, each in a process of its own, and a ratio is the median of the
ratios within a repeat. CPU seconds count from strings in memory (an Arrow array for ours, a list of str for the peers, which
is what they take) to pairs; tokenising is part of it, reading the corpus and compiling are not.

The corpus is made from a seed: words of one to four Chinese characters drawn by Zipf's law, lengths log-normal as in real
posts, 117 characters on average; 30% of the posts are edits of earlier ones, with similarities spread from 0.5 to 1.
Recall: of the planted pairs of Jaccard 0.8 or more, how many the reported pairs connect (which favours engines that report
too much). Precision: of the reported pairs, how many have 0.8 or more, exactly. Both on sets of character 3-grams.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent))
import near_duplicates_engines as engines  # by path: the peers' environment does not have this project

ENGINES = ("ours", "rensa", "rensa-flags", "rensa-flags-16x8", "datasketch", "datasketch-default", "datatrove")
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


def make_corpus(folder: Path, count: int, seed: int) -> Path:
    """Write texts.arrow and planted.npy (base, copy) into a folder named by size and seed, once."""
    out = folder / f"corpus-{count}-{seed}"
    if (out / "planted.npy").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    sizes = random.choice([1, 2, 3, 4], 20_000, p=[0.2, 0.55, 0.15, 0.1])
    letters = 0x4E00 + random.choice(3500, int(sizes.sum()), p=_zipf(3500, 0.9))
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    lengths = np.clip(random.lognormal(np.log(117) - 0.42, 1.0, count), 8, 1500).astype(int)
    words = random.choice(20_000, int(lengths.sum() / 2), p=_zipf(20_000, 1.0))
    ends = np.cumsum(sizes[words])
    stream = letters[np.repeat(starts[words] - ends + sizes[words], sizes[words]) + np.arange(ends[-1])].astype("<u4")
    texts: list[npt.NDArray] = []
    planted = []
    for index in range(count):
        if index and random.random() < 0.3:
            base = int(random.integers(index))
            planted.append((base, index))
            texts.append(_edited(random, texts[base], stream))
        else:
            place = int(random.integers(len(stream) - 1500))
            texts.append(stream[place : place + lengths[index]])
    column = pa.array((text.tobytes().decode("utf-32-le") for text in texts), pa.large_string())
    with pa.OSFile(str(out / "texts.arrow"), "wb") as file:
        table = pa.table({"text": column})
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    np.save(out / "planted.npy", np.array(planted, np.int64))
    return out


def _zipf(size: int, exponent: float) -> npt.NDArray:
    weights = np.arange(1, size + 1) ** -exponent
    return weights / weights.sum()


def _edited(random: np.random.Generator, text: npt.NDArray, stream: npt.NDArray) -> npt.NDArray:
    """Substitutions for a similarity drawn from 0.5 to 0.98: each changes about three grams, J = (g - 3e) / (g + 3e)."""
    similarity = random.uniform(0.5, 0.98)
    edits = max(1, round((len(text) - 2) * (1 - similarity) / (1 + similarity) / 3))
    text = text.copy()
    text[random.choice(len(text), edits, replace=False)] = stream[random.integers(0, len(stream), edits)]
    return text


def run(python: str, engine: str, corpus: Path, limit: int | None = None) -> dict[str, Any]:
    """One engine in a process of its own: {docs, cpu_s, peak_mb, file}; `file` holds the pairs or the flags."""
    out = corpus / f"{engine}.npz"
    command = [python, engines.__file__, engine, str(corpus / "texts.arrow"), str(out), str(limit or 0)]
    project = str(Path(__file__).parents[2])
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": project if engine == "ours" else ""}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{engine} failed under {python}; how to install the peers stands at the top of this file")
    return json.loads(done.stdout.splitlines()[-1]) | {"file": out}


class Truth:
    """What is planted, and the exact similarity of any pair; the kernel is checked against Python sets on 2,000 pairs."""

    def __init__(self, corpus: Path) -> None:
        from xhs_pipeline.curation.grams import Texts

        column = engines.read_texts(corpus / "texts.arrow")
        self.count = len(column)
        self.texts = Texts(column)
        self.planted = np.load(corpus / "planted.npy")
        self.similarity = self.texts.jaccard(self.planted[:, 0], self.planted[:, 1])
        for (a, b), value in zip(self.planted[:2000].tolist(), self.similarity[:2000], strict=True):
            left, right = (set(engines.trigrams(column[int(place)].as_py())) for place in (a, b))
            assert abs(len(left & right) / len(left | right) - value) < 1e-6
        self.positive = self.planted[self.similarity >= 0.8]

    def judge(self, file: Path) -> tuple[float, float]:
        """(recall, precision) of reported pairs; for flags: of posts flagged among those with a planted copy, and back."""
        reported = np.load(file)
        if "flags" in reported:
            wanted = np.zeros(self.count, np.bool_)
            wanted[self.positive.ravel()] = True
            flags = reported["flags"]
            return float(flags[wanted].mean()), float(wanted[flags].mean())
        left, right = reported["left"], reported["right"]
        parent = np.arange(self.count)
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = _root(parent, a), _root(parent, b)
            parent[max(a, b)] = min(a, b)
        found = sum(_root(parent, a) == _root(parent, b) for a, b in self.positive.tolist())
        return found / len(self.positive), float((self.texts.jaccard(left, right) >= 0.8).mean())


def _root(parent: npt.NDArray, node: int) -> int:
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = int(parent[node])
    return node


def compare(corpus: Path, chosen: list[str], peers: str, repeats: int) -> list[str]:
    results: dict[str, list[dict[str, Any]]] = {engine: [] for engine in chosen}
    for repeat in range(repeats):
        for engine in chosen:
            results[engine].append(run(sys.executable if engine == "ours" else peers, engine, corpus))
            print(f"repeat {repeat + 1}, {engine}: {results[engine][-1]['cpu_s']:.2f} CPU s", file=sys.stderr)
    truth = Truth(corpus)
    lines = [
        "| engine | settings | docs/CPU-s | ours is | peak MB | recall | precision |",
        "|---|---|---|---|---|---|---|",
    ]
    for engine, runs in results.items():
        speed = statistics.median(one["docs"] / one["cpu_s"] for one in runs)
        ratio = statistics.median(one["cpu_s"] / ours["cpu_s"] for one, ours in zip(runs, results["ours"], strict=True))
        recall, precision = truth.judge(runs[0]["file"])
        peak = max(one["peak_mb"] for one in runs)
        lines.append(f"| {engine} | {engines.SETTINGS[engine]} | {speed:,.0f} | {ratio:.1f}x | {peak:,.0f} | {recall:.4f} | {precision:.4f} |")  # fmt: skip
    return lines


def scale(corpus: Path, sizes: list[int], repeats: int) -> list[str]:
    lines = [
        "| posts | docs/CPU-s | CPU s | peak MB, texts included | recall | precision |",
        "|---|---|---|---|---|---|",
    ]
    for size in sizes:
        runs = [run(sys.executable, "ours", corpus, size) for _ in range(repeats)]
        seconds = statistics.median(one["cpu_s"] for one in runs)
        recall, precision = Truth(corpus).judge(runs[0]["file"]) if size == sizes[-1] else (float("nan"), float("nan"))
        lines.append(f"| {size:,} | {size / seconds:,.0f} | {seconds:.2f} | {max(one['peak_mb'] for one in runs):,.0f} | {recall:.4f} | {precision:.4f} |")  # fmt: skip
    return [line.replace("nan", "") for line in lines]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--peers", default=sys.executable, help="a Python that has the peers")
    options.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    options.add_argument("--posts", type=int, default=100_000)
    options.add_argument("--scale", type=int, nargs="*", default=[100_000, 300_000, 1_000_000])
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--seed", type=int, default=20260216)
    options.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "near_duplicates")
    chosen = options.parse_args()
    names = ["ours", *(name for name in chosen.engines if name != "ours")]
    print("\n".join(compare(make_corpus(chosen.work, chosen.posts, chosen.seed), names, chosen.peers, chosen.repeats)))
    if chosen.scale:
        largest = make_corpus(chosen.work, max(chosen.scale), chosen.seed)
        print("\n" + "\n".join(scale(largest, sorted(chosen.scale), chosen.repeats)))


if __name__ == "__main__":
    main()
