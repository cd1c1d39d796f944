"""A Dagster instance as a user has one, with its daemon as a process of its own: what the tests of the running loop share."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import yaml
from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick, SensorInstigatorData

ROOT = Path(__file__).resolve().parents[1]
MODULE = "xhs_pipeline.definitions"
SENSOR = "appeal_sensor"
SENSOR_OF = {"repositoryName": "__repository__", "repositoryLocationName": MODULE, "sensorName": SENSOR}
START_SENSOR = """mutation ($sensor: SensorSelector!) {
  startSensor(sensorSelector: $sensor) { __typename ... on Sensor { sensorState { status } } ... on PythonError { message } }
}"""
SAID_LINES = 40

Found = TypeVar("Found")


class Instance:
    """A DAGSTER_HOME with the committed settings, and every process that was started over it.

    database: a PostgreSQL URL for Dagster's own storage; None for SQLite files in the home.
    """

    def __init__(self, home: Path, environment: Mapping[str, str], database: str | None = None):
        home.mkdir()
        settings = yaml.safe_load((ROOT / ".dagster_home" / "dagster.yaml").read_text(encoding="utf-8"))
        if database:
            settings["storage"] = {"postgres": {"postgres_url": database}}
        (home / "dagster.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("XHS_", "DAGSTER_"))}
        self.home, self.environment = home, ours | dict(environment) | {"DAGSTER_HOME": str(home)}
        self.storage = dg.DagsterInstance.from_config(str(home))

    def start(self, *command: str) -> "subprocess.Popen[bytes]":
        """Start a command of Dagster's in a session of its own; what it says goes to the home's log."""
        with (self.home / "said.log").open("ab") as log:
            program = str(Path(sys.executable).parent / command[0])
            return subprocess.Popen(
                [program, *command[1:]], env=self.environment, cwd=self.home, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    def call(self, *command: str) -> str:
        """Run a command to its end and return what it said. Fails the test where it does not exit with 0."""
        program = str(Path(sys.executable).parent / command[0])
        done = subprocess.run(
            [program, *command[1:]], env=self.environment, cwd=self.home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=300,
        )  # fmt: skip
        said = done.stdout.decode("utf-8", "replace")
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{said[-4000:]}"
        return said

    @property
    def said(self) -> str:
        log = self.home / "said.log"
        return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""

    def until(self, what: Callable[[], Found | None], seconds: float, said: str) -> Found:
        """What `what` returns as soon as that is anything; after `seconds` fails with the last lines of the log."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := what():
                return found
            time.sleep(0.2)
        tail = "\n".join(self.said.splitlines()[-SAID_LINES:])
        runs = [(run.run_id, run.job_name, run.status.value) for run in self.storage.get_runs()]
        raise AssertionError(f"{said}: not within {seconds:g} s; runs {runs}\n{tail}")

    def processes(self) -> list[int]:
        """Every process over this home, whatever group it is in: they are known by their environment."""
        mark = f"DAGSTER_HOME={self.home}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with contextlib.suppress(OSError):  # it ended just now
                    if mark in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(int(folder.name))
        return found

    def power_cut(self) -> None:
        """SIGKILL to all of them, until there are none."""
        end = time.monotonic() + 30
        while left := self.processes():
            assert time.monotonic() < end, f"processes {left} do not end"
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)

    def close(self) -> None:
        self.power_cut()
        self.storage.dispose()
        shutil.rmtree(self.home, ignore_errors=True)

    # the sensor, and the runs it asks for

    def start_dev(self, port: int) -> None:
        self.start("dagster", "dev", "-m", MODULE, "--host", "127.0.0.1", "--port", str(port))

    def switch_on(self, port: int) -> None:
        """What the switch on the sensor's page sends, as soon as the page is there."""

        def sent() -> bool:
            try:
                return bool(_ask(port, START_SENSOR, {"sensor": SENSOR_OF})["startSensor"]["__typename"] == "Sensor")
            except OSError:
                return False

        self.until(sent, 120, f"{SENSOR} is switched on")

    def state(self) -> InstigatorState | None:
        return next((s for s in self.storage.all_instigator_state() if s.instigator_name == SENSOR), None)

    def ticks(self) -> list[InstigatorTick]:
        """Ended ticks, the oldest first."""
        state = self.state()
        if state is None:
            return []
        ticks = self.storage.get_ticks(state.instigator_origin_id, state.selector_id)
        return sorted((tick for tick in ticks if tick.status.value != "STARTED"), key=lambda tick: int(tick.tick_id))

    def next_tick(self, after: int, begun_after: float = 0.0) -> InstigatorTick:
        """The first tick that follows `after` of them and began after that moment (seconds since 1970)."""
        self.hurry()
        later = partial(self._tick, after, begun_after)
        return self.until(later, 150, f"tick {after + 1} of {SENSOR}")

    def _tick(self, after: int, begun_after: float) -> InstigatorTick | None:
        return next((tick for tick in self.ticks()[after:] if tick.timestamp > begun_after), None)

    def hurry(self) -> None:
        """Nobody waits for the minute between two ticks: the last one is dated back by it."""
        state = self.state()
        if state is not None and isinstance(data := state.instigator_data, SensorInstigatorData) and data.min_interval:
            earlier = {
                name: value - data.min_interval
                for name in ("last_tick_timestamp", "last_tick_start_timestamp")
                if (value := getattr(data, name))
            }
            self.storage.update_instigator_state(state.with_data(data._replace(**earlier)))

    def requested(self) -> list[dg.DagsterRun]:
        """Runs of appeal_retrain and the runs that were started in their place, the oldest first."""
        return list(reversed(self.storage.get_runs(dg.RunsFilter(job_name="appeal_retrain"))))

    def said_in(self, run: dg.DagsterRun) -> str:
        """Everything in the run's log."""
        return "\n".join(entry.user_message for entry in self.storage.all_logs(run.run_id))

    def materialised(self, run: dg.DagsterRun) -> dict[str, bool]:
        """Asset keys that the run materialised, and whether it found them built."""
        found = {}
        for entry in self.storage.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
            if entry.dagster_event:
                event = entry.dagster_event.step_materialization_data.materialization
                found[event.asset_key.to_user_string()] = bool(event.metadata["reused"].value)
        return found


def _ask(port: int, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """One request to the webserver's GraphQL, as its pages make them."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return dict(json.loads(answer.read())["data"])
