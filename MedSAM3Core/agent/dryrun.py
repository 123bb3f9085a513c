"""What would be sent, written to a folder instead; nothing leaves the machine."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from MedSAM3Core.agent.chat import Dialect, Reply, request_body
from MedSAM3Core.agent.endpoint import Endpoint
from MedSAM3Core.agent.transcript import without_pictures
from MedSAM3Core.agent.wording import Prompt
from MedSAM3Core.progress import CancelToken


@dataclass
class DryRun:
    """Stands in for a chat model: writes each request and declines to answer.

    The judge then plans from the request's own words and leaves the first round unjudged, so that one request of each
    kind is written, made by the same code that would send it.

    Attributes:
        endpoint: Whose requests.
        folder: Where to; must exist.
        files: What was written.
    """

    endpoint: Endpoint
    folder: Path
    files: list[Path] = field(default_factory=list)
    _count: int = 0

    def ask(self, prompt: Prompt, cancel: CancelToken | None = None, remark: str = "") -> Reply:
        """Write the request ``N-PURPOSE.json`` with its pictures beside it."""
        self._count += 1
        stem = f"{self._count}-{prompt.purpose}"
        body = request_body(self.endpoint, Dialect(pictures=self.endpoint.pictures), prompt, remark)
        shown = prompt.pictures if self.endpoint.pictures else ()
        for one in shown:
            self._write(f"{stem}-picture-{one.number}.png", one.png)
        document = {"POST": f"{self.endpoint.url}/chat/completions", "body": without_pictures(body)}
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        self._write(f"{stem}.json", text.encode("utf-8"))
        return Reply("", True, bool(shown))

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        path.write_bytes(content)
        self.files.append(path)
