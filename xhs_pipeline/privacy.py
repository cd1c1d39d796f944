"""Keyed hashes of people, so that one author stays traceable for erasure without being named. Text is masked in curation."""

import hashlib
import hmac
import os
import secrets
import unicodedata
from pathlib import Path

UNSEEN = ("Cf", "Cc")  # Unicode's categories of format and control characters


def load_hmac_key(data_dir: Path) -> bytes:
    """The key for `keyed_hash`: XHS_HMAC_KEY, else `data_dir/.hmac_key`, made on first use with mode 0600.

    Raises ValueError when the key is shorter than 16 bytes. Two first uses at once agree: the file is linked into place
    complete, and the loser reads the winner's key.
    """
    from_env = os.environ.get("XHS_HMAC_KEY")
    if from_env is not None:
        key = from_env.encode()
        where = "XHS_HMAC_KEY"
    else:
        path = data_dir / ".hmac_key"
        where = str(path)
        if not path.exists():
            data_dir.mkdir(parents=True, exist_ok=True)
            mine = data_dir / f".hmac_key.{os.getpid()}.{secrets.token_hex(4)}"
            descriptor = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            try:
                os.link(mine, path)
            except FileExistsError:
                pass
            finally:
                mine.unlink()
        key = path.read_text().strip().encode()
    if len(key) < 16:
        raise ValueError(f"{where}: a key of {len(key)} bytes, expected at least 16; set a longer random one")
    return key


def keyed_hash(key: bytes, value: str) -> str:
    """HMAC-SHA256 of the NFKC form of `value`, the first 32 hex digits (128 bits)."""
    text = unicodedata.normalize("NFKC", value).strip()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]


def person_hash(key: bytes, name: str) -> str:
    """`keyed_hash` of a person's name as `plain_name` has it. Raises ValueError where nothing of the name is left."""
    if not (plain := plain_name(name)):
        raise ValueError("the name is empty")
    return keyed_hash(key, plain)


def plain_name(name: str) -> str:
    """A person's name however it is typed: width, case, blanks and what nobody sees make nobody another person."""
    seen = "".join(
        c for c in unicodedata.normalize("NFKC", name) if c.isspace() or unicodedata.category(c) not in UNSEEN
    )
    return unicodedata.normalize("NFKC", " ".join(seen.casefold().split()))


def key_fingerprint(key: bytes) -> str:
    """Names the key without giving it away: what was hashed with another one cannot be compared."""
    return keyed_hash(key, "fingerprint")
