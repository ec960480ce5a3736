"""A model hub in a thread, all in memory: the calls that huggingface-hub makes to create, upload, list, download."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_stand_in"  # who has it may write, and read what is private


class Hub:
    """Repositories by name: {"private": bool, "commits": [(oid, files)]}. Large files by their SHA-256."""

    def __init__(self):
        self.repositories: dict[str, dict] = {}
        self.large: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        commits = self.repositories[name]["commits"]
        return commits[-1][1] if revision == "main" else dict(commits)[revision]

    def commit(self, name: str, changes: dict[str, bytes]) -> str:
        commits = self.repositories[name]["commits"]
        oid = hashlib.sha1(f"{name} {len(commits)}".encode()).hexdigest()
        commits.append((oid, {**(commits[-1][1] if commits else {}), **changes}))
        return oid


class Handler(BaseHTTPRequestHandler):
    """One request; a route is a method and a pattern of the path."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def handle_any(self):
        path = unquote(urlsplit(self.path).path).rstrip("/")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.calls.append(f"{self.command} {path}")
        for methods, pattern, route in ROUTES:
            if self.command in methods and (match := re.fullmatch(pattern, path)):
                given = match.groupdict()
                if "repo" in given and self._refused(given["repo"], given.get("revision", "main")):
                    return None
                return route(self, **given)
        return self.send(404, {"error": f"no such route: {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def _refused(self, name: str, revision: str) -> bool:
        """As the hub does: without the right to see a repository, it is not there."""
        known = self.hub.repositories.get(name)
        may = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if known is None or (not may and (known["private"] or self.command == "POST")):
            self.send(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return True
        if revision not in ("main", *dict(known["commits"])):
            self.send(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
            return True
        return False

    def send(self, status: int, content: object, headers: dict | None = None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args):
        pass

    # -- routes --

    def create(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(401, {"error": "Invalid username or password."})
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.hub.address}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            return self.send(409, {"error": "You already created this model repo", **url})
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repositories[name] = {"private": private, "commits": []}
        self.hub.commit(name, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return self.send(200, url)

    def validate_card(self):
        self.send(200, {"errors": [], "warnings": []})

    def preupload(self, repo, revision):
        def mode(path):
            return "lfs" if path.endswith(".safetensors") else "regular"

        files = [file["path"] for file in json.loads(self.body)["files"]]
        told = [{"path": path, "uploadMode": mode(path), "shouldIgnore": False, "oid": None} for path in files]
        self.send(200, {"files": told})

    def lfs_batch(self, repo):
        objects = json.loads(self.body)["objects"]
        for entry in objects:
            entry["actions"] = {"upload": {"href": f"{self.hub.address}/store/{entry['oid']}"}}
        self.send(200, {"transfer": "basic", "objects": objects})

    def store(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.large[oid] = self.body
        self.send(200, {})

    def receive_commit(self, repo, revision):
        changes = {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                changes[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "lfsFile":
                changes[entry["value"]["path"]] = self.hub.large[entry["value"]["oid"]]
        oid = self.hub.commit(repo, changes)
        self.send(200, {"commitUrl": f"{self.hub.address}/{repo}/commit/{oid}", "commitOid": oid, "success": True})

    def info(self, repo, revision="main"):
        known = self.hub.repositories[repo]
        oid = known["commits"][-1][0] if revision == "main" else revision
        with_sizes = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = [
            {"rfilename": path, **({"size": len(data), "blobId": blob(data)} if with_sizes else {})}
            for path, data in self.hub.files(repo, oid).items()
        ]
        self.send(200, {"id": repo, "sha": oid, "private": known["private"], "siblings": siblings})

    def tree(self, repo, revision):
        files = self.hub.files(repo, revision)
        self.send(200, [{"type": "file", "path": p, "size": len(d), "oid": blob(d)} for p, d in files.items()])

    def resolve(self, repo, revision, path):
        oid = self.hub.repositories[repo]["commits"][-1][0] if revision == "main" else revision
        files = self.hub.files(repo, oid)
        if path not in files:
            return self.send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        return self.send(200, files[path], {"X-Repo-Commit": oid, "ETag": f'"{blob(files[path])}"'})


def blob(data: bytes) -> str:
    """A file's identity, as git computes it."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


REPO = r"(?P<repo>[\w.\-]+/[\w.\-]+)"
ROUTES = [
    (("POST",), r"/api/repos/create", Handler.create),
    (("POST",), r"/api/validate-yaml", Handler.validate_card),
    (("POST",), rf"/api/models/{REPO}/preupload/(?P<revision>.+)", Handler.preupload),
    (("POST",), rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (("PUT",), r"/store/(?P<oid>\w+)", Handler.store),
    (("POST",), rf"/api/models/{REPO}/commit/(?P<revision>.+)", Handler.receive_commit),
    (("GET",), rf"/api/models/{REPO}", Handler.info),
    (("GET",), rf"/api/models/{REPO}/revision/(?P<revision>.+)", Handler.info),
    (("GET",), rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)", Handler.tree),
    (("GET", "HEAD"), rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
]
