"""The file with the token for ``POST /publish``. Read by :mod:`kraftek.daemon.config_checks`, which says what is wrong
with it, and when the gateway starts and reloads.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from kraftek.contract.settings import Operator

__all__ = ["read_token", "token_of"]

_FOREIGN = 0o027
"""Rights that others may not have, nor the group but to read: mounted secrets often are their group's."""

_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]{16,512}=*")
"""What may stand behind ``Bearer`` (RFC 6750, section 2.1), if it is long enough to be a secret."""


def read_token(name: str) -> bytes:
    """The token. Raises ``ValueError`` with what was expected; nothing of the token stands in it."""
    try:
        with Path(name).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(1024)
    except (OSError, ValueError) as error:
        raise ValueError(f"a readable file ({getattr(error, 'strerror', error)})") from None
    if mode & _FOREIGN:
        raise ValueError(
            f"a file with the rights 600, or 640, and not {mode & 0o777:o}: others could read or change it"
        )
    token = content.strip()
    if _TOKEN.fullmatch(token) is None:
        raise ValueError("a file with a token of 16 to 512 letters, digits and . _ ~ + / - in one line")
    return token


def token_of(operator: Operator) -> bytes | None:
    """The token, if there is a file of it. Raises ``ValueError`` as :func:`read_token`."""
    return read_token(operator.publish_token_file) if operator.publish_token_file else None
