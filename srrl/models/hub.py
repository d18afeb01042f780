"""Whether the model hub can be reached, asked once and quickly.

Without this a name that is not in the cache costs half a minute of retries before the error.
"""

import functools
import socket
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

from huggingface_hub import constants, snapshot_download

from srrl.errors import UserError


class NotHere(UserError):
    """A model, by its name, that cannot be had."""

    def __init__(self, message: str, model: str):
        super().__init__(message)
        self.model = model


@functools.cache
def hub_reachable(seconds: float = 3.0) -> bool:
    """Does the hub's host answer? True behind a proxy, which only a request can tell."""
    return not constants.HF_HUB_OFFLINE and hub_answers(seconds)


def hub_answers(seconds: float = 3.0) -> bool:
    """The same where the environment keeps the libraries from asking (HF_HUB_OFFLINE)."""
    if "https" in getproxies():
        return True
    address = urlparse(constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout=seconds).close()
    except OSError:
        return False
    return True


def local_files_only(name: str | None) -> bool:
    """Must `name` come from the cache? True for a hub name (or none) where the hub is away."""
    return not (name and Path(name).exists()) and not hub_reachable()


def hub_folder(name: str, patterns: list[str]) -> Path:
    """A model's folder: its own, or where the hub's files of these patterns are kept, once they are
    there. Raises OSError, ValueError or HfHubHTTPError, at once where the hub is away."""
    if Path(name).is_dir():
        return Path(name)
    offline = local_files_only(name)
    return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline))
