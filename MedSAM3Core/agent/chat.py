"""A language model behind the OpenAI chat API, asked in whatever way it understands.

Servers differ in what they take: a JSON schema, tool calls, pictures, even the name of the answer's limit. The first
request asks for everything; where the server says that it cannot read a request, the next one asks for less, and what
was learned is kept (`Dialect`). Nothing that a server says changes anything but that.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from types import ModuleType
from typing import Any, Protocol

from MedSAM3Core.agent.endpoint import KEY_VARIABLE, Endpoint, Key
from MedSAM3Core.agent.transcript import Record, Transcript
from MedSAM3Core.agent.wording import Prompt, Wording
from MedSAM3Core.errors import Cancelled, EndpointError
from MedSAM3Core.progress import CancelToken

MOST_BYTES = 2_000_000
"""An answer longer than this is not read to its end."""
CONNECT_S = 10.0
GRACE_S = 8.0
"""Beyond twice the timeout, for the client's pauses between retries, in seconds a try."""
POLL_S = 0.05
"""How often a waiting call looks at its cancel token."""
SEED = 1
"""Sent with every request, so that servers that honour it answer the same twice."""
_NOISY = ("openai", "httpx2", "httpcore2", "httpx", "httpcore")


class Structure(StrEnum):
    """How an answer's form is asked for."""

    SCHEMA = "schema"
    TOOLS = "tools"
    TEXT = "text"


@dataclass(frozen=True)
class Dialect:
    """What a server is known to take.

    Attributes:
        structure: How the form of an answer is asked for.
        pictures: Whether it takes pictures.
        limit: Name of the field that limits an answer.
        steady: Whether it takes a temperature and a seed.
    """

    structure: Structure = Structure.SCHEMA
    pictures: bool = True
    limit: str = "max_tokens"
    steady: bool = True


