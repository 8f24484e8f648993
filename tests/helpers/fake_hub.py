"""A model hub on loopback: as much of its HTTP as the real client needs to make, fill and download repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
TOKEN = "hf_good"


class FakeHub:
    """Repositories by name; each a chain of commits by branch. Nothing is ever deleted.

    Attributes:
        requests: "METHOD path" of every request so far.
        broken: names of files that are listed but not served.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}  # repository -> commit -> files
        self.branches: dict[str, dict[str, str]] = {}  # repository -> branch -> commit
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.large: Files = {}  # by SHA-256
        self.requests: list[str] = []
        self.broken: set[str] = set()
        self.url = ""

    def create(self, repo: str, private: bool = False) -> None:
        self.commits[repo], self.branches[repo], self.private[repo] = {}, {}, private
        self.commit(repo, "main", {".gitattributes": b"*.npy filter=lfs\n"})

    def commit(self, repo: str, branch: str, files: Files) -> str:
        commit = hashlib.sha1(f"{repo} {len(self.commits[repo])}".encode()).hexdigest()
        self.commits[repo][commit] = files
        self.branches[repo][branch] = commit
        return commit

    def files(self, repo: str, revision: str = "main") -> Files:
        return self.commits[repo][self.branches[repo].get(revision, revision)]

    @contextmanager
    def serve(self) -> Iterator[FakeHub]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_PUT = do_GET

    def route(self) -> None:
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, path):
                answer(self, *map(unquote, match.groups()))
                return
        self.send(404, {"error": f"no route {path}"})

    # ---- answers

    def send(self, status: int, body: Any = None, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def repo_at(self, repo: str, revision: str) -> tuple[str, Files] | None:
        """(commit, files), or None after an error was sent."""
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo not in self.hub.commits or (self.hub.private[repo] and not allowed):
            self.send(404 if allowed else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        commit = self.hub.branches[repo].get(revision, revision)
        if commit not in self.hub.commits[repo]:
            self.send(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
            return None
        return commit, self.hub.commits[repo][commit]

    def create_repo(self) -> None:
        about = json.loads(self.body)
        repo = f"{about.get('organization') or 'me'}/{about['name']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.send(401, {"error": "Invalid username or password."})
            return
        known = repo in self.hub.commits
        if not known:
            self.hub.create(repo, private=about.get("visibility") == "private" or bool(about.get("private")))
        self.send(409 if known else 200, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def create_branch(self, repo: str, branch: str) -> None:
        branches = self.hub.branches[repo]
        known = branch in branches
        branches.setdefault(branch, branches["main"])
        self.send(409 if known else 200, {"error": "Reference already exists"} if known else {})

    def info(self, repo: str, revision: str = "main") -> None:
        if found := self.repo_at(repo, revision):
            names = [{"rfilename": name} for name in found[1]]
            self.send(200, {"_id": "0", "id": repo, "sha": found[0], "private": self.hub.private[repo],
                            "siblings": names, "tags": [], "downloads": 0, "likes": 0})  # fmt: skip

    def tree(self, repo: str, revision: str) -> None:
        if found := self.repo_at(repo, revision):
            listed = []
            for name, data in found[1].items():
                one: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _git_oid(data)}
                if hashlib.sha256(data).hexdigest() in self.hub.large:
                    sha256 = hashlib.sha256(data).hexdigest()
                    one["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
                listed.append(one)
            self.send(200, listed)

    def preupload(self, repo: str, revision: str) -> None:
        if found := self.repo_at(repo, revision):
            answers = []
            for file in json.loads(self.body)["files"]:
                large = file["path"].endswith(".npy")
                answers.append({"path": file["path"], "uploadMode": "lfs" if large else "regular",
                                "shouldIgnore": False, "oid": None})  # fmt: skip
            self.send(200, {"files": answers, "commitOid": found[0]})

    def batch(self, repo: str) -> None:
        wanted = []
        for one in json.loads(self.body)["objects"]:
            known = one["oid"] in self.hub.large
            action = {"actions": {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}}}
            wanted.append({"oid": one["oid"], "size": one["size"], **({} if known else action)})
        self.send(200, {"transfer": "basic", "objects": wanted})

    def large(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.large[oid] = self.body
        self.send(200, {})

    def commit(self, repo: str, revision: str) -> None:
        if not (found := self.repo_at(repo, revision)):
            return
        commit, files = found[0], dict(found[1])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                if value.get("parentCommit", commit) != commit:
                    self.send(412, {"error": "A commit has happened since. Please refresh and try again."})
                    return
                self.hub.messages.append(value["summary"])
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                del files[value["path"]]
        oid = self.hub.commit(repo, revision, files)
        self.send(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    def validate(self) -> None:
        content = json.loads(self.body)["content"]
        fine = content.startswith("---\n") and "\n---\n" in content
        self.send(200 if fine else 400, {"errors": [] if fine else [{"message": "no front matter"}], "warnings": []})

    def resolve(self, repo: str, revision: str, name: str) -> None:
        if not (found := self.repo_at(repo, revision)):
            return
        if name not in found[1] or name in self.hub.broken:
            self.send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        data = found[1][name]
        sha256 = hashlib.sha256(data).hexdigest()
        etag = sha256 if sha256 in self.hub.large else _git_oid(data)
        self.send(200, data, ETag=f'"{etag}"', X_Repo_Commit=found[0])


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


_REPO = "([^/]+/[^/]+)"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    ("/api/repos/create", _Handler.create_repo),
    ("/api/validate-yaml", _Handler.validate),
    (f"/api/models/{_REPO}", _Handler.info),
    (f"/api/models/{_REPO}/revision/([^/]+)", _Handler.info),
    (f"/api/models/{_REPO}/branch/([^/]+)", _Handler.create_branch),
    (f"/api/models/{_REPO}/tree/([^/]+)/?", _Handler.tree),
    (f"/api/models/{_REPO}/preupload/([^/]+)", _Handler.preupload),
    (f"/api/models/{_REPO}/commit/([^/]+)", _Handler.commit),
    (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
    ("/large/([0-9a-f]+)", _Handler.large),
    (f"/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
