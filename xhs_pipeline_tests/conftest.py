"""Fixtures that several test files share. What is built here is built once a session, and never changed by a test."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch loads: on a busy machine more threads than free cores make these small models many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from xhs_pipeline_tests.databases import Postgres, start_postgres
from xhs_pipeline_tests.small import PROFILE, make_splits, model_folder


def pytest_configure() -> None:
    """In every worker process, too.

    A shell's background job ignores SIGINT, and Dagster, after any run in this process, lets SIGTERM do as SIGINT does: what
    tests start from then on would inherit that, and ignore being told to end.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _silent(line: str) -> None:
    pass


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; skips where none is installed."""
    server = start_postgres()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty appeals database: every test that asks for it runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'appeals.sqlite3'}"
    return str(request.getfixturevalue("postgres").url())


@pytest.fixture(scope="module")  # not of the session: where one is open, asyncio.run refuses to
def browser() -> Iterator[Any]:
    from xhs_pipeline_tests.browsers import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def small_splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharegpt_splits folder of 96 synthetic posts."""
    return make_splits(tmp_path_factory.mktemp("small_splits"))


@pytest.fixture(scope="session")
def small_base(small_splits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base_model folder: the embedded model, built by the stage itself."""
    from xhs_pipeline.training.stages import build_base

    out = tmp_path_factory.mktemp("small_base")
    build_base(str(small_splits), PROFILE.model_dump(), str(out), _silent)
    return out


@pytest.fixture(scope="session")
def small_checkpoint(small_base: Path) -> Path:
    """The checkpoint folder inside `small_base`."""
    from xhs_pipeline.vlm.base import checkpoint_folder

    return checkpoint_folder(small_base)


@pytest.fixture(scope="session")
def published_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in exactly Qwen2-VL-2B-Instruct's layout, shrunk in size."""
    from xhs_pipeline_tests.published import write_published

    return write_published(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="session")
def small_processor(small_checkpoint: Path) -> Any:
    from xhs_pipeline.vlm.processor import load_processor

    return load_processor(small_checkpoint, PROFILE.min_pixels, PROFILE.max_pixels)


@pytest.fixture(scope="session")
def small_adapter(small_base: Path, small_splits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder, trained without disturbance by the stage itself."""
    from xhs_pipeline.training.stages import train_adapter

    work = tmp_path_factory.mktemp("small_adapter")
    train_adapter(str(small_base), str(small_splits), PROFILE.model_dump(), str(work), _silent)
    return work


@pytest.fixture(scope="session")
def small_merged(
    small_base: Path, small_adapter: Path, small_splits: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A merged_model folder and the counts that prove it."""
    from xhs_pipeline.training.stages import merge_adapter

    out = tmp_path_factory.mktemp("small_merged")
    counts = merge_adapter(
        str(small_base), str(small_adapter), str(small_splits), PROFILE.model_dump(), str(out), _silent
    )
    return out, counts


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as merged_model writes it, for tests that ask what is done with answers and not whether they are right."""
    return model_folder(tmp_path_factory.mktemp("untrained_model"))
