"""A real HTTP server on loopback that speaks the chat API as its script says.

Each entry of the script answers one request: a string or dict is the assistant's message (a dict is written as JSON), a
`Status` is an HTTP error, a function is given the handler and does what it likes. The last entry is repeated.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Status:
    """An HTTP error with a message as OpenAI writes it."""

    code: int
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """A whole assistant message, and how it ended."""

    message: dict[str, Any]
    finish: str = "stop"


class ChatServer:
    """Answers by script and remembers what it was asked.

    Attributes:
        script: See the module.
        requests: Bodies of all requests, in order.
        headers: Their headers.
    """

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                server.requests.append(json.loads(body))
                headers = {name.lower(): value for name, value in self.headers.items()}
                headers.pop("host")  # its port is any number, also one that a test says is never sent
                server.headers.append(headers)
                server.paths.append(self.path)
                step = server.script[min(len(server.requests), len(server.script)) - 1]
                _answer(self, step)

            def log_message(self, *_):
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def everything(self) -> str:
        """All that was received, headers included, as one text."""
        return json.dumps([self.requests, self.headers, self.paths])

    def words(self) -> str:
        """The same without the pictures, whose letters spell anything sooner or later."""
        return re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "", self.everything())

    def __enter__(self) -> ChatServer:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _answer(handler: BaseHTTPRequestHandler, step: Any) -> None:
    if callable(step):
        step(handler)
    elif isinstance(step, Status):
        send(handler, step.code, {"error": {"message": step.message, "type": "error"}}, step.headers)
    elif isinstance(step, Said):
        send(handler, 200, completion(step.message, step.finish))
    else:
        content = step if isinstance(step, str) else json.dumps(step)
        send(handler, 200, completion({"role": "assistant", "content": content}))


def completion(message: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    """An answer of the chat API."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


def send(handler: Any, code: int, document: Any, headers: dict[str, str] | None = None) -> None:
    """A JSON answer, or bytes as they are."""
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    handler.send_response(code)
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def tool_call(name: str, arguments: dict[str, Any]) -> Said:
    """An assistant message that calls a tool."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    call = {"id": "call_1", "type": "function", "function": function}
    return Said({"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls")


def plan(*phrases: str, questions: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    """A well-formed plan."""
    targets = [{"phrase": phrase, "expected_number": 1, "place": ""} for phrase in phrases]
    return {"modality": "CT", "targets": targets, "questions": questions or [], **more}


def verdict(word: str, *actions: dict[str, Any], reason: str = "because") -> dict[str, Any]:
    """A well-formed verdict."""
    return {"verdict": word, "reason": reason, "actions": list(actions)}


Script = Callable[..., ChatServer]
