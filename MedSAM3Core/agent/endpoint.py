"""Where a language model is asked, what it costs, and where its key comes from."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from MedSAM3Core.errors import InputError

KEY_VARIABLE = "MEDSAM3_AGENT_KEY"
"""The environment variable whose key is used with whatever endpoint is given."""
KEY_VARIABLES = {
    "api.openai.com": "OPENAI_API_KEY",
    "generativelanguage.googleapis.com": "GEMINI_API_KEY",
    "openrouter.ai": "OPENROUTER_API_KEY",
}
"""Keys that belong to one provider are read from its usual variable, and sent to no other host."""
KEYRING_SERVICE = "medsam3-agent"
"""Under this service the system's keyring is asked for a key; the user name is the endpoint's host."""
HIDDEN = "***"


@dataclass(frozen=True)
class Endpoint:
    """A place that speaks the OpenAI chat API, and how it is to be used. Made by `Endpoint.parse`.

    Attributes:
        url: Base address, for example "http://localhost:11434/v1"; holds no credentials.
        model: Name of the language model there.
        timeout_s: Longest wait for an answer to begin, and half of the longest wait for all of it, in seconds.
        retries: How often a request is repeated after a timeout, a lost connection, "too many requests" or a fault of
            the server.
        per_minute: Most requests a minute; 0 is no limit of ours.
        most_tokens: Longest answer.
        pictures: Whether to send pictures at all; where the model refuses them, they are left out by themselves.
        price_in: Price of a million tokens sent, in any currency; None when not known.
        price_out: Price of a million tokens received.
    """

    url: str
    model: str
    timeout_s: float = 60.0
    retries: int = 2
    per_minute: float = 0.0
    most_tokens: int = 1000
    pictures: bool = True
    price_in: float | None = None
    price_out: float | None = None

    @classmethod
    def parse(cls, url: str, model: str, **options: Any) -> Endpoint:
        """An endpoint from what a user typed; an address without a path gets "/v1".

        Raises:
            InputError: If the address is not one of http or https, holds credentials or a query, or the model has no
                name, or a limit is out of range.
        """
        parts = urlsplit(url.strip())
        try:
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if parts.scheme not in ("http", "https") or not host:
            raise InputError(
                f"The endpoint is {_without_credentials(url)!r}; expected an address such as http://localhost:11434/v1."
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError(
                "The endpoint's address holds a user name, a password or a query; give the plain address, and the key "
                f"in {KEY_VARIABLE} or in the keyring."
            )
        if not model.strip():
            raise InputError("The language model has no name; give the name by which the endpoint knows it.")
        path = parts.path.rstrip("/") or "/v1"
        endpoint = cls(f"{parts.scheme}://{parts.netloc}{path}", model.strip(), **options)
        endpoint._check()
        return endpoint

    def _check(self) -> None:
        if not 1 <= self.timeout_s <= 3600:
            raise InputError(f"The timeout is {self.timeout_s:g} s; expected 1 to 3600.")
        if not 0 <= self.retries <= 10:
            raise InputError(f"The number of retries is {self.retries}; expected 0 to 10.")
        if not 0 <= self.per_minute <= 6000:
            raise InputError(f"The limit is {self.per_minute:g} requests a minute; expected 0 to 6000.")

    @property
    def host(self) -> str:
        """Host and, where it was given, port."""
        return urlsplit(self.url).netloc

    @property
    def is_local(self) -> bool:
        """Whether requests stay on this machine."""
        name = urlsplit(self.url).hostname or ""
        if name == "localhost":
            return True
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False

    @property
    def is_readable_on_the_way(self) -> bool:
        """Whether requests leave this machine unencrypted."""
        return not self.is_local and self.url.startswith("http://")


class Key:
    """A secret that does not show: not in ``repr``, not in a format string, not in a traceback's variables.

    Args:
        value: The secret.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return f"Key({HIDDEN})"

    def reveal(self) -> str:
        """The secret, for the client's header."""
        return self._value

    def hide_in(self, text: str) -> str:
        """The text without the secret, as a server may echo it."""
        return text.replace(self._value, HIDDEN) if self._value else text


def find_key(endpoint: Endpoint, environment: Mapping[str, str] | None = None) -> Key | None:
    """The key of an endpoint: `KEY_VARIABLE`, the provider's own variable, then the system's keyring.

    Args:
        endpoint: Whose key.
        environment: None is this process's own.
    """
    variables = os.environ if environment is None else environment
    host = urlsplit(endpoint.url).hostname or ""
    for name in (KEY_VARIABLE, KEY_VARIABLES.get(host, "")):
        value = variables.get(name, "").strip() if name else ""
        if value:
            return Key(value)
    return _key_of_keyring(endpoint.host)


def _key_of_keyring(host: str) -> Key | None:
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        return None
    try:
        value = keyring.get_password(KEYRING_SERVICE, host)
    except KeyringError:  # no keyring runs here, or it is locked
        return None
    return Key(value) if value else None


def _without_credentials(url: str) -> str:
    """An address for a message: what stands before an @ may be a secret."""
    return url.rsplit("@", 1)[-1][:200]
