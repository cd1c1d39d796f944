"""Jobs in line for a thread, and the settings of the service: what needs no process to show."""

import asyncio
import logging
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from xhs_pipeline.serve.auth import Tokens
from xhs_pipeline.serve.batching import Job, Line
from xhs_pipeline.serve.cli import Discreet, main
from xhs_pipeline.serve.limits import Limits

A, B = "a-token-of-16-chars", "another-of-16-chars"


class Numbered(Job):
    def __init__(self, number: int, size: int = 1):
        super().__init__(size)
        self.number = number


class Thread:
    """Work that notes its groups and waits, with the first one, until it is let go."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.go = threading.Event()

    def work(self, group: list[Numbered]) -> None:
        self.groups.append([job.number for job in group])
        assert self.go.wait(20)


def answer(group: Sequence[Numbered]) -> None:
    for job in group:
        if not job.answer.done():
            job.answer.set_result([job.number])


def line(thread: Thread, **options: Any) -> "Line[Numbered]":
    settings: dict[str, Any] = {"posts": 4, "threads": 1, "together": lambda one, other: True}
    return Line(thread.work, answer, **(settings | options))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 40))  # type: ignore[arg-type]


def test_what_comes_while_the_thread_is_busy_is_taken_together_in_order_up_to_the_limit() -> None:
    async def scenario() -> None:
        thread = Thread()
        waiting = line(thread)
        jobs = [Numbered(n) for n in range(8)]
        for job in jobs:
            waiting.put(job)
        thread.go.set()
        assert await asyncio.gather(*(job.answer for job in jobs)) == [[n] for n in range(8)]
        assert thread.groups == [[0], [1, 2, 3, 4], [5, 6, 7]]
        waiting.close()

    run(scenario)


def test_a_job_stays_whole_and_joins_only_what_it_may_join() -> None:
    async def scenario() -> None:
        thread = Thread()
        waiting = line(thread, together=lambda one, other: one.number % 2 == other.number % 2)
        jobs = [Numbered(0), Numbered(2, 3), Numbered(4, 2), Numbered(6, 9), Numbered(7), Numbered(9)]
        for job in jobs:
            waiting.put(job)
        thread.go.set()
        await asyncio.gather(*(job.answer for job in jobs))
        assert thread.groups == [[0], [2], [4], [6], [7, 9]]
        waiting.close()

    run(scenario)


def test_a_request_that_gave_up_is_left_out_and_an_error_reaches_all_of_its_group() -> None:
    async def scenario() -> None:
        def work(group: list[Numbered]) -> None:
            done.append([job.number for job in group])
            time.sleep(0.05)
            if len(done) == 2:
                raise MemoryError("the model's")

        done: list[list[int]] = []
        waiting: Line[Numbered] = Line(work, answer, posts=2, threads=1, together=lambda one, other: True)
        jobs = [Numbered(n) for n in range(6)]
        for job in jobs:
            waiting.put(job)
        jobs[1].answer.cancel()
        results = await asyncio.gather(*(job.answer for job in jobs), return_exceptions=True)
        assert done == [[0], [2, 3], [4, 5]]
        assert [type(result).__name__ for result in results] == [
            "list", "CancelledError", "MemoryError", "MemoryError", "list", "list",
        ]  # fmt: skip
        waiting.close()

    run(scenario)


def test_who_gave_up_leaves_the_line_at_once_and_every_way_out_counts_down() -> None:
    async def scenario() -> None:
        thread = Thread()
        waiting = line(thread, posts=1)
        begun, dropped, cancelled, last = (Numbered(n, size) for n, size in enumerate((1, 2, 4, 8)))
        for job in (begun, dropped, cancelled, last):
            waiting.put(job)
        assert waiting.posts == 15
        dropped.answer.cancel()
        waiting.drop(dropped)
        waiting.drop(begun)
        assert waiting.posts == 13, "what has begun stays until it has ended"
        cancelled.answer.cancel()  # and the line is faster than whoever would drop it
        thread.go.set()
        await last.answer
        waiting.drop(cancelled)
        assert waiting.posts == 0 and thread.groups == [[0], [3]]
        waiting.close()

    run(scenario)


def test_a_line_that_was_closed_begins_nothing_that_another_one_still_hands_on() -> None:
    async def scenario() -> None:
        thread = Thread()
        waiting = line(thread)
        waiting.close()
        waiting.put(Numbered(1))
        assert waiting.posts == 0 and thread.groups == []

    run(scenario)


def test_a_job_waits_for_company_only_while_some_is_coming_and_only_so_long() -> None:
    async def scenario() -> None:
        thread = Thread()
        thread.go.set()
        coming = [True]
        patient, hasty = (line(thread, more_coming=lambda: coming[0], gather_seconds=s) for s in (60.0, 0.5))

        async def answered(waiting: "Line[Numbered]", *numbers: int) -> None:
            jobs = [Numbered(n) for n in numbers]
            for job in jobs:
                waiting.put(job)
            await asyncio.gather(*(job.answer for job in jobs))

        began = time.monotonic()
        await answered(hasty, 1, 2)
        assert time.monotonic() - began >= 0.49, "more was said to be coming"
        await answered(patient, 0, 1, 2, 3)  # a full group waits for nobody, or this would take a minute
        coming[0] = False
        await answered(patient, 9)
        assert thread.groups == [[1, 2], [0, 1, 2, 3], [9]]
        for one in (patient, hasty):
            one.close()

    run(scenario)


def test_one_line_gathers_while_the_next_is_busy_and_no_longer() -> None:
    async def scenario() -> None:
        model, cleaner = Thread(), Thread()
        cleaner.go.set()
        judging: Line[Numbered] = Line(model.work, answer, posts=4, threads=1, together=lambda one, other: True)
        cleaning = line(cleaner, more_coming=lambda: judging.busy, gather_seconds=60.0)
        assert not judging.busy
        first, judged = Numbered(0), Numbered(1)
        cleaning.put(first)
        assert await first.answer == [0], "the model is free, so nobody is waited for"
        judging.put(judged)
        waiting = [Numbered(n) for n in (2, 3)]
        for job in waiting:
            cleaning.put(job)
        await asyncio.sleep(0.05)
        assert judging.busy and cleaner.groups == [[0]]
        model.go.set()
        await judged.answer
        await asyncio.sleep(0)
        cleaning.start()
        await asyncio.gather(*(job.answer for job in waiting))
        assert cleaner.groups == [[0], [2, 3]]
        for one in (judging, cleaning):
            one.close()

    run(scenario)


def test_who_had_to_be_left_when_the_waiting_was_over_does_not_wait_again() -> None:
    async def scenario() -> None:
        thread = Thread()
        thread.go.set()
        waiting = line(
            thread,
            together=lambda one, other: one.number % 2 == other.number % 2,
            more_coming=lambda: True,
            gather_seconds=5.0,
        )
        jobs = [Numbered(n) for n in (0, 1, 2)]
        began = time.monotonic()
        for job in jobs:
            waiting.put(job)
        await asyncio.gather(*(job.answer for job in jobs))
        assert thread.groups == [[0], [1], [2]] and 4.9 <= time.monotonic() - began < 10  # not one after another
        waiting.close()

    run(scenario)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_posts": 0}, "batch_posts must be at least 1"),
        ({"request_seconds": -1.0, "body_mb": 0}, "body_mb, request_seconds"),
        ({"waiting_posts": 63}, "waiting_posts must hold request_posts"),
    ],
)
def test_limits_that_no_request_could_meet_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Limits(**changed)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (f"han={A},mei", "entry 2 is not name=token"),
        ("han=tooshort", "entry 1 is not name=token"),
        (f"han={A},mei={A}", "entry 2 repeats"),
        (f"han={A},han={B}", "entry 2 repeats"),
        (f"han={A},Han={B}", "entry 2 repeats .* a name but for case, width, spaces or what is invisible"),
        (f"han={A},ｈａｎ={B}", "entry 2 repeats"),
        (f"han mei={A},han\u3000 mei={B}", "entry 2 repeats"),
        (f"han={A},ha\u200bn={B}", "entry 2 repeats"),
        (f"\u200b={A}", "entry 1 is not name=token"),
        (f"han={'é' * 20}", "entry 1 .* at least 16 printable ASCII characters without spaces; make one with"),
        (f"han={A},mei=a token with some spaces", "entry 2 .* without spaces"),
    ],
)
def test_a_list_of_tokens_that_leaves_a_doubt_is_refused_without_a_token_in_the_message(
    tokens: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XHS_REVIEWER_TOKENS", tokens)
    with pytest.raises(ValueError, match=message) as refused:
        Tokens.from_environment()
    assert A not in str(refused.value) and "tooshort" not in str(refused.value)


def test_a_token_says_who_it_is_and_no_role_is_on_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XHS_REVIEWER_TOKENS", f"han={A}, mei={B}")
    monkeypatch.delenv("XHS_CLIENT_TOKENS", raising=False)
    tokens = Tokens.from_environment()
    assert (tokens.who(A), tokens.who(B), tokens.who("")) == (("reviewer", "han"), ("reviewer", "mei"), None)
    assert tokens.on("reviewer") and not tokens.on("client")


def test_a_service_that_others_could_reach_needs_tokens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("XHS_CLIENT_TOKENS", raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "set XHS_CLIENT_TOKENS" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["fastapi", "fastapi_offline", "uvicorn", "prometheus_client"])
def test_without_the_extra_the_command_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from xhs_pipeline.serve.cli import main; sys.exit(main(['serve']))"  # fmt: skip
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr == f"error: {missing} is not installed; pip install 'xhs-pipeline[serve]'\n"


def test_the_console_script_is_this_command(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["scripts"]["xhs-judge"] == f"{main.__module__}:{main.__name__}"
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and all(f"--{f.name.replace('_', '-')}" in shown for f in fields(Limits))


def test_a_logged_error_says_where_it_happened_and_not_what_it_quotes() -> None:
    try:
        raise KeyError("the text of a post")
    except KeyError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    said = Discreet().format(record)
    assert "the text of a post" not in said and "KeyError at test_serve_batching.py:" in said
