"""YAML from files that anybody may have written: plain values only, and one kind of error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path) -> Any:
    """The plain values (texts, numbers, lists, dictionaries) of a file; tags that would make objects are refused.

    Raises:
        OSError: If it cannot be read.
        yaml.YAMLError: If it is not YAML in UTF-8. PyYAML itself lets a date such as 2001-13-45, a key that is a list
            or thousands of brackets through as other errors; here they are of this kind too.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        raise
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise yaml.YAMLError(str(error) or type(error).__name__) from error
