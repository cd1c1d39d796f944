"""Appeals and audits from the command line, for reviewers without a web page: python -m xhs_pipeline.appeals COMMAND

    queue                                       the open cases
    export queue.jsonl                          the same as a file, posts and pictures too, to be filled in
    answers queue.jsonl --reviewer 李雷          ... and back: every line with a verdict is a vote
    vote CASE 通过 正常 --reviewer 李雷           one vote
    triage CASE --reviewer 李雷                  say that a case which came in a burst is one of its own
    audit                                       draw posts that passed for review, as many as the policy says
    expire --days 30                            close the cases in which nothing has happened for so long
    import appeals.jsonl                        take over the events of another system's file

The store is XHS_APPEALS_URL, else a SQLite file in XHS_DATA_DIR. No post text is printed. Exit status: 0, 1 when something was
refused, 2 when the store or a file cannot be used.
"""

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from xhs_pipeline.appeals.database import StoreError
from xhs_pipeline.appeals.queue_file import export_queue, import_answers
from xhs_pipeline.appeals.records import CaseView
from xhs_pipeline.appeals.rules import Refused
from xhs_pipeline.appeals.states import STATES
from xhs_pipeline.appeals.store import AppealStore, store_url
from xhs_pipeline.artifacts import data_root
from xhs_pipeline.policy import load_policy
from xhs_pipeline.privacy import load_hmac_key


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status."""
    options = _parser().parse_args(arguments)
    root = data_root()
    try:
        with AppealStore.open(store_url(root), load_policy(), load_hmac_key(root)) as store:
            return _run(store, options)
    except Refused as refused:
        print(f"{refused.zh} ({refused})", file=sys.stderr)
        return 1
    except (StoreError, OSError, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xhs_pipeline.appeals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("queue", "export"):
        command = commands.add_parser(name)
        command.add_argument("--state", choices=STATES, help="default: every open case")
        if name == "queue":
            command.add_argument("--limit", type=int, default=50)
            command.add_argument(
                "--after", type=int, default=0, help="the number before the last line of the page before"
            )
        else:
            command.add_argument("file", type=Path)
    for name in ("vote", "triage"):
        command = commands.add_parser(name)
        command.add_argument("case")
        if name == "vote":
            command.add_argument("verdict")
            command.add_argument("category")
        command.add_argument("--reviewer", required=True)
        command.add_argument("--note", default="")
    answers = commands.add_parser("answers")
    answers.add_argument("file", type=Path)
    answers.add_argument("--reviewer", default="", help="for lines that name none")
    audit = commands.add_parser("audit")
    audit.add_argument("--size", type=int, help="default: the policy's appeals.audit.size")
    audit.add_argument("--seed", type=int, help="default: the newest event's number")
    commands.add_parser("expire").add_argument("--days", type=float, required=True)
    commands.add_parser("import").add_argument("file", type=Path)
    return parser


def _run(store: AppealStore, options: argparse.Namespace) -> int:
    match options.command:
        case "queue":
            for view in store.queue(options.state, options.limit, options.after):
                print(_line(view))
        case "export":
            print(f"{export_queue(store, options.file, options.state)} cases in {options.file}")
        case "vote":
            case = store.vote(options.case, options.reviewer, options.verdict, options.category, options.note)
            print(f"{case.case_id} {case.state}")
        case "triage":
            print(f"{options.case} {store.triage(options.case, options.reviewer, options.note).state}")
        case "answers":
            answers = import_answers(store, options.file, options.reviewer)
            for number, reason, detail in answers.refused:
                print(f"line {number} refused: {reason}: {detail}", file=sys.stderr)
            states = ", ".join(f"{count} {state}" for state, count in sorted(answers.states.items()))
            print(
                f"{answers.voted} votes ({states or 'none'}), {answers.unanswered} unanswered, {len(answers.refused)} refused"
            )
            return 1 if answers.refused else 0
        case "audit":
            print(f"{len(store.sample_audit(options.size, options.seed))} audit cases opened")
        case "expire":
            print(f"{store.expire(datetime.now(UTC), timedelta(days=options.days))} cases expired")
        case "import":
            taken = store.import_jsonl(options.file)
            for row in taken.refused.to_pylist():
                print(f"refused: {row['reason']}: {row['detail']}", file=sys.stderr)
            print(f"{taken.new} new events, {taken.known} known, {taken.refused.num_rows} refused")
            return 1 if taken.refused.num_rows else 0
    return 0


def _line(view: CaseView) -> str:
    case = view.state
    opened = f"{case.opened_at:%Y-%m-%d %H:%M}" if case.opened_at else ""
    marks = f" waits for triage ({case.flag})" if case.waits_for_triage else ""
    return f"{view.cursor} {view.case_id} {view.kind} {case.state} {case.first[0]} {case.first[1]} {opened} votes {len(case.votes)}{marks}"


if __name__ == "__main__":
    sys.exit(main())
