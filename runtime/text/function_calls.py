"""Calls of functions and their results as the text of a conversation.

DeepSeek-V2's template has no place for either, so they are written as text that the model can read:

    Call of weather: {"city":"Paris"}          in the assistant's turn, one line for each call
    Result of weather: {"celsius":21}          in a turn of the user, one line for each result

What stands behind the colon is JSON on one line: the value itself where it is JSON, else its text as a JSON string. So
nothing in it can begin a line, `User:` and `Assistant:` least of all, and its spelling of a special token is text as in
any message (chat_template.py).
"""

import json
import re
from typing import Any, NoReturn

from dslite.runtime.errors import UsageError

FUNCTION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_PARSED = 2**20  # characters; a longer text is written as a JSON string, whatever it holds
_LINE_ENDS = re.compile("[\x7f-\x9f\u2028\u2029]")  # those that JSON leaves as they are, and all of C1


def call_text(name: str, arguments: str) -> str:
    """A call. `arguments` are JSON. Raises UsageError for a name that no function has."""
    return f"{call_opening(name)} {one_line_json(arguments)}"


def call_opening(name: str) -> str:
    """The beginning of a call, behind which its arguments follow. Raises UsageError."""
    return f"Call of {_checked(name)}:"


def result_text(name: str, content: str) -> str:
    """What a call returned: JSON, or any text. Raises UsageError for a name that no function has."""
    return f"Result of {_checked(name)}: {one_line_json(content)}"


def request_text(name: str, description: str, parameters: dict[str, Any]) -> str:
    """The line of a system message that asks for a call. `parameters`: the JSON schema of its arguments."""
    definition = {"name": _checked(name), "description": description, "parameters": parameters}
    return f"Answer with a call of this function, its arguments as JSON: {_dumped(definition)}"


def one_line_json(text: str) -> str:
    """A text that is JSON without its white space, any other text as a JSON string; without line ends either way."""
    if len(text) <= _MOST_PARSED:
        try:
            return _dumped(json.loads(text, parse_constant=_refuse_constant))
        except (ValueError, RecursionError):  # no JSON, a number that Python cannot hold, too deep
            pass
    return _dumped(text)


def _dumped(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _LINE_ENDS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _checked(name: str) -> str:
    if not FUNCTION_NAME.fullmatch(name):
        raise UsageError(
            f"the function's name is {name[:80]!r}", "use at most 64 letters, digits, underscores, dots and hyphens"
        )
    return name
