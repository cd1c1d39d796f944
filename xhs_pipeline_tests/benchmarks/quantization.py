"""Seconds per training step on the CPU with the base held in NF4 and in float32, on a materialised sample.

    XHS_DATA_DIR=/tmp/x dagster asset materialize -m xhs_pipeline.definitions --select '*' --partition 2026-02-16
    python -m xhs_pipeline_tests.benchmarks.quantization --data /tmp/x --repeats 5

The same records, 16 an update, packed and padded; one thread; CPU seconds of the steps only. Runs are paired: each repeat
runs both kinds in turn, in a process of their own; the ratio is the median of the ratios within a repeat.
"""

import argparse
import statistics

from xhs_pipeline.worker import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="XHS_DATA_DIR of a materialised sample")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--updates", type=int, default=30)
    asked = parser.parse_args()
    print("| way | float32, CPU s a step | NF4, CPU s a step | NF4 is | peak MB |\n|---|---|---|---|---|")
    for way in ("alike, padded", "packed"):
        runs = []
        for _ in range(asked.repeats):
            pair = {}
            for kind in ("none", "nf4"):
                arguments = {"data": asked.data, "ways": [way], "updates": asked.updates, "quantization": kind}
                found = run("xhs_pipeline_tests.benchmarks.packing:step_seconds", arguments)
                pair[kind] = found[way] | {"peak_memory_mb": found["peak_memory_mb"]}
            runs.append(pair)
        plain, nf4 = (statistics.median(pair[kind]["cpu"] for pair in runs) / asked.updates for kind in ("none", "nf4"))
        ratio = statistics.median(pair["nf4"]["cpu"] / pair["none"]["cpu"] for pair in runs)
        peaks = " and ".join(str(max(pair[kind]["peak_memory_mb"] for pair in runs)) for kind in ("none", "nf4"))
        print(f"| {way} | {plain:.3f} | {nf4:.3f} | {ratio:.2f}x | {peaks} |")


if __name__ == "__main__":
    main()
