"""A stand-in for the Hugging Face Hub on this machine: as much of its interface as its client uses for datasets."""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Hub:
    """Its state. Of one dataset each commit is a dictionary of files.

    Attributes:
        commits: by dataset, in order: commit, files.
        private: by dataset.
        blobs: files that were uploaded apart from commits, by SHA-256.
        uploads: sizes of those, in order.
        asked: method, path and whether the token came along.
        token: that is asked for.
    """

    token: str = "hf_secret"
    commits: dict[str, list[tuple[str, dict[str, bytes]]]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: list[int] = field(default_factory=list)
    asked: list[tuple[str, str, bool]] = field(default_factory=list)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes] | None:
        known = self.commits.get(repo, [])
        if revision == "main":
            return known[-1][1] if known else None
        return dict(known).get(revision)


@contextmanager
def hub() -> Iterator[tuple[str, Hub]]:
    """Run it; gives its address and its state."""
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nothing to the terminal."""

        def answer(self, code: int, body: object = None, **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body if body is not None else {}).encode()
            self.send_response(code)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def seen(self) -> bytes:
            here = self.headers.get("Authorization") == f"Bearer {state.token}"
            state.asked.append((self.command, self.path, here))
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_GET(self) -> None:
            self.seen()
            path = self.path.partition("?")[0]
            if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                files = state.files(match[1], match[2] or "main")
                if files is None or (state.private[match[1]] and not state.asked[-1][2]):
                    kind = "RevisionNotFound" if match[1] in state.commits and match[2] else "RepoNotFound"
                    self.answer(404, {"error": "not found"}, X_Error_Code=kind)
                    return
                sha = match[2] if match[2] not in {None, "main"} else state.commits[match[1]][-1][0]
                about = {
                    "id": match[1],
                    "sha": sha,
                    "lastModified": "2026-01-02T03:04:05.000Z",
                    "private": state.private[match[1]],
                }
                self.answer(200, {**about, "siblings": [{"rfilename": name} for name in files]})
            elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                data = (state.files(match[1], match[2]) or {}).get(match[3])
                if data is None or (state.private[match[1]] and not state.asked[-1][2]):
                    self.answer(404)
                elif match[3].endswith(".tar"):  # as the Hub does it with large files
                    self.answer(302, b"", Location=f"/cdn/{hashlib.sha256(data).hexdigest()}")
                else:
                    self.answer(200, data)
            elif path.startswith("/cdn/"):
                self.answer(200, state.blobs[path[5:]])
            else:
                self.answer(404)

        def do_PUT(self) -> None:
            data = self.seen()
            digest = hashlib.sha256(data).hexdigest()
            assert self.path == f"/lfs/{digest}"
            state.blobs[digest] = data
            state.uploads.append(len(data))
            self.answer(200)

        def do_POST(self) -> None:
            data = self.seen()
            path = self.path.partition("?")[0]
            address = f"http://{self.headers['Host']}"
            if not state.asked[-1][2]:
                self.answer(401, {"error": "log in"})
            elif path == "/api/repos/create":
                asked = json.loads(data)
                repo = f"{asked['organization']}/{asked['name']}"
                if repo in state.private:
                    self.answer(409, {"error": "exists"})
                    return
                state.private[repo] = asked.get("private", asked.get("visibility") == "private")
                self.answer(200, {"url": f"{address}/datasets/{repo}"})
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif "/preupload/" in path:
                files = json.loads(data)["files"]
                modes = {entry["path"]: "lfs" if entry["path"].endswith(".tar") else "regular" for entry in files}
                told = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
                self.answer(200, {"files": told})
            elif path.endswith(".git/info/lfs/objects/batch"):
                objects = json.loads(data)["objects"]
                told = [
                    entry
                    if entry["oid"] in state.blobs
                    else {**entry, "actions": {"upload": {"href": f"{address}/lfs/{entry['oid']}"}}}
                    for entry in objects
                ]
                self.answer(200, {"transfer": "basic", "objects": told})
            elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/commit/main", path):
                self.commit(match[1], [json.loads(line) for line in data.splitlines()], address)
            else:
                self.answer(404)

        def commit(self, repo: str, lines: list[dict[str, dict[str, str]]], address: str) -> None:
            known = state.commits.setdefault(repo, [])
            if known and lines[0]["value"].get("parentCommit") not in {None, known[-1][0]}:
                self.answer(412, {"error": "A commit has happened since."})
                return
            files = dict(known[-1][1]) if known else {}
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = state.blobs[value["oid"]]
                else:
                    del files[value["path"]]
            sha = hashlib.sha1(f"{repo} {len(known)}".encode()).hexdigest()
            known.append((sha, files))
            self.answer(200, {"commitUrl": f"{address}/datasets/{repo}/commit/{sha}", "commitOid": sha})

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
