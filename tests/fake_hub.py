"""A Hub on the loopback: just enough of its interface to load from it, and to push to it."""

import json
import os
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 39 + "1"


@dataclass(frozen=True)
class Commit:
    """What was pushed: the first line of its message, and path -> content."""

    summary: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Repository:
    """What a Hub has under one name.

    Args:
        name: Such as ``user/name``.
        files: Path -> content.
        kind: ``dataset`` or ``model``.
    """

    name: str
    files: Mapping[str, bytes]
    kind: str = "dataset"

    @property
    def api(self) -> str:
        return f"/api/{self.kind}s/{self.name}"

    @property
    def resolve(self) -> str:
        return f"{'' if self.kind == 'model' else f'/{self.kind}s'}/{self.name}/resolve/"

    def has(self, path: str) -> bool:
        """Whether an address is one of this repository's."""
        return path == self.api or path.startswith((f"{self.api}/", self.resolve, f"/{self.name}.git/"))

    def children(self, folder: str) -> list[dict[str, Any]]:
        """What the Hub says of a folder's files and folders."""
        start = f"{folder}/" if folder else ""
        names = [name.removeprefix(start) for name in self.files if name.startswith(start)]
        folders = {name.split("/")[0] for name in names if "/" in name}
        return [
            *({"type": "directory", "path": start + name, "oid": COMMIT} for name in sorted(folders)),
            *(self._entry(start + name) for name in names if "/" not in name),
        ]

    def _entry(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        return {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}


@contextmanager
def serving(
    repository: str, files: Mapping[str, bytes], kind: str = "dataset", commits: list[Commit] | None = None
) -> Iterator[str]:
    """Serve one repository, and give the address for ``HF_ENDPOINT``; the rest as `serving_all`."""
    with serving_all([Repository(repository, files, kind)], commits) as address:
        yield address


@contextmanager
def serving_all(repositories: Sequence[Repository], commits: list[Commit] | None = None) -> Iterator[str]:
    """Serve some repositories, and give the address for ``HF_ENDPOINT``.

    Args:
        repositories: What is there.
        commits: Where given, who sends a token may push; each commit is appended, and what is served stays as it is.
    """
    uploaded: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            found = next((each for each in repositories if each.has(path)), None)
            if found is None:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return
            api, files = found.api, found.files
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                self.answer_json({"id": found.name, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
            elif path.startswith(f"{api}/tree/"):
                self.answer_json(found.children("/".join(path.removeprefix(f"{api}/tree/").split("/")[1:])))
            elif path.startswith(found.resolve) and path.removeprefix(found.resolve).split("/", 1)[1] in files:
                content = files[path.removeprefix(found.resolve).split("/", 1)[1]]
                self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{sha1(content).hexdigest()}"'})
            else:
                self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            lines = [json.loads(line) for line in body.splitlines()]
            created = "/".join(filter(None, (lines[0].get("organization"), lines[0].get("name"))))
            # A new repository's name is in the request; any other's, in its address.
            found = next((each for each in repositories if each.has(path) or each.name == created), repositories[0])
            api, address = found.api, f"http://{self.headers['Host']}/{found.name}"
            if commits is None or not self.headers.get("Authorization"):
                self.answer(401, b"{}", {})
            elif path == "/api/repos/create":
                self.answer_json({"url": address})
            elif path == "/api/validate-yaml":
                self.answer_json({"errors": [], "warnings": []})
            elif path == f"{api}/preupload/main":
                # As the real one: weights by Git LFS, so that the commit has their hash; all else in the commit itself.
                modes = [
                    {"path": name, "uploadMode": "lfs" if name.endswith(".safetensors") else "regular"}
                    for name in (file["path"] for file in lines[0]["files"])
                ]
                self.answer_json({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
            elif path == f"/{found.name}.git/info/lfs/objects/batch":
                objects = [
                    {**item, "actions": {"upload": {"href": f"http://{self.headers['Host']}/lfs/{item['oid']}"}}}
                    for item in lines[0]["objects"]
                ]
                self.answer_json({"transfer": "basic", "objects": objects})
            elif path == f"{api}/commit/main":
                pushed = [line["value"] for line in lines if line["key"] == "file"]
                content = {file["path"]: b64decode(file["content"]) for file in pushed}
                content |= {
                    line["value"]["path"]: uploaded[line["value"]["oid"]] for line in lines if line["key"] == "lfsFile"
                }
                commits.append(Commit(lines[0]["value"]["summary"], content))
                self.answer_json({"commitUrl": f"{address}/commit/{COMMIT}", "commitOid": COMMIT})
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        def do_PUT(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            uploaded[sha256(content).hexdigest()] = content
            self.answer(200, b"", {})

        def answer_json(self, value: Any) -> None:
            self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            """Say nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def python(
    folder: Path, address: str, *arguments: Any, executable: Path | str = sys.executable, **variables: str
) -> str:
    """Run a process of its own that may ask the Hub at an address, and give its stdout.

    Args:
        folder: Where it runs, and keeps what it has read.
        address: Of the Hub.
        *arguments: Of Python.
        executable: Which Python; default: that of these tests.
        **variables: Of its environment.
    """
    settings = {"HF_ENDPOINT": address, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    # The store behind Git LFS, which the server has; not the one behind Xet.
    settings["HF_HUB_DISABLE_XET"] = "1"
    done = subprocess.run(
        [executable, *map(str, arguments)],
        env={**os.environ, **settings, "NO_PROXY": "127.0.0.1", **variables},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
