"""Who is told when a model was released, held or rolled back: a signed POST for every line of the release history.

The history (see champion) is the list of what there is to tell, in order and never changed; how far it was told is a line number
that the caller keeps. No run is needed for it, and none waits for it.

XHS_RELEASE_WEBHOOK         http(s) address; without it nobody is told
XHS_RELEASE_WEBHOOK_SECRET  key of the signature, at least 16 bytes

The body is JSON: delivery, action, version, reason, at. `X-XHS-Signature: sha256=<hex>` is the HMAC-SHA256 of the body's bytes, as
GitHub signs its webhooks. A delivery whose answer was lost is sent again with the same `delivery`, by which a receiver knows it.
"""

import hashlib
import hmac
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

URL, SECRET = "XHS_RELEASE_WEBHOOK", "XHS_RELEASE_WEBHOOK_SECRET"
MIN_SECRET = 16  # bytes
TIMEOUT = 10.0  # seconds; a tick waits for it


@dataclass(frozen=True)
class Webhook:
    """Where to, and the key of the signature."""

    url: str
    secret: bytes


@dataclass(frozen=True)
class Told:
    """The number of history lines that are told now, and why the next one could not be (None: there is no next one)."""

    lines: int
    problem: str | None = None


def webhook(environment: Mapping[str, str]) -> Webhook | None:
    """The webhook that the environment names, None without one. Raises ValueError for an address or a secret that will not do."""
    url, secret = environment.get(URL, "").strip(), environment.get(SECRET, "").encode()
    if not url:
        return None
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"{URL} is not an http or https address")
    if len(secret) < MIN_SECRET:
        raise ValueError(f"{SECRET} has {len(secret)} bytes, expected at least {MIN_SECRET}; set a longer random one")
    return Webhook(url, secret)


def tell(hook: Webhook, history: Sequence[Mapping[str, Any]], told: int, timeout: float = TIMEOUT) -> Told:
    """Send the lines of the history after the first `told`, in order, up to the first that is not taken (an answer of 2xx)."""
    for number in range(told, len(history)):
        problem = _send(hook, body(number, history[number]), timeout)
        if problem:
            return Told(number, problem)
    return Told(len(history))


def body(number: int, row: Mapping[str, Any]) -> bytes:
    """The message about a line of the history. Nobody's name is in it."""
    about = row.get("candidate") or row.get("champion") or {}
    version = row.get("version") or about.get("version") or row.get("from_version")
    said = {"action": row["action"], "version": version, "reason": row.get("reason"), "at": row["at"]}
    line = json.dumps([number, row], sort_keys=True, ensure_ascii=False).encode()
    message = {"delivery": hashlib.sha256(line).hexdigest()[:32], **said}
    return json.dumps(message, ensure_ascii=False).encode()


def signature(secret: bytes, message: bytes) -> str:
    """The value of X-XHS-Signature; a receiver compares it with hmac.compare_digest."""
    return "sha256=" + hmac.new(secret, message, hashlib.sha256).hexdigest()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body, and look taken."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def _send(hook: Webhook, message: bytes, timeout: float) -> str | None:
    headers = {"Content-Type": "application/json", "X-XHS-Signature": signature(hook.secret, message)}
    request = urllib.request.Request(hook.url, data=message, headers=headers, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout):
            return None
    except urllib.error.HTTPError as answer:
        return f"the receiver answered {answer.code}"
    except (OSError, HTTPException) as error:  # the address may hold a token and is not shown
        return f"the receiver was not reached ({type(getattr(error, 'reason', error)).__name__})"
