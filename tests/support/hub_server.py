"""A hub of models on loopback for the client huggingface_hub: takes repositories, gives them back, records requests."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

SHA = "0" * 40


@dataclasses.dataclass
class Hub:
    """The hub's address, its repositories' files, and what it was asked.

    Attributes:
      answers: statuses with which the hub refuses, by the end of a path.
    """

    url: str = ""
    files: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    made: list[dict] = dataclasses.field(default_factory=list)
    cards: list[str] = dataclasses.field(default_factory=list)
    tokens: set[str | None] = dataclasses.field(default_factory=set)
    answers: dict[str, int] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Yields a running hub."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.tokens.add(self.headers["Authorization"])
            path = self.path.partition("?")[0]
            for end, status in hub.answers.items():
                if path.endswith(end):
                    self._reply({"error": f"refused, with {self.headers['Authorization']}"}, status)
                    return
            self._reply(*_posted(hub, path, body))

        def do_GET(self) -> None:
            if (found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", unquote(self.path))) is not None:
                self._send(hub.files[found[1]][found[2]], 200)
            elif (found := re.match(r"/api/models/([^/]+/[^/]+)/", self.path)) is None or found[1] not in hub.files:
                self._reply({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            elif "/tree/" in self.path:
                self._reply([
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in hub.files[found[1]].items()
                ])  # fmt: skip
            else:
                names = [{"rfilename": name} for name in hub.files[found[1]]]
                self._reply({"id": found[1], "sha": SHA, "siblings": names})

        do_HEAD = do_GET

        def _reply(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

        def _send(self, data: bytes, status: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            etag = hashlib.sha1(data).hexdigest()
            more = {"Content-Length": str(len(data)), "ETag": f'"{etag}"', "X-Repo-Commit": SHA, **(headers or {})}
            for name, value in more.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _posted(hub: Hub, path: str, body: bytes) -> tuple[object, int]:
    """Returns the reply to a request, and its status."""
    if path == "/api/repos/create":
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in hub.files:
            return {"error": "You already created this model repo"}, 409
        hub.made.append(wanted)
        hub.files[name] = {}
        return {"url": f"{hub.url}/{name}"}, 200
    if path == "/api/validate-yaml":
        hub.cards.append(json.loads(body)["content"])
        return {"warnings": [], "errors": []}, 200
    found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
    assert found is not None, path
    if found[2] == "preupload":
        named = [file["path"] for file in json.loads(body)["files"]]
        return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in named]}, 200
    for line in body.splitlines():
        entry = json.loads(line)
        if entry["key"] == "file":
            assert entry["value"]["encoding"] == "base64"
            hub.files[found[1]][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
    return {"success": True, "commitOid": SHA, "commitUrl": f"{hub.url}/{found[1]}/commit/{SHA}"}, 200
