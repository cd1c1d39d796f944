"""xhs-judge: the model in use, over HTTP on this machine; `demo` has a page as well, to judge, appeal and review in a browser.

    xhs-judge serve [--port 8000]
    xhs-judge demo [--port 7860]

Posts are judged by the champion of the data folder (XHS_DATA_DIR), which is exchanged while the service runs as soon as the
pointer moves. Every decision is kept in the appeals store (XHS_APPEALS_URL). Documentation of the routes: /docs.
SIGTERM and Ctrl-C let requests that have begun end first. Exit status 2 when the service cannot start.
"""

import argparse
import ipaddress
import logging
import sys
import traceback
from dataclasses import fields
from pathlib import Path
from typing import Any

from xhs_pipeline.serve.limits import Limits

HELP = {
    "requests": "answered at once, of any kind",
    "body_mb": "MB of one request",
    "bodies_mb": "MB of all requests at once",
    "body_seconds": "for sending a request: its headers, then its body",
    "request_posts": "posts in one request",
    "waiting_posts": "posts taken and not yet answered; more are answered 429",
    "batch_posts": "posts that the model is asked about at once",
    "gather_seconds": "that a post waits at most for company",
    "request_seconds": "until an answer",
    "image_seconds": "for cleaning one image",
    "clean_processes": "processes that clean posts",
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xhs-judge", description="The model in use.")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, port, said in (
        ("serve", 8000, "judge posts over HTTP"),
        ("demo", 7860, "the same, with a page to try it"),
    ):
        own = commands.add_parser(
            command, help=said, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        own.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
        own.add_argument("--port", type=int, default=port, help="default: %(default)s; 0 takes a free one")
        for limit in fields(Limits):
            option = f"--{limit.name.replace('_', '-')}"
            own.add_argument(option, type=limit.type, default=limit.default, help=f"{HELP[limit.name]} (default: %(default)s)")  # type: ignore[arg-type]  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        return run(options)
    except ModuleNotFoundError as missing:
        if missing.name not in ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "gradio"):
            raise
        extra = "demo" if options.command == "demo" else "serve"
        problem: Exception = RuntimeError(f"{missing.name} is not installed; pip install 'xhs-pipeline[{extra}]'")
    except (ValueError, OSError, RuntimeError) as error:
        problem = error
    print(f"error: {problem}", file=sys.stderr)
    return 2


def run(options: argparse.Namespace) -> int:
    """Open the store and serve until a signal. Raises ValueError, OSError or StoreError when it cannot start."""
    import uvicorn

    from xhs_pipeline.appeals.store import AppealStore, store_url
    from xhs_pipeline.artifacts import data_folder
    from xhs_pipeline.policy import load_policy
    from xhs_pipeline.privacy import load_hmac_key
    from xhs_pipeline.serve.auth import CLIENT, Tokens
    from xhs_pipeline.serve.protocol import within

    if options.command == "demo":
        from xhs_pipeline.serve.demo.mounted import create_demo as create
    else:
        from xhs_pipeline.serve.app import create_app as create
    limits = Limits(**{limit.name: getattr(options, limit.name) for limit in fields(Limits)})
    tokens = Tokens.from_environment()
    if not _loopback(options.host) and not tokens.on(CLIENT):
        raise ValueError(f"--host {options.host}: others could judge and appeal; set XHS_CLIENT_TOKENS, or leave it at 127.0.0.1")  # fmt: skip
    data = data_folder()
    with AppealStore.open(store_url(data), load_policy(), load_hmac_key(data)) as store:
        uvicorn.run(
            create(data, store, tokens, limits),
            host=options.host,
            port=options.port,
            http=within(limits.body_seconds),
            ws="none",  # no route speaks it, and the guard counts none
            access_log=False,
            log_config=LOGGING,
            timeout_graceful_shutdown=int(limits.request_seconds) + 5,
        )
    return 0


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Discreet(logging.Formatter):
    """An error's kind and the lines of code it came through; its message may quote a post."""

    def formatException(self, info: Any) -> str:
        lines = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(info[2])[-8:]]
        return f"{info[0].__name__} at {' > '.join(lines)}"


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"()": Discreet, "format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"level": "INFO", "handlers": ["stderr"]},
}


if __name__ == "__main__":
    sys.exit(main())
