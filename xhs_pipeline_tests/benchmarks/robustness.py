"""What measuring robustness costs: making each variant of a post, judging all of them, and the share of an evaluation.

    python -m xhs_pipeline_tests.benchmarks.robustness --at-most 100
    python -m xhs_pipeline_tests.benchmarks.robustness --at-most 8 --posts 24 --ocr

The test split is the second week of the committed sample, cleaned; the model has the shape of the embedded default and is not
trained, which changes no cost. Seconds are CPU seconds of this process, one thread. A variant is made as in use: disguised, its
text normalised and de-identified, a new image cleaned, and read with --ocr. Judging the test split itself stands beside it.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa

from xhs_pipeline.curation.clean import CleanSettings, clean_batch
from xhs_pipeline.judgement.decisions import decided
from xhs_pipeline.judgement.evasion.robustness import METAMORPHIC, measure
from xhs_pipeline.judgement.evasion.transforms import CHINESE_NAMES
from xhs_pipeline.judgement.evasion.variants import Variants, choose, harmless_photos, read_rows
from xhs_pipeline.judgement.frame import judged_frame
from xhs_pipeline.judgement.judge import Judge, Post, as_post
from xhs_pipeline.policy import Policy, load_policy
from xhs_pipeline.posts.sources import load_source, read_week
from xhs_pipeline.profile import Profile, load_profile
from xhs_pipeline.splits.conversation import prompt_digest
from xhs_pipeline.splits.sharegpt import SHAREGPT
from xhs_pipeline.vlm.card import ModelCard, write_card
from xhs_pipeline.vlm.processor import load_processor
from xhs_pipeline.vlm.tiny import build_tiny

SAMPLE, WEEK = Path(__file__).resolve().parents[2] / "data" / "sample" / "source.yaml", "2026-02-23"


def test_split(policy: Policy, profile: Profile, count: int) -> pa.Table:
    """The week's first `count` posts as rows of a test split, each a group of its own."""
    rows = []
    for raw, _ in read_week(load_source(SAMPLE), WEEK, policy, hmac_key=b"benchmark"):
        for post in clean_batch(raw.slice(0, count), CleanSettings(ocr=profile.ocr)).posts.to_pylist():
            images = post["images"][: profile.max_images]
            left_out = len(post["images"]) - len(images)
            rows.append(post | {"group_id": post["post_id"], "images": images, "images_left_out": left_out})
    return pa.Table.from_pylist([{name: row.get(name) for name in SHAREGPT.names} for row in rows], schema=SHAREGPT)


def untrained(folder: Path, test: pa.Table, policy: Policy, profile: Profile) -> Judge:
    build_tiny(folder, test["body"].to_pylist(), policy, profile.model_copy(update={"tiny_pretrain_epochs": 0}))
    processor = load_processor(folder, profile.min_pixels, profile.max_pixels)
    write_card(folder, ModelCard(profile, policy, prompt_digest(policy, profile.prompt, processor.chat_template)))
    return Judge(folder, policy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--at-most", type=int, default=100, help="violating posts that are rewritten, and harmless ones"
    )
    parser.add_argument("--posts", type=int, default=250, help="posts of the test split")
    parser.add_argument("--ocr", action="store_true", help="read text in images")
    options = parser.parse_args()
    policy, profile = load_policy(), load_profile("tiny", {"ocr": options.ocr})
    test = test_split(policy, profile, options.posts)
    with tempfile.TemporaryDirectory() as folder:
        judge = untrained(Path(folder), test, policy, profile)

        def ask(posts: list[Post], labels: pa.Table) -> pd.DataFrame:
            return decided(judged_frame(labels, judge.judge(posts), policy), policy)

        begin = time.process_time()
        predictions = ask([as_post(row) for row in test.to_pylist()], test)
        judging = time.process_time() - begin
        begin = time.process_time()
        found = measure(test, predictions, ask, policy, profile, 1, options.at_most)
        measuring = time.process_time() - begin
    print_parts(test, policy, profile, options.at_most)
    posts, peak = sum(found["posts"].values()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\njudging {test.num_rows} test posts: {judging:.1f} s, {1000 * judging / test.num_rows:.1f} ms a post")
    print(
        f"robustness of {posts} of them: {measuring:.1f} s, {1000 * measuring / posts:.0f} ms a post, peak {peak:.0f} MB"
    )
    print(f"share of both: {measuring / (measuring + judging):.0%}")


def print_parts(test: pa.Table, policy: Policy, profile: Profile, most: int) -> None:
    """Makes every variant again, timed name by name; dictionaries and models are loaded before."""
    variants = Variants(profile, 1, harmless_photos(test, policy, 1))
    rows = list(read_rows(test, {post.post_id for post in choose(test, policy, 1, most)}))
    print("\n| variant | posts changed | CPU ms to make one |\n|---|---|---|")
    for name in (*CHINESE_NAMES, *METAMORPHIC):
        begin = time.process_time()
        made = [variants.of(name, row, as_post(row)) for row in rows]
        spent, count = time.process_time() - begin, sum(post is not None for post in made)
        print(f"| {name} | {count} | {1000 * spent / max(count, 1):.2f} |")


if __name__ == "__main__":
    main()
