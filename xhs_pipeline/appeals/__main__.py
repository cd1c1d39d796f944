"""Appeals and audits from the command line: python -m xhs_pipeline.appeals COMMAND

    queue                                       the open cases
    export FILE                                 those that can be answered as a file, with the posts as they were judged
    answers FILE                                ... and back, as votes; the same file twice changes nothing
    vote CASE 通过 正常 --reviewer 李雷           one vote
    triage CASE --reviewer 李雷                  say that a case which came in a burst is one of its own
    audit                                       draw posts that passed for review, as many as the policy says
    expire --days 30                            close the cases in which nothing has happened for so long
    import appeals.jsonl                        take over the events of another system's file
    erase --author ID                           erase a person's texts, images and notes; a trace and what was decided stay

export and answers take --format label-studio: FILE is then the project's import, FILE with .xml its labeling interface; back
comes the project's export as JSON, with --reviewers a JSON object that gives the name of every reviewer by Label Studio's user id
or e-mail address.

The store is XHS_APPEALS_URL, else a SQLite file in XHS_DATA_DIR. No post text is printed. Exit status: 0, 1 when something was
refused or is not erased everywhere, 2 when the store or a file cannot be used.
"""

import argparse
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from xhs_pipeline.appeals import label_studio, review_files
from xhs_pipeline.appeals.database import StoreError
from xhs_pipeline.appeals.records import CaseView
from xhs_pipeline.appeals.rules import Refused
from xhs_pipeline.appeals.states import STATES
from xhs_pipeline.appeals.store import AppealStore, store_url
from xhs_pipeline.artifacts import data_folder, read_json
from xhs_pipeline.policy import load_policy
from xhs_pipeline.privacy import load_hmac_key

MAX_DAYS = 36500


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status."""
    options = _parser().parse_args(arguments)
    root = data_folder()
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
    queue = commands.add_parser("queue")
    queue.add_argument("--state", choices=STATES, help="default: every open case")
    queue.add_argument("--limit", type=int, default=50)
    queue.add_argument("--after", type=int, default=0, help="the number before the last line of the page before")
    for name in ("export", "answers"):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        command.add_argument("--format", choices=("jsonl", "label-studio"), default="jsonl")
    command.add_argument("--reviewers", type=Path, help="names by Label Studio's user id or e-mail address, as JSON")
    for name in ("vote", "triage"):
        command = commands.add_parser(name)
        command.add_argument("case")
        if name == "vote":
            command.add_argument("verdict")
            command.add_argument("category")
        command.add_argument("--reviewer", required=True)
        command.add_argument("--note", default="")
    audit = commands.add_parser("audit")
    audit.add_argument("--size", type=int, help="default: the policy's appeals.audit.size")
    audit.add_argument("--seed", type=int, help="default: the newest event's number")
    commands.add_parser("expire").add_argument("--days", type=_days, required=True)
    erase = commands.add_parser(
        "erase", help="copies elsewhere, the source's file and backups among them, are not reached"
    )
    erase.add_argument("--author", required=True, help="as the service was told, or the appellant's id")
    commands.add_parser("import").add_argument("file", type=Path)
    return parser


def _days(text: str) -> timedelta:
    days = float(text)
    if not 0 <= days <= MAX_DAYS:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to {MAX_DAYS} days")
    return timedelta(days=days)


def _run(store: AppealStore, options: argparse.Namespace) -> int:
    match options.command:
        case "queue":
            for view in store.queue(options.state, options.limit, options.after, with_images=False):
                print(_line(view))
        case "export":
            write = review_files.export_jsonl if options.format == "jsonl" else label_studio.export_tasks
            count, left_out = write(store, options.file)
            print(f"{options.file}: {count} cases" + "".join(f"; {n} left out: {why}" for why, n in left_out.items()))
        case "vote":
            case = store.vote(options.case, options.reviewer, options.verdict, options.category, options.note)
            print(f"{case.case_id} {case.state}")
        case "triage":
            print(f"{options.case} {store.triage(options.case, options.reviewer, options.note).state}")
        case "answers":
            return _answers(store, options.file, options.format, options.reviewers)
        case "audit":
            print(f"{len(store.sample_audit(options.size, options.seed))} audit cases opened")
        case "expire":
            print(f"{store.expire(datetime.now(UTC), options.days)} cases expired")
        case "erase":
            gone = store.erase(options.author)
            print(
                f"{gone.snapshots} posts, {gone.images} images and {gone.notes} notes erased; {gone.closed} open cases closed"
            )
            if gone.notes_of_others:
                print(f"{gone.notes_of_others} notes by others on cases about these posts stay, and may quote them")
            if not gone.from_log:
                print(
                    f"{store.database.shown}: the file beside it that ends in -wal still holds what was erased, since a reader "
                    "kept it open; run this command again",
                    file=sys.stderr,
                )
                return 1
        case "import":
            taken = store.import_jsonl(options.file)
            for row in taken.refused.to_pylist():
                print(f"refused: {row['reason']}: {row['detail']}", file=sys.stderr)
            print(f"{taken.new} new events, {taken.known} known, {taken.refused.num_rows} refused")
            return 1 if taken.refused.num_rows else 0
    return 0


def _answers(store: AppealStore, file: Path, form: str, reviewers: Path | None) -> int:
    if form == "jsonl":
        taken = review_files.take(store, review_files.read_jsonl(file), review_files.JSONL)
    else:
        taken = review_files.take(store, label_studio.read_annotations(file, _names(reviewers)), label_studio.ORIGIN)
    for row in taken.refused.to_pylist():
        print(f"refused: {row['detail']} [{row['reason']}]", file=sys.stderr)
    refused = taken.refused.num_rows
    print(f"{file}: {taken.new} new, {taken.known} known, {taken.skipped} without an answer, {refused} refused")
    return 1 if refused else 0


def _names(file: Path | None) -> dict[str, str]:
    names = read_json(file) if file else {}
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
        raise ValueError(f'{file}: expected a JSON object of names, e.g. {{"7": "reviewer-a"}}')
    return names


def _line(view: CaseView) -> str:
    case = view.state
    opened = f"{case.opened_at:%Y-%m-%d %H:%M}" if case.opened_at else ""
    marks = f" waits for triage ({case.flag})" if case.waits_for_triage else ""
    return f"{view.cursor} {view.case_id} {view.kind} {case.state} {case.first[0]} {case.first[1]} {opened} votes {len(case.votes)}{marks}"


if __name__ == "__main__":
    sys.exit(main())
