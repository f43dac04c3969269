"""A Hub on this machine: the routes that jobs and their files need, and what was asked of it.

    with HubStub() as hub:
        subprocess.run(..., env=hub.env(home))

Speaks the real routes, the storage of buckets included. `fail` makes a route answer with a status;
what a job does next is in `jobs`.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from local_hub import Handler, LocalHub

TOKEN = "hf_" + "secretpart" * 3

HARDWARE = [
    {
        "name": "cpu-basic",
        "prettyName": "CPU Basic",
        "cpu": "2 vCPU",
        "ram": "16 GB",
        "ephemeralStorage": "20 GB",
        "accelerator": None,
        "unitCostMicroUSD": 167,
        "unitCostUSD": 0.000167,
        "unitLabel": "minute",
    },
    {
        "name": "a10g-large",
        "prettyName": "Nvidia A10G - large",
        "cpu": "12 vCPU",
        "ram": "46 GB",
        "ephemeralStorage": "200 GB",
        "accelerator": {
            "type": "gpu",
            "model": "A10G",
            "quantity": "1",
            "vram": "24 GB",
            "manufacturer": "Nvidia",
        },
        "unitCostMicroUSD": 25000,
        "unitCostUSD": 0.025,
        "unitLabel": "minute",
    },
    {
        "name": "a100-large",
        "prettyName": "Nvidia A100 - large",
        "cpu": "12 vCPU",
        "ram": "142 GB",
        "ephemeralStorage": "1000 GB",
        "accelerator": {
            "type": "gpu",
            "model": "A100",
            "quantity": "1",
            "vram": "80 GB",
            "manufacturer": "Nvidia",
        },
        "unitCostMicroUSD": 50000,
        "unitCostUSD": 0.05,
        "unitLabel": "minute",
    },
]


class HubStub(LocalHub):
    """asked: (method, path, body as it was parsed). jobs: id → job object. fail: beginning of a
    path → status. fail_times: how often yet, for ever without an entry. broken_log: cut the log's
    stream."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.stages: dict[str, list[str]] = {}
        self.fail: dict[str, int] = {}
        self.fail_times: dict[str, int] = {}
        self.broken_log = False
        self.files: list[str] = []
        self.lock = threading.Lock()
        super().__init__(_Handler, TOKEN)

    def add_job(self, name: str, *stages: str, labels: dict[str, str] | None = None) -> str:
        """A job that goes through these stages, one each time it is looked at."""
        self.jobs[name] = {
            "id": name,
            "createdAt": f"2026-11-0{len(self.jobs) % 9 + 1}T00:00:00.000Z",
            "dockerImage": "x",
            "command": [],
            "flavor": "a100-large",
            "labels": labels if labels is not None else {"name": name, "made-by": "abi-train"},
            "status": {"stage": stages[0], "message": None},
            "owner": {"id": "1", "name": "me", "type": "user"},
        }
        self.stages[name] = list(stages)
        return name

    def bodies(self, method: str, path: str) -> list[Any]:
        """What was sent there."""
        return [body for m, p, body in self.asked if m == method and p == path]


class _Handler(Handler):
    hub: HubStub

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_HEAD = do_GET

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _answer(self) -> None:
        raw = self._body()
        path = self.path.split("?")[0]
        try:
            body: Any = json.loads(raw) if raw else None
        except ValueError:
            body = raw
        with self.hub.lock:
            self.hub.asked.append((self.command, path, body))
            status = self._failing(path)
        if status is not None:
            self._send(status, {"error": "the stub was told to fail"})
            return
        code, answer = self._route(path, raw, body)
        if answer is not None:
            self._send(code, answer)

    def _failing(self, path: str) -> int | None:
        for beginning, status in self.hub.fail.items():
            if path.startswith(beginning):
                left = self.hub.fail_times.get(beginning)
                if left is None:
                    return status
                if left > 0:
                    self.hub.fail_times[beginning] = left - 1
                    return status
        return None

    def _route(self, path: str, raw: bytes, body: Any) -> tuple[int, Any]:
        hub, parts = self.hub, path.strip("/").split("/")
        if path == "/api/whoami-v2":
            if TOKEN not in self.headers.get("authorization", ""):
                return 401, {"error": "Invalid username or password."}
            return 200, {"type": "user", "name": "me"}
        if path == "/api/jobs/hardware":
            return 200, HARDWARE
        if path == "/api/jobs/me":
            if self.command == "GET":
                return 200, list(hub.jobs.values())
            made = hub.add_job("job-1", "SCHEDULING", "RUNNING", "COMPLETED", labels=body["labels"])
            return 200, {**hub.jobs[made], "flavor": body["flavor"]}
        if parts[:3] == ["api", "jobs", "me"]:
            return self._job(parts[3], parts[4:])
        return self._bucket(path, raw)

    def _job(self, name: str, rest: list[str]) -> tuple[int, Any]:
        job = self.hub.jobs.get(name)
        if job is None:
            return 404, {"error": "Job not found"}
        if rest == ["cancel"]:
            job["status"]["stage"] = "CANCELED"
            self.hub.stages[name] = ["CANCELED"]
            return 200, job
        if rest == ["logs"]:
            self._log()
            return 0, None
        stages = self.hub.stages[name]
        job["status"]["stage"] = stages[0]
        if len(stages) > 1:
            stages.pop(0)
        return 200, job

    def _log(self) -> None:
        lines = [
            {"timestamp": f"2026-01-01T00:00:0{i}.000Z", "data": f"line {i}"} for i in range(3)
        ]
        text = "".join(f"data: {json.dumps(line)}\n\n" for line in lines)
        if self.hub.broken_log:
            text += 'data: {"timestamp": "2026-01-01T00'
        data = text.encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(data) + (500 if self.hub.broken_log else 0)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        if self.hub.broken_log:
            self.close_connection = True

    def _bucket(self, path: str, raw: bytes) -> tuple[int, Any]:
        bucket = "/api/buckets/me/jobs-artifacts"
        if path == bucket and self.command == "POST":
            return 200, {"url": f"{self.hub.url}/buckets/me/jobs-artifacts"}
        if path == bucket:
            return 200, {
                "id": "me/jobs-artifacts",
                "private": True,
                "createdAt": "2026-01-01T00:00:00.000Z",
                "size": 0,
                "totalFiles": 0,
            }
        if path.startswith(f"{bucket}/xet-"):
            later = int(time.time()) + 3600
            return 200, {"casUrl": f"{self.hub.url}/cas", "accessToken": "t", "exp": later}
        if path.startswith(f"{bucket}/tree"):
            return 200, []
        if path == f"{bucket}/batch":
            self.hub.files += [json.loads(line)["path"] for line in raw.splitlines()]
            return 200, {"success": True}
        if "/xorb" in path:
            return 200, {"was_inserted": True}
        if "/shards" in path:
            return 200, {"type": "result", "result": 1}
        return 404, {"error": f"no route {path}"}

    def _send(self, code: int, answer: Any) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
