"""A server on this machine in the Hub's place; what it answers is in `hub_repos` and `hub_stub`.

A free port is chosen by the system.
"""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

Self = TypeVar("Self", bound="LocalHub")


class Handler(BaseHTTPRequestHandler):
    """Answers for the hub it belongs to, in silence."""

    hub: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass


class LocalHub:
    """Serves between `with` and its end."""

    def __init__(self, handler: type[Handler], token: str) -> None:
        self._token = token
        answers = type("Answers", (handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self: Self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def env(self, home: Path, *, token: bool = True, **more: str) -> dict[str, str]:
        """The environment of a child that takes this for the Hub."""
        left = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        left |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
            **more,
        }
        return {**left, "HF_TOKEN": self._token} if token else left
