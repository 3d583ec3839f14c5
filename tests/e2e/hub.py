"""A hub of models on this machine: the part of the Hugging Face API that downloads use, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" * 6 + "cafe"


@contextmanager
def serve(repository: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as a model repository.

    Args:
        repository: Its name, `organisation/model`.
        folder: Its files.

    Yields:
        The address for `HF_ENDPOINT`, and the paths that were asked for.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def answer(self, with_body: bool) -> None:
            path = self.path.split("?")[0]
            asked.append(path)
            if path.startswith(f"/api/models/{repository}/tree/"):
                files = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name}
                    for file in sorted(folder.iterdir())
                ]
                self.reply(json.dumps(files).encode(), {"Content-Type": "application/json"}, with_body)
                return
            if path.startswith(f"/api/models/{repository}"):
                names = sorted(file.name for file in folder.iterdir())
                facts = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                self.reply(json.dumps(facts).encode(), {"Content-Type": "application/json"}, with_body)
                return
            file = folder / path.rsplit("/", 1)[-1]
            if not path.startswith(f"/{repository}/resolve/") or not file.is_file():
                self.send_error(404)
                return
            content = file.read_bytes()
            tag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self.reply(content, tag, with_body)

        def reply(self, content: bytes, headers: dict[str, str], with_body: bool) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
