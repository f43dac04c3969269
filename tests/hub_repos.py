"""A Hub on this machine that keeps repositories: the routes that a push uses, and what it was sent.

    with Repos() as hub:
        subprocess.run(..., env=hub.env(home))

Small files go in the commit, others the way of Git LFS, with their checksums compared.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from local_hub import Handler, LocalHub

TOKEN = "hf_" + "unsaid" * 6
LARGE = (".gguf", ".safetensors", ".bin")


class Repos(LocalHub):
    """files: repository → name → content. private: repository → whether it is. fail: beginning of a
    path → status. asked: (method, path)."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.fail: dict[str, int] = {}
        self.asked: list[tuple[str, str]] = []
        super().__init__(_Handler, TOKEN)

    def env(self, home: Path, *, token: bool = True, **more: str) -> dict[str, str]:
        """Without Xet, which this does not speak."""
        return super().env(home, token=token, HF_HUB_DISABLE_XET="1", **more)


class _Handler(Handler):
    hub: Repos

    def do_GET(self) -> None:
        raw = self._body()
        path = self.path.split("?")[0]
        self.hub.asked.append((self.command, path))
        for beginning, status in self.hub.fail.items():
            if path.startswith(beginning):
                self._send(status, {"error": "the stub was told to fail"})
                return
        if path.startswith("/api/") and TOKEN not in self.headers.get("authorization", ""):
            self._send(401, {"error": "Invalid username or password."})
            return
        self._route(path, raw)

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

    def _route(self, path: str, raw: bytes) -> None:
        hub = self.hub
        if path == "/api/whoami-v2":
            self._send(200, {"type": "user", "name": "me"})
        elif path == "/api/validate-yaml":
            self._send(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(raw))
        elif path.startswith("/lfs/"):
            oid = path.rpartition("/")[2]
            good = hashlib.sha256(raw).hexdigest() == oid
            hub.objects[oid] = raw
            self._send(200 if good else 400, {})
        elif found := re.fullmatch(r"/(.*)\.git/info/lfs/objects/batch", path):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
                for one in json.loads(raw)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/(.+)/resolve/main/(.+)", path):
            self._file(hub.files.get(found[1], {}).get(found[2]))
        elif found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(\w+)/main)?", path):
            repo = ("datasets/" if found[1] == "dataset" else "") + found[2]
            self._repo(repo, found[3], raw)
        else:
            self._send(404, {"error": f"no route {path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or "me"
        if owner != "me":
            said = f"You don't have the rights to create a model under the namespace {owner}"
            self._send(403, {"error": said})
            return
        repo = f"{'datasets/' if asked.get('type') == 'dataset' else ''}{owner}/{asked['name']}"
        self.hub.files[repo] = {".gitattributes": b""}
        self.hub.private[repo] = asked.get("visibility") == "private"
        self._send(200, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def _repo(self, repo: str, verb: str | None, raw: bytes) -> None:
        files = self.hub.files.get(repo)
        if files is None:
            self._send(404, {"error": "Repository not found"}, code="RepoNotFound")
        elif verb is None:
            name = repo.removeprefix("datasets/")
            siblings = [{"rfilename": one} for one in files]
            values = {"id": name, "modelId": name, "sha": "0" * 40, "siblings": siblings}
            self._send(200, {**values, "private": self.hub.private[repo], "tags": []})
        elif verb == "preupload":
            wanted = json.loads(raw)["files"]
            modes = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for one in wanted
            ]
            self._send(200, {"files": modes})
        else:
            self._commit(repo, raw)

    def _commit(self, repo: str, raw: bytes) -> None:
        for line in raw.splitlines():
            one = json.loads(line)
            value = one["value"]
            if one["key"] == "file":
                self.hub.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                self.hub.files[repo][value["path"]] = self.hub.objects[value["oid"]]
        oid = "1" * 40
        url = f"{self.hub.url}/{repo}/commit/{oid}"
        self._send(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _file(self, content: bytes | None) -> None:
        if content is None:
            self._send(404, {"error": "Entry not found"}, code="EntryNotFound")
            return
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.send_header("etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("x-repo-commit", "0" * 40)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send(self, status: int, answer: Any, *, code: str | None = None) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if code is not None:
            self.send_header("x-error-code", code)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
