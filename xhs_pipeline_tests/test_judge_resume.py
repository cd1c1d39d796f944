"""A cut-off run of the judging command is gone on with: OUT comes out byte for byte as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.judge.batch import judge_file
from xhs_pipeline.judge.lines import resumable
from xhs_pipeline.judge.rows import CHUNK
from xhs_pipeline_tests.small import jpeg, jsonl

MADE = {"model": "m", "posts": "p"}


def write(out: Path, *chunks: list[dict[str, Any]], said: list[str] | None = None, fail: bool = False) -> list[Any]:
    """Write chunks, then fail or end well; returns the earlier run's lines."""
    with resumable(out, MADE, (said if said is not None else []).append) as lines:
        earlier = list(lines.earlier())
        for chunk in chunks:
            lines.add(chunk)
        if fail:
            raise OSError("cut off")
    return earlier


def hidden(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.name.startswith(".")}


def test_an_out_that_fails_half_way_stays_as_it_was_and_keeps_its_mode_when_it_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    out.chmod(0o600)
    with pytest.raises(OSError, match="cut off"):
        write(out, [{"row": 1}, {"row": 2}], fail=True)
    assert out.read_text() == "before" and hidden(tmp_path) == {".out.jsonl.part", ".out.jsonl.part.log"}
    assert write(out, [{"row": 3}]) == [{"row": 1}, {"row": 2}]
    assert out.read_text() == '{"row": 1}\n{"row": 2}\n{"row": 3}\n'
    assert out.stat().st_mode & 0o777 == 0o600 and not hidden(tmp_path)


def test_what_a_kill_left_of_an_unfinished_chunk_or_log_line_is_dropped(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(OSError, match="cut off"):
        write(out, [{"row": 1}], fail=True)
    with (tmp_path / ".out.jsonl.part").open("ab") as part, (tmp_path / ".out.jsonl.part.log").open("ab") as log:
        part.write(b'{"row": 2}\n{"row": 3, "post')
        log.write(b'{"byt')
    assert write(out, [{"row": 2}]) == [{"row": 1}]
    assert out.read_text() == '{"row": 1}\n{"row": 2}\n'


def test_a_run_that_fails_before_its_first_chunk_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cut off"):
        write(tmp_path / "out.jsonl", fail=True)
    assert not list(tmp_path.iterdir())


def test_lines_made_from_something_else_are_thrown_away_and_what_differs_is_said(tmp_path: Path) -> None:
    out, said = tmp_path / "out.jsonl", []
    with pytest.raises(OSError, match="cut off"), resumable(out, MADE | {"posts": "q"}, print) as lines:
        lines.add([{"row": 1}])
        raise OSError("cut off")
    assert write(out, [{"row": 7}], said=said) == [] and out.read_text() == '{"row": 7}\n'
    part = tmp_path / ".out.jsonl.part"
    assert said == [f"{part}: begun by an earlier run, but made from another posts; starting anew"]


def test_a_part_that_lost_finished_lines_is_begun_anew(tmp_path: Path) -> None:
    out, said = tmp_path / "out.jsonl", []
    with pytest.raises(OSError, match="cut off"):
        write(out, [{"row": 1}], [{"row": 2}], fail=True)
    os.truncate(tmp_path / ".out.jsonl.part", 5)
    assert write(out, [{"row": 1}], said=said) == [] and "but cut off; starting anew" in said[0]
    assert out.read_text() == '{"row": 1}\n'


def test_an_out_whose_name_is_as_long_as_names_may_be_has_a_part_of_its_own(tmp_path: Path) -> None:
    outs = [tmp_path / ("长" * 84 + end) for end in ("a", "b")]
    with resumable(outs[0], MADE, print) as one, resumable(outs[1], MADE, print) as two:
        one.add([{"row": 1}])
        two.add([{"row": 2}])
    assert [out.read_text() for out in outs] == ['{"row": 1}\n', '{"row": 2}\n']


def test_two_writers_of_one_out_are_one_too_many_also_through_a_link(tmp_path: Path) -> None:
    out, link = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    link.symlink_to(out)
    with resumable(out, MADE, print) as lines:
        lines.add([{"row": 1}])
        with pytest.raises(ValueError, match=r"link\.jsonl: another run is writing it"):
            write(link, [{"row": 2}])
    assert out.read_text() == '{"row": 1}\n'


# the command itself, killed for real


def posts(folder: Path, chunks: int) -> Path:
    """Mostly rows that cost nothing to judge; ids come again after half of the file, so a rerun must know the first half's."""
    half = chunks * CHUNK // 64 // 2
    (folder / "a.jpg").write_bytes(jpeg(90, 70))
    rows: list[dict[str, Any] | bytes] = []
    for n in range(chunks * CHUNK):
        place = n // 64
        row: dict[str, Any] = {"post_id": f"p{place % half}", "body": "稳赚不赔" * (place % 9 + 1), "verdict": "pass"}
        if place % 7 == 1:
            row |= {"images": ["a.jpg", "gone.jpg"], "verdict": "?"}
        rows.append(row if n % 64 == 0 else b"{" if n % 64 == 1 else {"body": "no id"})
    return jsonl(folder, *rows)


def start(model: Path, file: Path, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "xhs_pipeline.judge", str(model), str(file), str(out), "--compare"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def after_first_chunk(run: "subprocess.Popen[str]") -> None:
    assert run.stderr is not None
    assert any(line.startswith("judged ") for line in run.stderr), "a chunk was written"


def kill(run: "subprocess.Popen[str]") -> None:
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()


def test_runs_killed_at_any_moment_and_run_again_write_what_an_undisturbed_run_writes(
    untrained_model: Path, tmp_path: Path
) -> None:
    file, whole, out = posts(tmp_path, 12), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run = start(untrained_model, file, whole)
    after_first_chunk(run)
    began = time.monotonic()
    figures, said = run.communicate()
    took = time.monotonic() - began
    assert run.returncode == 0

    seed = random.randrange(10**6)
    run = start(untrained_model, file, out)
    after_first_chunk(run)
    kill(run)
    assert not out.exists() and hidden(tmp_path) == {".out.jsonl.part", ".out.jsonl.part.log"}
    run = start(untrained_model, file, out)
    after_first_chunk(run)
    time.sleep(random.Random(seed).uniform(0, took))
    kill(run)
    if not out.exists():  # killed before its end, as nearly always
        again = start(untrained_model, file, out)
        figures_again, said_again = again.communicate()
        assert again.returncode == 0 and "going on after" in said_again, seed
        assert figures_again == figures, seed
        assert said_again.splitlines()[-9:] == said.replace(str(whole), str(out)).splitlines()[-9:], seed
    assert out.read_bytes() == whole.read_bytes(), seed
    assert not hidden(tmp_path)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 12 * CHUNK + 1)), "one line for every row"
    errors = {line["error"] for line in lines if "error" in line}
    assert errors == {"bad_json", "missing_post_id", "duplicate_post_id"}


