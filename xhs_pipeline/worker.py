"""Run one stage in a process of its own, so that a crash, an out-of-memory kill or held GPU memory ends with it.

The child gets its arguments as JSON, streams its log lines, and dies with its parent. Only JSON crosses, no pickles.
"""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Idle OpenMP threads sleep instead of spinning: as fast on a quiet machine, and several times faster where others use the cores.
CHILD_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


# What a stage that refuses its data or its settings hands back instead of a result.
REFUSED = "refused"


class StageFailed(RuntimeError):
    """The stage's process ended without a result; its last words are in the message."""


class StageRefused(ValueError):
    """The stage refused its data or its settings, in its own words; trying again cannot mend that."""


def run(stage: str, arguments: dict[str, Any], log: Callable[[str], None] = print) -> dict[str, Any]:
    """Call `stage` ("package.module:function") with keyword `arguments` (JSON values) in a child process.

    The function also gets `log`; what it logs or prints arrives at `log` here, line by line. Returns its JSON result plus
    `peak_memory_mb` and `cpu_seconds` of the child. When this process is interrupted the child is ended; when it is killed, the child sees
    its input close and ends itself. Raises StageRefused for a ValueError or FileNotFoundError in the stage, and StageFailed when
    the child fails in any other way.
    """
    with tempfile.TemporaryDirectory(prefix="xhs-stage-") as folder:
        result = Path(folder) / "result.json"
        child = subprocess.Popen(
            [sys.executable, "-u", "-m", "xhs_pipeline.worker", stage, str(result)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**CHILD_ENVIRONMENT, **os.environ},
        )
        assert child.stdin is not None and child.stdout is not None
        words: list[str] = []
        try:
            child.stdin.write(json.dumps(arguments) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                if line.strip():
                    log(line.rstrip())
                    words = [*words[-19:], line.rstrip()]
            code = child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
        if code < 0:
            name = signal.Signals(-code).name
            hint = (
                "; the machine was probably out of memory: use a smaller profile or batch" if name == "SIGKILL" else ""
            )
            raise StageFailed(f"{stage} was ended by {name}{hint}. Last words: {' | '.join(words[-3:])}")
        if code or not result.exists():
            raise StageFailed(f"{stage} failed: {words[-1] if words else f'exit code {code}'}")
        value = dict(json.loads(result.read_text(encoding="utf-8")))
        if REFUSED in value:
            raise StageRefused(value[REFUSED])
        return value


def leave_with_parent() -> None:
    """End this process when its parent is gone: for a daemon thread, in a process whose input is a pipe from the parent."""
    sys.stdin.read()  # returns when the parent closes the pipe, which the system does for a killed one
    os._exit(3)


def _peak_memory_mb() -> int:
    """This program's largest resident size. Linux carries ru_maxrss over from the parent, VmHWM begins anew with the program."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) // 2**10  # kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20  # bytes on macOS


def _main(stage: str, result: str) -> None:
    arguments = json.loads(sys.stdin.readline())
    threading.Thread(target=leave_with_parent, daemon=True).start()
    module, function = stage.split(":")
    try:
        value = getattr(importlib.import_module(module), function)(
            **arguments, log=lambda line: print(line, flush=True)
        )
    except (ValueError, FileNotFoundError) as problem:
        traceback.print_exc()
        value = {REFUSED: str(problem)}
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {"peak_memory_mb": _peak_memory_mb(), "cpu_seconds": round(used.ru_utime + used.ru_stime, 1)}
    Path(result).write_text(json.dumps(value | figures), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
