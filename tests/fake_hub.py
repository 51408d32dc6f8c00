"""A Hub on the loopback, with one repository of data: just enough of its interface for `datasets.load_dataset`."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0" * 39 + "1"


@contextmanager
def serving(repository: str, files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve a repository of data, and give the address for ``HF_ENDPOINT``.

    Args:
        repository: Its id, such as ``user/name``.
        files: Path -> content.
    """

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            api, resolve = f"/api/datasets/{repository}", f"/datasets/{repository}/resolve/"
            if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                self.answer_json({"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
            elif path.startswith(f"{api}/tree/"):
                folder = "/".join(path.removeprefix(f"{api}/tree/").split("/")[1:])
                self.answer_json(children(folder))
            elif path.startswith(resolve) and path.removeprefix(resolve).split("/", 1)[1] in files:
                content = files[path.removeprefix(resolve).split("/", 1)[1]]
                self.answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{sha1(content).hexdigest()}"'})
            else:
                self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound" if repository in path else "RepoNotFound"})

        def do_HEAD(self) -> None:
            self.do_GET()

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

    def entry(name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(files[name]), "oid": sha1(files[name]).hexdigest()}

    def children(folder: str) -> list[dict[str, Any]]:
        start = f"{folder}/" if folder else ""
        names = [name.removeprefix(start) for name in files if name.startswith(start)]
        folders = {name.split("/")[0] for name in names if "/" in name}
        return [
            *({"type": "directory", "path": start + name, "oid": COMMIT} for name in sorted(folders)),
            *(entry(start + name) for name in names if "/" not in name),
        ]

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