def test_the_command_refuses_an_out_that_another_process_is_writing(untrained_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with resumable(out, MADE, print) as lines:
        lines.add([{"row": 1}])
        run = start(untrained_model, posts(tmp_path, 1), out)
        _, said = run.communicate()
    assert run.returncode == 2 and out.read_text() == '{"row": 1}\n'
    assert said == f"error: {out}: another run is writing it; wait for its end, or name another OUT\n"


@pytest.fixture
def cut_off(untrained_model: Path, tmp_path: Path) -> Callable[[], tuple[Path, Path]]:
    """A run that wrote its first chunk and then met a disk that refuses."""

    def run() -> tuple[Path, Path]:
        file = jsonl(tmp_path, *({"post_id": f"p{n}" if n < 3 else "", "body": "好"} for n in range(CHUNK + 1)))
        out = tmp_path / "out.jsonl"

        def refuse(line: str) -> None:
            if line.startswith("judged "):
                raise OSError("cut off")

        with pytest.raises(OSError, match="cut off"):
            judge_file(untrained_model, file, out, say=refuse)
        return file, out

    return run


@pytest.mark.parametrize("what", ["posts", "model", "source", "options"])
def test_a_part_of_another_model_file_source_or_option_is_never_continued(
    what: str, cut_off: Callable[[], tuple[Path, Path]], untrained_model: Path, tmp_path: Path
) -> None:
    file, out = cut_off()
    model, source = untrained_model, None
    if what == "posts":
        file.write_text(file.read_text().replace("p0", "x0"))
        os.utime(file, ns=(1, 1))
    elif what == "model":
        model = tmp_path / "other_model"
        model.mkdir()
        for part in untrained_model.iterdir():
            (model / part.name).write_bytes(part.read_bytes())
    elif what == "source":
        source = tmp_path / "source.yaml"
        source.write_text("format: jsonl\npath: posts.jsonl\ncolumns: {body: body}\n")
    said: list[str] = []
    tally = judge_file(model, file, out, source, compare=what == "options", say=said.append)
    assert tally.judged == 3 and "starting anew" in said[0]
    assert json.loads(out.read_text().splitlines()[0])["model_version"] == model.name


def test_the_number_of_processes_is_no_reason_to_begin_anew(
    cut_off: Callable[[], tuple[Path, Path]], untrained_model: Path
) -> None:
    file, out = cut_off()
    said: list[str] = []
    tally = judge_file(untrained_model, file, out, processes=2, say=said.append)
    assert said[0] == f"going on after {CHUNK} rows of an earlier run (3 judged)"
    assert (tally.judged, tally.rows) == (3, CHUNK + 1)
