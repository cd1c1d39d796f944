"""Judge posts from the command line: python -m xhs_pipeline.judge MODEL POSTS OUT [options]

Posts are cleaned and de-identified exactly as for training, then judged by the code that the evaluation uses. POSTS is
streamed: JSON lines, CSV, xlsx, or parquet (a week of raw, clean or unique posts, and the splits, just as they are).

OUT is JSON lines, one for every row of POSTS, in their order:
  row                  the row's number in POSTS: line (JSON lines, CSV, xlsx) or row (parquet), from 1
  post_id              null where the row could not be read
  verdict, category    the decision: the cheapest by the policy's costs, human review below the confidence asked for
  confidence           probability of the verdict that the decision was about, 0 to 1
  expected_cost        what the decision costs on average, in the policy's units
  verdict_probs, category_probs    probability of every verdict and category
  model_version, policy_version    what answered, and the policy in whose words it was asked
  calibrated           whether the probabilities were brought to the temperature that was fitted for this model
  images_left_out      {reason: images} when some could not be used; the post is judged without them
  error, detail        instead of all from verdict to calibrated: why the row was not judged (quarantine)
  label_verdict, label_category, agrees    with --compare: what POSTS says, and whether all of that equals the answer
  label_problems       with --compare: why a label could not be used, when it could not
No line holds text of a post. Rows not judged and images left out are reported on stderr by row, and counted.

OUT appears when the last row is done; until then its lines are in a hidden .part file beside it, and an earlier OUT stays as
it was. A run that fails or is killed is continued by the same command: its finished chunks are kept, and OUT comes out as if
nothing had happened. With another model, other posts, settings or calibration the part is thrown away, which is said. A
device or pipe (/dev/stdout) is written directly.

--compare writes figures of agreement to stderr for people, and to stdout as one line of JSON.
Exit status: 0, or 1 when none of the rows could be judged, or 2 when MODEL, POSTS or OUT cannot be used; 130 when interrupted.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from xhs_pipeline.judge.agreement import table
from xhs_pipeline.judge.batch import Tally, judge_file
from xhs_pipeline.judgement.in_use import champion_of, read_calibration
from xhs_pipeline.policy import load_policy

CHAMPION = "champion"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    options = _parser().parse_args()
    try:
        tally = _judge(options)
    except (ValueError, OSError) as problem:
        _say(f"error: {problem}")
        return 2
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on with what is done")
        return 130
    _say(
        f"done: {tally.judged} judged into {options.out}, {_shown(tally.not_judged)} not judged, "
        f"{_shown(tally.images_left_out)} images left out"
    )
    if tally.agreement:
        figures = tally.agreement.figures(load_policy())
        _say(table(figures))
        print(json.dumps({"not_judged": dict(tally.not_judged), **figures}, ensure_ascii=False))
    if tally.rows and not tally.judged:
        _say(f"error: none of the {tally.rows} rows read could be judged; the reasons stand above")
        return 1
    return 0


def _judge(options: argparse.Namespace) -> Tally:
    if options.compare and str(options.out) == "/dev/stdout":
        raise ValueError("--compare writes its figures to standard output; name a file as OUT")
    return judge_file(
        _champion() if options.model == CHAMPION else Path(options.model),
        options.posts,
        options.out,
        options.source,
        calibration=read_calibration(options.calibration) if options.calibration else None,
        compare=options.compare,
        processes=options.processes,
        say=_say,
    )


def _champion() -> Path:
    from xhs_pipeline.resources import Workspace  # it imports Dagster, which takes seconds

    return champion_of(Workspace(data_dir="", source="").root)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xhs_pipeline.judge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"a folder that merged_model wrote, or the word {CHAMPION}: the model in use under XHS_DATA_DIR",
    )
    parser.add_argument(
        "posts",
        metavar="POSTS",
        type=Path,
        help="JSON lines (or CSV, xlsx, parquet) with post_id and title, body or images",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="JSON lines to write; not the file of the posts")
    parser.add_argument("--source", type=Path, help="source YAML whose columns, values and images_dir map the posts")
    parser.add_argument(
        "--calibration",
        type=Path,
        help="calibration.json of an evaluation report; without it that of the report that MODEL was released on, if it was",
    )
    parser.add_argument("--compare", action="store_true", help="compare with verdict and category in POSTS")
    parser.add_argument("--processes", type=_positive, default=1, help="that clean posts beside the model (default: 1)")
    return parser


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _shown(counted: Counter[str]) -> str:
    reasons = ", ".join(f"{reason} {n}" for reason, n in counted.most_common())
    return f"{counted.total()} ({reasons})" if reasons else "0"


if __name__ == "__main__":
    sys.exit(main())
