"""How a server is set up."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from musicldm.config.values import check_number, check_whole

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOCAL_CLIENT = "local"  # whoever asks a server without tokens


@dataclass(frozen=True)
class Options:
    """Settings of `musicldm.app.create_app`.

    Raises:
        ValueError: for a value that cannot be, or an address for others without a token.
    """

    out: Path = Path("musicldm-app")  # folder of the results
    models: tuple[str, ...] = ("mini",)  # that may be asked for, the default first
    host: str = "127.0.0.1"
    port: int = 7860
    tokens: tuple[str, ...] = ()  # whoever has one sees what was made with it
    open_to_all: bool = False  # without tokens, although the address can be reached by others
    names: tuple[str, ...] = ()  # further names of this host, as a Host header may have them
    device: str = "auto"
    fast: bool = True
    jobs_a_client: int = 20  # that wait or run at a time
    upload_bytes: int = 200 * 2**20
    upload_s: float = 1800.0  # of audio
    decoding_s: float = 60.0  # that decoding an upload may take
    models_open: int = 2  # at a time, if memory allows

    def __post_init__(self):
        object.__setattr__(self, "out", Path(self.out))
        check_whole("port", self.port, 0, 65535)
        for name in ("jobs_a_client", "upload_bytes", "models_open"):
            check_whole(name, getattr(self, name))
        for name in ("upload_s", "decoding_s"):
            check_number(name, getattr(self, name), 0)
        if not self.models:
            raise ValueError("the server needs at least one model")
        if any(len(token) < 8 for token in self.tokens):
            raise ValueError("a token must have at least 8 characters, as it stands for a password")
        if self.host not in LOOPBACK and not self.tokens and not self.open_to_all:
            raise ValueError(
                f"others can reach {self.host}: give a token with --token, or let everybody in with --no-token"
            )

    @property
    def clients(self) -> dict[str, str]:
        """Names of clients by their tokens; a name does not tell the token."""
        return {token: hashlib.sha256(token.encode()).hexdigest()[:16] for token in self.tokens}
