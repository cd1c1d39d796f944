"""What a published unique_posts spares the next one: which of its files still hold, and the links to them. Decides nothing."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from xhs_pipeline.artifacts import Artifact, file_digest, read_json
from xhs_pipeline.curation.duplicates import Decisions
from xhs_pipeline.curation.index import Index, Numbers, Segment


@dataclass(frozen=True)
class Founders:
    """The founders of groups beside their oldest post: pairs leader[i], founder[i] of post numbers, sorted."""

    leader: Numbers
    founder: Numbers

    @classmethod
    def of(cls, founder: Numbers, leaders: Numbers) -> "Founders":
        """From the founder and the leader of every post (-1 for repeated ids). A leader is a founder of its own group."""
        other = np.flatnonzero(founder != leaders)
        pairs = np.unique(np.stack([leaders[other], founder[other]], axis=1), axis=0)
        return cls(pairs[:, 0], pairs[:, 1])

    def names(self, leaders: Numbers, index: Index) -> dict[int, list[str]]:
        """The sorted post ids of all founders, of those of these groups that have several."""
        chosen = np.isin(self.leader, leaders)
        leader, founder = self.leader[chosen], self.founder[chosen]
        several = {number: [number] for number in leader.tolist()}
        for number, other in zip(leader.tolist(), founder.tolist(), strict=True):
            several[number].append(other)
        numbers = np.unique(np.append(leader, founder))
        ids = dict(zip(numbers.tolist(), index.take_posts(numbers, ["post_id"])["post_id"].to_pylist(), strict=True))
        return {number: sorted(ids[other] for other in others) for number, others in several.items()}


@dataclass(frozen=True)
class Result:
    """What was decided about every post, and the groups: `leaders` gives of every post the oldest of its group (-1: none)."""

    decisions: Decisions
    leaders: Numbers
    founders: Founders

    def save(self, folder: Path) -> None:
        decisions, founders = self.decisions, self.founders
        _write(
            folder / "decisions.arrow",
            reason=decisions.reason,
            target=decisions.target,
            similarity=decisions.similarity,
            leader=self.leaders,
        )
        _write(folder / "founders.arrow", leader=founders.leader, founder=founders.founder)

    @classmethod
    def load(cls, folder: Path) -> "Result":
        posts, founders = _read(folder / "decisions.arrow"), _read(folder / "founders.arrow")
        decisions = Decisions(posts["reason"], posts["target"], posts["similarity"])
        return cls(decisions, posts["leader"], Founders(founders["leader"], founders["founder"]))


def _write(file: Path, **columns: np.ndarray) -> None:
    table = pa.table(columns)
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)


def _read(file: Path) -> dict[str, Any]:
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    return {name: table[name].to_numpy() for name in table.column_names}


class Previous:
    """A published unique_posts, as far as it holds for `weeks` ([week, content of its clean_posts], in order).

    weeks: how many of them, from the start, have a sound segment. settled: how many posts its decisions hold for, 0 when they
    have to be made anew. linked: the files that `link` linked, with their manifest entries.
    """

    def __init__(
        self, artifact: Artifact | None, settings: dict[str, Any], weeks: list[list[str]], log: Callable[[str], None]
    ) -> None:
        self.weeks = self.settled = 0
        self.linked: dict[str, dict[str, Any]] = {}
        self._log = log
        self._result: Result | None = None
        self._changed: Numbers | None = None
        if artifact is None:
            return
        self._path, self._files = artifact.path, artifact.manifest["files"]
        if not self._sound("index/state.json"):
            return
        state = read_json(self._path / "index" / "state.json")
        had = state.pop("weeks")
        if {**state, "trusted_sources": None} != {**settings, "trusted_sources": None}:
            log(f"unique_posts: {artifact.version} has an index of another format; all weeks are compared anew")
            return
        while self.weeks < min(len(had), len(weeks)) and had[self.weeks] == weeks[self.weeks]:
            if not self._sound_segment(had[self.weeks][0]):
                break
            self.weeks += 1
        log(f"unique_posts: {self.weeks} of {len(weeks)} weeks are compared already, in {artifact.version}")
        if not self.weeks or not all(self._sound(f"index/{name}.arrow") for name in ("decisions", "founders")):
            return
        self._result = Result.load(self._path / "index")
        if self.weeks == len(had) and state == settings:
            self.settled = len(self._result.leaders)

    @property
    def result(self) -> Result:
        assert self._result is not None
        return self._result

    def _sound(self, name: str) -> bool:
        """Whether a file is there as the manifest says, to the last byte."""
        file, entry = self._path / name, self._files.get(name)
        sound = bool(entry) and self._has_size(name) and file_digest(file) == entry["sha256"]
        if not sound:
            self._log(f"unique_posts: {file} is missing or damaged; what depends on it is computed anew")
        return sound

    def _sound_segment(self, week: str) -> bool:
        """segment.json by its SHA-256, and by the CRC-32 in it the rest, which costs less."""
        if not self._sound(f"index/{week}/segment.json"):
            return False
        sound = Segment(self._path / "index" / week).is_sound()
        if not sound:
            self._log(
                f"unique_posts: {self._path}/index/{week} is damaged; its week and those after it are compared anew"
            )
        return sound

    def _has_size(self, name: str) -> bool:
        file = self._path / name
        return file.is_file() and file.stat().st_size == self._files[name]["bytes"]

    def changed(self, result: Result, span: slice, reason: int) -> npt.NDArray[np.bool_]:
        """Which posts of `span` have this reason where they had not, or the other way round, or are in a group that changed."""
        if self._result is None or span.stop > len(self._result.leaders):
            return np.ones(span.stop - span.start, np.bool_)
        had, has = (r.decisions.reason[span] == reason for r in (self._result, result))
        leaders = result.leaders[span]
        regrouped = (self._result.leaders[span] != leaders) | np.isin(leaders, self._changed_groups(result.founders))
        return (had != has) | (has & regrouped)

    def _changed_groups(self, founders: Founders) -> Numbers:
        """Oldest posts of the groups whose founders are not what they were."""
        if self._changed is None:
            pairs = (zip(f.leader.tolist(), f.founder.tolist(), strict=True) for f in (self.result.founders, founders))
            before, now = map(set, pairs)
            self._changed = np.array(sorted({leader for leader, _ in before ^ now}), np.int64)
        return self._changed

    def link(self, name: str, work: Path) -> bool:
        """Link a file of the previous version into `work`; False where it is not there with the size that it was written with."""
        entry, source, target = self._files.get(name), os.path.join(self._path, name), os.path.join(work, name)
        if entry is None or not os.path.isfile(source) or os.path.getsize(source) != entry["bytes"]:
            return False
        try:
            os.link(source, target)
            self.linked[name] = entry
        except OSError:  # another file system, or one without links: the copy is hashed like a file written here
            shutil.copyfile(source, target)
        return True

    def link_segment(self, week: str, work: Path) -> Segment:
        """The week's segment, linked into `work`."""
        folder = work / "index" / week
        folder.mkdir(parents=True)
        for name in (f"index/{week}/{file}" for file in sorted(os.listdir(self._path / "index" / week))):
            if not self.link(name, work):
                raise ValueError(f"{self._path / name}: changed while it was read; run unique_posts again")
        return Segment.load(folder)
