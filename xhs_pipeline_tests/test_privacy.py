"""Keyed hashes of people: one key a data folder, kept to its owner, agreed on by all who start at once."""

import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from xhs_pipeline.privacy import keyed_hash, load_hmac_key

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XHS_HMAC_KEY", raising=False)


def test_the_key_file_is_made_on_first_use_for_its_owner_only_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    key = load_hmac_key(folder)
    file = folder / ".hmac_key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and len(key) == 64
    assert load_hmac_key(folder) == key and [p.name for p in folder.iterdir()] == [".hmac_key"]
    assert load_hmac_key(tmp_path / "other") != key


def test_processes_that_make_the_key_at_the_same_time_agree(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from xhs_pipeline.privacy import load_hmac_key as k; sys.stdin.read(); print(k(Path(sys.argv[1])).decode())"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(4)
    ]
    for process in started:  # all of them wait for this
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    keys = {process.communicate(timeout=30)[0].strip() for process in started}
    assert len(keys) == 1 and keys == {load_hmac_key(tmp_path).decode()}
    assert [p.name for p in tmp_path.iterdir()] == [".hmac_key"]


def test_threads_that_make_the_key_at_the_same_time_agree(tmp_path: Path) -> None:
    for round_ in range(20):
        barrier, folder = Barrier(8), tmp_path / str(round_)

        def first_use(barrier: Barrier = barrier, folder: Path = folder) -> bytes:
            barrier.wait()
            return load_hmac_key(folder)

        with ThreadPoolExecutor(8) as pool:
            keys = {future.result() for future in [pool.submit(first_use) for _ in range(8)]}
        assert keys == {load_hmac_key(folder)}


def test_a_key_in_the_environment_wins_and_writes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XHS_HMAC_KEY", "a key of my own, long enough")
    assert load_hmac_key(tmp_path) == b"a key of my own, long enough"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["", "too short"])
def test_a_short_key_is_an_error_that_names_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    (tmp_path / ".hmac_key").write_text(key)
    with pytest.raises(ValueError, match=rf"\.hmac_key: a key of {len(key)} bytes, expected at least 16; set a longer"):
        load_hmac_key(tmp_path)
    monkeypatch.setenv("XHS_HMAC_KEY", key)
    with pytest.raises(ValueError, match=rf"XHS_HMAC_KEY: a key of {len(key)} bytes, expected at least 16") as caught:
        load_hmac_key(tmp_path)
    assert not key or key not in str(caught.value)


def test_one_author_has_one_hash_under_one_key_and_another_under_another() -> None:
    one, other = b"k" * 16, b"l" * 16
    assert keyed_hash(one, "user_１") == keyed_hash(one, " user_1 ")  # width and blanks do not make another person
    assert len({keyed_hash(one, "user_1"), keyed_hash(one, "user_2"), keyed_hash(other, "user_1")}) == 3
    assert len(keyed_hash(one, "user_1")) == 32 and "user" not in keyed_hash(one, "user_1")
