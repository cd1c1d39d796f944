"""The review queue as files: python -m xhs_pipeline.review {export, import} FILE [--format {jsonl, label-studio}]

    export FILE                                         open cases that can be answered, with the posts as they were judged
    import FILE [--reviewers NAMES.json]                the reviewers' answers, as votes; the same file twice changes nothing

Label Studio: FILE is the project's import, FILE with .xml its labeling interface; back comes the project's export as JSON, with
--reviewers a JSON object that gives the name of every reviewer by Label Studio's user id or e-mail address. Exit status: 0, 1
when answers were refused (each is printed with its reason), or 2 when it cannot be done.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from xhs_pipeline.appeals import label_studio, review_files
from xhs_pipeline.appeals.database import StoreError
from xhs_pipeline.appeals.store import AppealStore
from xhs_pipeline.artifacts import read_json
from xhs_pipeline.policy import load_policy
from xhs_pipeline.resources import Workspace


def _export(store: AppealStore, file: Path, form: str) -> int:
    write = review_files.export_jsonl if form == "jsonl" else label_studio.export_tasks
    count, left_out = write(store, file)
    print(f"{file}: {count} cases" + "".join(f"; {n} left out: {reason}" for reason, n in left_out.items()))
    return 0


def _import(store: AppealStore, file: Path, form: str, reviewers: Mapping[str, str]) -> int:
    if form == "jsonl":
        taken = review_files.take(store, review_files.read_jsonl(file), review_files.JSONL)
    else:
        taken = review_files.take(store, label_studio.read_annotations(file, reviewers), label_studio.ORIGIN)
    for row in taken.refused.to_pylist():
        print(f"refused: {row['detail']} [{row['reason']}]", file=sys.stderr)
    refused = taken.refused.num_rows
    print(f"{file}: {taken.new} new, {taken.known} known, {taken.skipped} without an answer, {refused} refused")
    return 1 if refused else 0


def _reviewers(file: Path | None) -> dict[str, str]:
    names = read_json(file) if file else {}
    if not isinstance(names, dict) or not all(isinstance(name, str) and name for name in names.values()):
        raise ValueError(f'{file}: expected a JSON object of names, e.g. {{"7": "reviewer-a"}}')
    return names


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m xhs_pipeline.review", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("export", "write the queue"), ("import", "read answers")):
        command = commands.add_parser(name, help=what)
        command.add_argument("file", type=Path)
        command.add_argument("--format", choices=("jsonl", "label-studio"), default="jsonl")
    command.add_argument("--reviewers", type=Path, help="names by Label Studio's user id or e-mail address, as JSON")
    options = parser.parse_args(arguments)
    try:
        with Workspace(data_dir="", source="").open_appeals(load_policy()) as store:
            if options.command == "export":
                return _export(store, options.file, options.format)
            return _import(store, options.file, options.format, _reviewers(options.reviewers))
    except (ValueError, OSError, StoreError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
