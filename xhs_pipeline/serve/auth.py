"""Who may do what: tokens by role. A reviewer's token names the reviewer, since two must agree who are not one.

XHS_REVIEWER_TOKENS   name=token,name=token: who may review appeals; without any, the review routes are off
XHS_CLIENT_TOKENS     name=token,...: who may judge and file appeals; without any, everyone who reaches the service
"""

import hashlib
import hmac
import os
import re
from dataclasses import dataclass, field

from fastapi import Request
from fastapi.security import HTTPAuthorizationCredentials

from xhs_pipeline.privacy import plain_name
from xhs_pipeline.serve.messages import Problem

MIN_TOKEN_CHARS = 16
TOKEN = re.compile(f"[!-~]{{{MIN_TOKEN_CHARS},}}")  # what an HTTP header carries as it is
CLIENT, REVIEWER = "client", "reviewer"
VARIABLES = {CLIENT: "XHS_CLIENT_TOKENS", REVIEWER: "XHS_REVIEWER_TOKENS"}


@dataclass(frozen=True)
class Tokens:
    """{SHA-256 of a token: name} for every role."""

    of_role: dict[str, dict[bytes, str]] = field(default_factory=dict)

    @classmethod
    def from_environment(cls) -> "Tokens":
        """Raises ValueError naming the variable, never a token, when one is no list, too short, not to be sent in a header or
        given twice, and when two names are one person's, only typed in another way: two must agree who are not one.
        """
        found: dict[str, dict[bytes, str]] = {}
        seen: set[bytes | tuple[str, str]] = set()
        for role, variable in VARIABLES.items():
            found[role] = {}
            for place, entry in enumerate(filter(None, os.environ.get(variable, "").split(",")), start=1):
                name, equals, token = entry.strip().partition("=")
                plain = plain_name(name)
                if not (plain and equals and TOKEN.fullmatch(token)):
                    raise ValueError(
                        f"{variable}: entry {place} is not name=token with a token of at least {MIN_TOKEN_CHARS} printable "
                        "ASCII characters without spaces; make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
                    )
                if not seen.isdisjoint({_digest(token), (role, plain)}):
                    raise ValueError(
                        f"{variable}: entry {place} repeats a token, or a name but for case, width, spaces or what is invisible; "
                        "each person needs one name and one token"
                    )
                seen |= {_digest(token), (role, plain)}
                found[role][_digest(token)] = name
        return cls(found)

    def on(self, role: str) -> bool:
        return bool(self.of_role.get(role))

    def who(self, token: str) -> tuple[str, str] | None:
        """(role, name) of a token, None for none of them. Compares with all of them, each in constant time."""
        given, found = _digest(token), None
        for role, tokens in self.of_role.items():
            for known, name in tokens.items():
                if hmac.compare_digest(known, given):
                    found = (role, name)
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def permit(request: Request, credentials: HTTPAuthorizationCredentials | None, role: str) -> str | None:
    """The name of whoever asks; None where the role needs no token. Raises Problem 401 or 403."""
    tokens: Tokens = request.app.state.tokens
    if not tokens.on(role):
        if role == CLIENT:
            return None
        raise Problem(403, "review_off", f"no reviewer has a token, so review is off; set {VARIABLES[REVIEWER]} and start again")  # fmt: skip
    found = tokens.who(credentials.credentials) if credentials else None
    if found is None:
        why = "is unknown" if credentials else "is missing"
        raise Problem(401, "unauthorised", f"the token {why}; send Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})  # fmt: skip
    if found[0] != role:
        raise Problem(403, "wrong_role", f"this needs a {role}'s token, not a {found[0]}'s")
    return found[1]
