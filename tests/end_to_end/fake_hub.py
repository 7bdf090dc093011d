"""A Hugging Face hub on this machine: the endpoints that huggingface_hub and datasets ask, over folders of files."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(?:/(?P<what>revision|tree|paths-info)/(?P<rev>[^/]+)(?P<rest>/.*)?)?$"
)
FILE = re.compile(r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<file>.+)$")


@dataclass
class Repo:
    """One repository: its files at one commit."""

    files: dict[str, bytes]
    commit: str = "c0ffee00" * 5
    gated: bool = False


@dataclass
class FakeHub:
    """What is there, what was asked, and what is to go wrong."""

    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    """By ("models" | "datasets", owner/name)."""
    allowed: set[str] = field(default_factory=set)
    """Tokens that gated repositories open to."""
    cut: set[str] = field(default_factory=set)
    """Files of which each GET gives half, and then the connection is closed."""
    sent: dict[str, int] = field(default_factory=dict)
    """Bytes sent of each file."""
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve() -> Iterator[FakeHub]:
    """A hub with nothing in it."""
    hub = FakeHub()

    class Handler(_Handler):
        fake = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    def _answer(self, body: bytes = b"") -> None:
        url = urlparse(self.path)
        path = unquote(url.path)
        self.fake.asked.append(f"{self.command} {path}")
        if (found := API.match(path)) is not None:
            self._api(found, body, parse_qs(url.query))
        elif (found := FILE.match(path)) is not None:
            self._file(found)
        else:
            self._refuse(404, "EntryNotFound")

    def _repo(self, kind: str, name: str) -> Repo | None:
        repo = self.fake.repos.get((kind, name))
        if repo is None:
            self._refuse(401, "RepoNotFound")
        return repo

    def _may(self, repo: Repo) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo.gated and token not in self.fake.allowed:
            self._refuse(403 if token else 401, "GatedRepo")
            return False
        return True

    # ------------------------------------------------------------------------------------------ api

    def _api(self, found: re.Match[str], body: bytes, query: dict[str, list[str]]) -> None:
        repo = self._repo(found["kind"], found["name"])
        if repo is None:
            return
        if found["rev"] not in (None, "main", repo.commit):
            self._refuse(404, "RevisionNotFound")
        elif found["what"] == "tree":
            self._json(
                self._tree(
                    repo, (found["rest"] or "/").strip("/"), "true" in query.get("recursive", ["false"])[0].lower()
                )
            )
        elif found["what"] == "paths-info":
            asked = parse_qs(body.decode()).get("paths") or json.loads(body or b"{}").get("paths", [])
            self._json([entry for entry in self._tree(repo, "", True) if entry["path"] in asked])
        else:
            siblings = [{"rfilename": name, "size": len(data), "blobId": "x"} for name, data in repo.files.items()]
            facts = {"id": found["name"], "sha": repo.commit, "siblings": siblings, "private": False, "tags": []}
            self._json(
                facts | {"gated": "manual" if repo.gated else False, "disabled": False, "downloads": 0, "likes": 0}
            )

    def _tree(self, repo: Repo, below: str, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{below}/" if below else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, data in repo.files.items():
            if not name.startswith(prefix):
                continue
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                folder = prefix + "/".join(parts[:depth])
                if recursive or depth == 1:
                    entries[folder] = {"type": "directory", "path": folder, "oid": "d", "size": 0}
            if recursive or len(parts) == 1:
                entries[name] = {"type": "file", "path": name, "oid": _etag(data), "size": len(data)}
        return list(entries.values())

    # ------------------------------------------------------------------------------------------ files

    def _file(self, found: re.Match[str]) -> None:
        repo = self._repo(found["kind"] or "models", found["name"])
        if repo is None or not self._may(repo):
            return
        if found["rev"] not in ("main", repo.commit):
            self._refuse(404, "RevisionNotFound")
            return
        data = repo.files.get(found["file"])
        if data is None:
            self._refuse(404, "EntryNotFound", {"X-Repo-Commit": repo.commit})
            return
        first = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, "0"])[1])
        self.send_response(206 if first else 200)
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": repo.commit, "Content-Length": str(len(data) - first)}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._headers(headers | {"Accept-Ranges": "bytes"})
        if self.command == "HEAD":
            return
        rest = data[first:]
        if found["file"] in self.fake.cut:
            rest, self.close_connection = rest[: len(rest) // 2], True
        self.fake.sent[found["file"]] = self.fake.sent.get(found["file"], 0) + len(rest)
        self.wfile.write(rest)

    # ------------------------------------------------------------------------------------------ answers

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self._headers({"Content-Type": "application/json", "Content-Length": str(len(data))})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self, status: int, code: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self._headers(
            {"X-Error-Code": code, "X-Error-Message": f"{code} it says", "Content-Length": "0"} | (more or {})
        )

    def _headers(self, headers: dict[str, str]) -> None:
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
