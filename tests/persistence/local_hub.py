"""Simulated Hugging Face hub on loopback for uploads and downloads of models."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Server with repositories in memory: {repo_id: [{path: bytes} per commit]} in `repos`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos, self.tokens = {}, set()
        self.address = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


def _commit(number):
    return hashlib.sha1(str(number).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, status=200, **headers):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers = {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        self.server.tokens.add(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repos.setdefault(repo, [])
            self.answer({"url": f"{self.server.address}/{repo}", "id": repo})
        elif parts[1] == "validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif parts[4] == "preupload":
            files = [f["path"] for f in json.loads(body)["files"]]
            self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False}
                                   for p in files]})  # fmt: skip
        elif parts[4] == "commit":
            repo = "/".join(parts[2:4])
            commits = self.server.repos[repo]
            files = dict(commits[-1]) if commits else {}
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    files[entry["value"]["path"]] = content
            commits.append(files)
            oid = _commit(len(commits))
            url = f"{self.server.address}/{repo}/commit/{oid}"
            self.answer({"commitUrl": url, "commitOid": oid})

    def do_GET(self):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        is_api = parts[0] == "api"
        repo = "/".join(parts[2:4] if is_api else parts[:2])
        commits = self.server.repos.get(repo)
        if not commits:
            self.answer({"error": "none"}, 401, X_Error_Code="RepoNotFound")
            return
        rest = parts[4:] if is_api else parts[2:]
        revision = rest[1] if len(rest) > 1 else "main"
        numbers = {_commit(n): n for n in range(1, len(commits) + 1)} | {"main": len(commits)}
        if revision not in numbers:
            self.answer({"error": "none"}, 404, X_Error_Code="RevisionNotFound")
            return
        files, sha = commits[numbers[revision] - 1], _commit(numbers[revision])
        if rest[0] == "resolve":
            content = files[rest[2]]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self.answer(content, ETag=etag, X_Repo_Commit=sha)
        elif rest[0] == "tree":
            oids = {path: hashlib.sha1(content).hexdigest() for path, content in files.items()}
            self.answer([{"type": "file", "path": path, "size": len(files[path]), "oid": oid}
                         for path, oid in oids.items()])  # fmt: skip
        else:
            siblings = [{"rfilename": path} for path in files]
            self.answer({"id": repo, "sha": sha, "siblings": siblings})

    do_HEAD = do_GET
