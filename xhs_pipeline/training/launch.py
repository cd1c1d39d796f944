"""Running the training in as many processes as the profile says, through accelerate's launcher. Knows nothing of the recipe.

Distribution itself is accelerate's and torch's. What is added is that no process outlives the one that asked for it.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xhs_pipeline.artifacts import read_json, write_json
from xhs_pipeline.profile import Profile
from xhs_pipeline.worker import leave_with_parent


def launch(
    function: str, arguments: dict[str, Any], profile: Profile, folder: Path, log: Callable[[str], None]
) -> dict[str, Any]:
    """Call `function` ("package.module:function") with `arguments` (JSON values) and `log`; its result, of process 0.

    With one process that is a call. With more, each calls it in accelerate's environment, and what any of them prints arrives
    at `log`. They end when this process ends, however it ends, and when one of them fails. Raises RuntimeError then, or
    ValueError when that was the error, with the line that names it.
    """
    if profile.num_processes == 1:
        module, name = function.split(":")
        return dict(getattr(importlib.import_module(module), name)(**arguments, log=log))
    job, result = folder / "job.json", folder / "result.json"
    result.unlink(missing_ok=True)
    write_json(job, {"function": function, "arguments": arguments, "result": str(result)})
    command = [
        sys.executable, "-u", "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
        "--num_processes", str(profile.num_processes), "--main_process_port", "0", "--dynamo_backend", "no",
        "--mixed_precision", "bf16" if profile.precision == "bf16" else "no", "-m", "xhs_pipeline.training.launch", str(job),
    ]  # fmt: skip
    errors: list[str] = []
    # The processes inherit this pipe as their input, and leave when its other end, held here alone, is closed.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as launcher:
        assert launcher.stdin is not None and launcher.stdout is not None
        try:
            for line in map(str.rstrip, launcher.stdout):
                if line:
                    log(line)
                if "Error: " in line:
                    errors.append(line)
            code = launcher.wait()
        finally:
            launcher.stdin.close()
            if launcher.poll() is None:
                launcher.terminate()
    if code or not result.exists():
        why = errors[0] if errors else f"exit code {code}"
        # a setting or a record that is refused stays refused: the stage tells that from a run that may be tried again
        kind = ValueError if re.search(r"\bValueError: ", why) else RuntimeError
        raise kind(f"{profile.num_processes} processes: {why}")
    return dict(read_json(result))


def _say(line: str) -> None:
    """One write for the whole line: print's two would let the processes, which share the pipe, break into each other's."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _main(job: str) -> None:
    threading.Thread(target=leave_with_parent, daemon=True).start()
    asked = read_json(Path(job))
    module, name = asked["function"].split(":")
    call = getattr(importlib.import_module(module), name)
    found = call(**asked["arguments"], log=_say)
    if os.environ["RANK"] == "0":
        Path(asked["result"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    _main(sys.argv[1])
