"""A double of the Hugging Face hub on the loopback interface: the requests and headers that huggingface_hub needs.

It answers HEAD and GET of ``/<repository>/resolve/<revision>/<file>`` with ETag, size and byte ranges, and can be told
to refuse, to break off, or to send other bytes than it promised. No test reaches a real hub.
"""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubDouble:
    """The server; use as a context manager.

    Attributes:
        files: Path ("owner/name/file") to content.
        refusal: (status, X-Error-Code) for every request, or None.
        break_after: Bytes after which a GET's connection is dropped and the hub answers 503 from then on, or None.
        sent: Content sent instead of the promised one, or None.
        requests: (method, path, Range header) received.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.refusal: tuple[int, str] | None = None
        self.break_after: int | None = None
        self.sent: bytes | None = None
        self.requests: list[tuple[str, str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubDouble:
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, body: bool) -> None:
                asked = self.headers.get("Range", "")
                hub.requests.append((self.command, self.path, asked))
                repository, _, rest = self.path.lstrip("/").partition("/resolve/")
                content = hub.files.get(f"{repository}/{rest.partition('/')[2]}")
                if hub.refusal or content is None:
                    status, code = hub.refusal or (404, "EntryNotFound")
                    self.send_response(status)
                    self.send_header("X-Error-Code", code)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
                part = (content if hub.sent is None else hub.sent)[start:]
                self.send_response(206 if asked else 200)
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(part)))
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                if body:
                    cut = part if hub.break_after is None else part[: hub.break_after]
                    self.wfile.write(cut)
                    if len(cut) < len(part):
                        hub.refusal = (503, "")
                        self.close_connection = True

        return Handler