@dataclass(frozen=True)
class Usage:
    """What a conversation has used.

    Attributes:
        requests: Requests that were answered.
        sent: Tokens sent.
        received: Tokens received.
        cost: In the currency of the endpoint's prices; None when they are not known.
        counted: False when the server did not count, and the tokens of some requests are missing.
    """

    requests: int = 0
    sent: int = 0
    received: int = 0
    cost: float | None = None
    counted: bool = True


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: What was said, or the arguments of the tool that was called.
        refused: Whether the model or its provider declined.
        saw_pictures: Whether pictures were sent with the question.
    """

    text: str
    refused: bool
    saw_pictures: bool


class ChatModel(Protocol):
    """Answers prompts."""

    def ask(self, prompt: Prompt, cancel: CancelToken | None = None, remark: str = "") -> Reply:
        """Ask; ``remark`` is added to the question.

        Raises:
            EndpointError: If no answer comes.
            Cancelled: If the token was cancelled.
        """


def request_body(endpoint: Endpoint, dialect: Dialect, prompt: Prompt, remark: str = "") -> dict[str, Any]:
    """All that a request says, as plain values. What is not in here does not leave the machine.

    Args:
        endpoint: Names the model and the longest answer.
        dialect: How to say it.
        prompt: What to ask.
        remark: Added to the question.
    """
    said = prompt.seeing if dialect.pictures and prompt.pictures else prompt.blind
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [
            {"role": "system", "content": _system(said, dialect)},
            {"role": "user", "content": _content(said, dialect, prompt, remark)},
        ],
        dialect.limit: endpoint.most_tokens,
    }
    if dialect.steady:
        body |= {"temperature": 0, "seed": SEED}
    if dialect.structure is Structure.SCHEMA:
        form = {"name": prompt.purpose, "strict": True, "schema": said.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    elif dialect.structure is Structure.TOOLS:
        name = {"name": prompt.purpose}
        body["tools"] = [{"type": "function", "function": {**name, "parameters": said.schema}}]
        body["tool_choice"] = {"type": "function", "function": name}
    return body


def _system(said: Wording, dialect: Dialect) -> str:
    if dialect.structure is not Structure.TEXT:
        return said.system
    return f"{said.system} The form, as a JSON schema: {json.dumps(said.schema, separators=(',', ':'))}"


def _content(said: Wording, dialect: Dialect, prompt: Prompt, remark: str) -> str | list[dict[str, Any]]:
    text = f"{said.text}\n{remark}".strip()
    if said is not prompt.seeing:
        return text
    shown = [
        {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + base64.b64encode(one.png).decode("ascii")},
        }
        for one in prompt.pictures
    ]
    return [{"type": "text", "text": text}, *shown]


def simpler(dialect: Dialect, complaint: str) -> Dialect | None:
    """What to try after a server could not read a request; None when there is nothing left.

    Args:
        dialect: What it could not read.
        complaint: What it said; looked at for a few words, and for nothing else.
    """
    words = complaint.lower()
    if "max_completion_tokens" in words and dialect.limit == "max_tokens":
        return replace(dialect, limit="max_completion_tokens")
    if dialect.steady and ("temperature" in words or "seed" in words):
        return replace(dialect, steady=False)
    if dialect.pictures and any(word in words for word in ("image", "vision", "multimodal", "mmproj")):
        return replace(dialect, pictures=False)
    if dialect.structure is Structure.SCHEMA:
        return replace(dialect, structure=Structure.TOOLS)
    if dialect.structure is Structure.TOOLS:
        return replace(dialect, structure=Structure.TEXT)
    if dialect.pictures:
        return replace(dialect, structure=Structure.SCHEMA, pictures=False)
    return None


class OpenAIChat:
    """A language model behind an endpoint.

    Redirects are not followed: what leaves goes to the endpoint that the user was shown and nowhere else.

    Args:
        endpoint: Where.
        key: Its key, or None where it needs none.
        transcript: Receives every request and answer.

    Raises:
        EndpointError: If the package ``openai`` is not installed.
    """

    def __init__(
        self, endpoint: Endpoint, key: Key | None = None, transcript: Transcript | None = None
    ) -> None:
        self.endpoint = endpoint
        self.dialect = Dialect(pictures=endpoint.pictures)
        self.usage = Usage(cost=None if endpoint.price_in is None else 0.0)
        self.transcript = transcript or Transcript()
        self._key = key or Key("")
        self._openai = _import_openai()
        self._client = self._connect()
        self._last = -1e9

    def ask(self, prompt: Prompt, cancel: CancelToken | None = None, remark: str = "") -> Reply:
        """Ask, in simpler ways as the server needs them; see `ChatModel`."""
        while True:
            self._keep_pace(cancel)
            dialect = self.dialect
            body = request_body(self.endpoint, dialect, prompt, remark)
            started = time.monotonic()
            try:
                document = self._send(body, cancel)
            except _CannotRead as fault:
                self._record(prompt, dialect, body, started, error=str(fault))
                softer = simpler(dialect, str(fault))
                if softer is None:
                    raise EndpointError(
                        f"{self.endpoint.host} cannot read the request ({_short(str(fault))}).",
                        "Check that the model's name is right and that the endpoint speaks the OpenAI chat API.",
                    ) from None
                self.dialect = softer
                continue
            except EndpointError as fault:
                self._record(prompt, dialect, body, started, error=str(fault))
                raise
            reply = self._read(document, dialect, bool(prompt.pictures))
            self._count(document)
            self._record(prompt, dialect, body, started, reply=reply, document=document)
            return reply

    def close(self) -> None:
        """Drop the connections."""
        self._client.close()

    # Sending -------------------------------------------------------------------------------------------------------

    def _connect(self) -> Any:
        openai, endpoint = self._openai, self.endpoint
        client = openai.OpenAI(
            api_key=self._key.reveal() or "none",  # the client insists on one; servers without keys ignore it
            base_url=endpoint.url,
            max_retries=endpoint.retries,
            http_client=_http_client(openai, endpoint),
        )
        client.organization = client.project = None  # read from variables that are meant for another host
        return client

    def _keep_pace(self, cancel: CancelToken | None) -> None:
        pause = 60.0 / self.endpoint.per_minute if self.endpoint.per_minute else 0.0
        while (left := self._last + pause - time.monotonic()) > 0:
            if cancel is not None:
                cancel.check()
            time.sleep(min(left, POLL_S))
        self._last = time.monotonic()

    def _send(self, body: dict[str, Any], cancel: CancelToken | None) -> dict[str, Any]:
        """The answer's document. The request runs on a thread of its own, so that a cancel is heard at once.

        Raises:
            EndpointError, _CannotRead, Cancelled: As `_explain` says.
        """
        call = _Call(lambda: _post(self._client, body))
        longest = (self.endpoint.timeout_s * 2 + GRACE_S) * (self.endpoint.retries + 1)
        try:
            return call.wait(longest, cancel)
        except Cancelled:
            self._restart()
            raise
        except TimeoutError:
            self._restart()
            raise EndpointError(
                f"{self.endpoint.host} had not finished its answer after {longest:.0f} s.",
                "Allow it more time (--timeout on the command line), or use a faster model.",
            ) from None
        except (self._openai.OpenAIError, _TooLong, ValueError) as fault:
            raise self._explain(fault) from None  # the cause's request holds the key

    def _restart(self) -> None:
        """Drop a connection on which somebody still waits, and have a new one for the next question."""
        self._client.close()
        self._client = self._connect()

    def _explain(self, fault: Exception) -> Exception:
        openai, host = self._openai, self.endpoint.host
        said = _short(self._key.hide_in(_message(fault)))
        if isinstance(fault, openai.APITimeoutError):
            return EndpointError(
                f"{host} did not answer within {self.endpoint.timeout_s:g} s.",
                "Allow it more time (--timeout on the command line), or try later.",
            )
        if isinstance(fault, openai.APIConnectionError):
            return EndpointError(
                f"{host} cannot be reached.", "Check the address, and that a server runs there."
            )
        status = getattr(fault, "status_code", 0)
        if status in (401, 403):
            remedy = f"Put the right key into {KEY_VARIABLE} or the system's keyring; see docs/agent.md."
            return EndpointError(f"{host} does not accept the key ({said}).", remedy)
        if status in (400, 404, 422) and not _is_about_the_model(said, status):
            return _CannotRead(said)
        if status == 404:
            return EndpointError(
                f"{host} does not have the model {self.endpoint.model!r} ({said}).", "Check its name."
            )
        if 300 <= status < 400:
            return EndpointError(
                f"{host} sends requests on to another address, which is not followed.",
                "Give that address as the endpoint.",
            )
        if status == 429:
            return EndpointError(
                f"{host} has had too many requests ({said}).",
                "Wait, or allow fewer requests a minute (--per-minute on the command line).",
            )
        if status:
            return EndpointError(f"{host} failed with status {status} ({said}).", "Try again later.")
        return EndpointError(
            f"{host} answered, but not in a form of the OpenAI chat API ({said}).", "Check the address."
        )

    # Reading -------------------------------------------------------------------------------------------------------

    def _read(self, document: dict[str, Any], dialect: Dialect, pictures: bool) -> Reply:
        choices = document.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = choice.get("message")
        if not isinstance(message, dict):
            raise EndpointError(
                f"{self.endpoint.host} answered, but not in a form of the OpenAI chat API.",
                "Check the address.",
            )
        refusal = message.get("refusal")
        refused = bool(refusal) or choice.get("finish_reason") == "content_filter"
        text = refusal if isinstance(refusal, str) and refusal else _said(message)
        return Reply(self._key.hide_in(text), refused, dialect.pictures and pictures)

    def _count(self, document: dict[str, Any]) -> None:
        usage = document.get("usage")
        known = usage if isinstance(usage, dict) else {}
        sent, received = (_tokens(known.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        before, e = self.usage, self.endpoint
        cost = before.cost
        if cost is not None:
            cost += ((e.price_in or 0) * (sent or 0) + (e.price_out or 0) * (received or 0)) / 1e6
        self.usage = Usage(
            before.requests + 1,
            before.sent + (sent or 0),
            before.received + (received or 0),
            cost,
            before.counted and sent is not None and received is not None,
        )

    def _record(
        self,
        prompt: Prompt,
        dialect: Dialect,
        body: dict[str, Any],
        started: float,
        reply: Reply | None = None,
        document: dict[str, Any] | None = None,
        error: str = "",
    ) -> None:
        usage = (document or {}).get("usage")
        self.transcript.add(
            Record(
                purpose=prompt.purpose,
                structure=dialect.structure.value,
                request=body,
                answer=reply.text if reply else "",
                refused=reply.refused if reply else False,
                error=error,
                seconds=round(time.monotonic() - started, 3),
                tokens_sent=_tokens(usage.get("prompt_tokens")) if isinstance(usage, dict) else None,
                tokens_received=_tokens(usage.get("completion_tokens")) if isinstance(usage, dict) else None,
            )
        )


class _CannotRead(Exception):  # noqa: N818 - never leaves this module
    """The server could not read the request; a simpler one may do."""


class _TooLong(Exception):  # noqa: N818 - never leaves this module
    """The answer does not end."""


class _Call:
    """A function on a daemon thread, waited for with one eye on a cancel token."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: Exception | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, daemon=True, name="agent request").start()

    def wait(self, seconds: float, cancel: CancelToken | None) -> Any:
        """What the function returned or raised; `TimeoutError` after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not self._done.wait(POLL_S):
            if cancel is not None:
                cancel.check()
            if time.monotonic() > deadline:
                raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._value

    def _run(self) -> None:
        try:
            self._value = self._function()
        except Exception as fault:  # handed over to the waiting thread
            self._error = fault
        self._done.set()


def _post(client: Any, body: dict[str, Any]) -> dict[str, Any]:
    """Send a request; read its answer no further than `MOST_BYTES`."""
    parts: list[bytes] = []
    with client.chat.completions.with_streaming_response.create(**body) as response:
        for part in response.iter_bytes():
            parts.append(part)
            if sum(map(len, parts)) > MOST_BYTES:
                raise _TooLong(f"the answer is longer than {MOST_BYTES:,} bytes")
    document = json.loads(b"".join(parts))
    if not isinstance(document, dict):
        raise ValueError("the answer is not a JSON object")
    return document


def _http_client(openai: ModuleType, endpoint: Endpoint) -> Any:
    """A client that follows no redirects, with the endpoint's patience."""
    timeout = openai.Timeout(endpoint.timeout_s, connect=min(CONNECT_S, endpoint.timeout_s))
    return openai.DefaultHttpxClient(follow_redirects=False, timeout=timeout)


def _import_openai() -> ModuleType:
    """The client's package, its loggers quiet: at debug level they would write whole requests, pictures included."""
    try:
        import openai
    except ImportError as fault:
        raise EndpointError(
            "The agent needs the package 'openai', which is not installed.",
            "Install it: pip install openai keyring.",
        ) from fault
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    return openai


def _said(message: dict[str, Any]) -> str:
    """The content, or the arguments of the first tool call."""
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls and isinstance(calls[0], dict):
        function = calls[0].get("function")
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(arguments, dict):
            return json.dumps(arguments)
        if isinstance(arguments, str):
            return arguments
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _message(fault: Exception) -> str:
    body = getattr(fault, "body", None)
    if isinstance(body, dict):
        inner = body.get("error") if isinstance(body.get("error"), dict) else body
        if isinstance(inner, dict) and isinstance(inner.get("message"), str):
            return inner["message"]
    return str(fault)


def _is_about_the_model(said: str, status: int) -> bool:
    words = said.lower()
    return status == 404 and "model" in words and not any(w in words for w in ("image", "tool", "support"))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:157] + "..."


def _tokens(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
