"""The source YAML: where posts come from and how their columns and values map to ours. Reads no posts.

Every mistake in the file is an error that names the file, the line, the value and what is allowed.
"""

import re
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import yaml

from xhs_pipeline.policy import Policy, load_policy

FORMATS = ("jsonl", "csv", "xlsx", "parquet")
KEYS = ("format", "path", "images_dir", "columns", "values", "week", "appeals")
OUR_COLUMNS = (
    "post_id",
    "title",
    "body",
    "images",
    "created_at",
    "verdict",
    "category",
    "rationale",
    "author",
    "label_source",
)
MAPPED_VALUES = ("verdict", "category")


class SourceError(ValueError):
    """The source cannot be used as it stands; the message says where, what was found, what was expected and the remedy."""


class SourceMissing(SourceError, FileNotFoundError):
    """A file that the source names is not there."""


@dataclass(frozen=True)
class Source:
    """One validated source YAML. `values` maps their terms to the policy's verdict ids and category names."""

    file: Path
    format: str
    path: str
    images_dir: Path
    columns: dict[str, str]
    values: dict[str, dict[str, str]]
    week: str | None = None
    appeals: Path | None = None

    @property
    def has_week_in_path(self) -> bool:
        return "{week}" in self.path

    def posts_file(self, week: str) -> Path:
        """The file that holds the posts of `week` (it may hold other weeks too)."""
        return self.file.parent / self.path.replace("{week}", week)


def check_week(week: str) -> str:
    """Return `week` when it is the ISO date of a Monday, else raise ValueError with the Monday that was probably meant."""
    try:
        day = date.fromisoformat(week)
    except ValueError:
        raise ValueError(f"week {week!r} is not a date; expected the Monday of the week as YYYY-MM-DD") from None
    if day.weekday() != 0 or day.isoformat() != week:
        monday = day - timedelta(days=day.weekday())
        raise ValueError(f"week {week!r} is not a Monday as YYYY-MM-DD; the week of that day is {monday.isoformat()}")
    return week


def load_source(path: Path, policy: Policy | None = None) -> Source:
    """Read and validate a source YAML against a policy (the built-in one by default).

    Raises SourceMissing when there is no such file and SourceError (a ValueError) for YAML that does not parse, unknown or
    repeated keys, an unknown format, an unknown column of ours, or a target in `values` that the policy does not have.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceMissing(
            f"{path}: no such file, expected a source YAML with at least `format` and `path`; "
            "set XHS_SOURCE to an existing file, or unset it to use the sample's"
        )
    policy = policy or load_policy()
    fields = _Fields(path)
    fmt = fields.text("format", required=True)
    fields.check(fmt in FORMATS, "format", fmt, FORMATS)
    template = fields.text("path", required=True) or ""
    for placeholder in re.findall(r"\{[^{}]*\}", template):
        fields.check(placeholder == "{week}", "path", placeholder, ("{week}",))
    week = fields.text("week")
    if week is not None:
        try:
            check_week(week)
        except ValueError as error:
            raise fields.error("week", str(error)) from None
    images_dir = path.parent / (fields.text("images_dir") or ".")
    if not images_dir.is_dir():
        raise SourceMissing(
            f"{fields.where('images_dir')}: no folder {images_dir}; correct images_dir (it is relative to the YAML file)"
        )
    appeals = fields.text("appeals")
    return Source(
        file=path,
        format=str(fmt),
        path=template,
        images_dir=images_dir,
        columns=fields.columns(),
        values=fields.values(policy),
        week=week,
        appeals=None if appeals is None else path.parent / appeals,
    )


def _mapping(
    path: Path, node: yaml.Node, what: str, allowed: tuple[str, ...] | None
) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """The entries of a YAML mapping as {key: (key node, value node)}; where only some keys are allowed, empty ones count as absent."""
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        raise SourceError(f"{path}, line {line}: {what} must be a mapping of `name: value` lines")
    entries: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or (allowed is not None and key not in allowed):
            shown = ", ".join(allowed or ("plain names",))
            raise SourceError(f"{path}, line {line}: unknown key {key!r:.80} in {what}; allowed: {shown}")
        if key in entries:
            raise SourceError(f"{path}, line {line}: {key!r} appears twice in {what}; keep one")
        if value_node.tag != "tag:yaml.org,2002:null" or allowed is None:
            entries[key] = (key_node, value_node)
    return entries


class _Fields:
    """The YAML's nodes, read as text (so that `week: 2026-02-16` is no date and `1: remove` no number), with their lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
        except UnicodeDecodeError as error:
            raise SourceError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
        except RecursionError:
            raise SourceError(f"{path}: nested too deeply to be a source YAML") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark else 1
            raise SourceError(f"{path}, line {line}: not valid YAML ({getattr(error, 'problem', error)})") from None
        if root is None:
            raise SourceError(f"{path}: empty, expected at least `format` and `path`; allowed keys: {', '.join(KEYS)}")
        self.entries = _mapping(path, root, "the source YAML", KEYS)

    def where(self, key: str) -> str:
        return (
            f"{self.path}, line {self.entries[key][0].start_mark.line + 1}" if key in self.entries else str(self.path)
        )

    def error(self, key: str, message: str) -> SourceError:
        return SourceError(f"{self.where(key)}: {message}")

    def check(self, good: bool, key: str, value: str | None, allowed: tuple[str, ...]) -> None:
        if not good:
            raise self.error(key, f"{key} has {value!r}; allowed: {', '.join(allowed)}")

    def text(self, key: str, required: bool = False) -> str | None:
        if key not in self.entries:
            if required:
                raise SourceError(f"{self.path}: `{key}` is missing; a source needs `format` and `path`")
            return None
        node = self.entries[key][1]
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip() or "\0" in node.value:
            raise self.error(key, f"{key} must be one line of text")
        return node.value

    def columns(self) -> dict[str, str]:
        if "columns" not in self.entries:
            return {}
        entries = _mapping(self.path, self.entries["columns"][1], "columns (ours: theirs)", OUR_COLUMNS)
        return {ours: self._scalar(node, f"columns.{ours}") for ours, (_, node) in entries.items()}

    def values(self, policy: Policy) -> dict[str, dict[str, str]]:
        if "values" not in self.entries:
            return {}
        result: dict[str, dict[str, str]] = {}
        entries = _mapping(self.path, self.entries["values"][1], "values", MAPPED_VALUES)
        for field, (_, node) in entries.items():
            result[field] = {}
            for theirs, (key_node, target_node) in _mapping(
                self.path, node, f"values.{field} (theirs: ours)", None
            ).items():
                term = self._scalar(target_node, f"values.{field}.{theirs}")
                if field == "verdict":
                    ours, allowed = policy.verdict_id(term), tuple(f"{v.id} ({v.label})" for v in policy.verdicts)
                else:
                    ours, allowed = (term if policy.category(term) else None), policy.category_names
                if ours is None:
                    line = key_node.start_mark.line + 1
                    raise SourceError(
                        f"{self.path}, line {line}: values.{field} maps {theirs!r} to {term!r}, which the policy does not have; "
                        f"allowed: {', '.join(allowed)}"
                    )
                result[field][theirs.strip()] = ours
        return result

    def _scalar(self, node: yaml.Node, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value:
            raise SourceError(f"{self.path}, line {node.start_mark.line + 1}: {what} must be one line of text")
        return node.value
