"""/tokenize and /detokenize: between texts and token ids, in the shapes of vLLM and llama.cpp."""

from typing import Any

from dslite.app.server.errors import invalid
from dslite.app.server.json_fields import (
    BOOLEAN,
    TEXT,
    IntegerList,
    ObjectList,
    Table,
    honoured,
    read_fields,
    refused,
)
from dslite.app.server.limits import Limits
from dslite.app.server.messages import MESSAGE, TEXT_ONLY, parse_messages
from dslite.app.server.requests import ServedModel, chat_ids, served_name
from dslite.app.server.responses import token_string
from dslite.runtime.text.tokenizer import Tokenizer

_MODEL = honoured("model", TEXT, "any name in /v1/models", no_op=("",), default="the model that is served")


def tokenize_fields(limits: Limits) -> Table:
    """The body of /tokenize."""
    characters = f"of at most {limits.tokenize_characters:,} characters"
    return Table.of(
        [
            _MODEL,
            honoured("prompt", TEXT, f"a text {characters}; one of prompt, content and messages"),
            honoured("content", TEXT, f"llama.cpp's name of prompt: without a begin-of-sentence token, {characters}"),
            honoured("messages", ObjectList(MESSAGE, "a list of at least one message"), "a chat, as for an answer"),
            honoured(
                "add_special_tokens",
                BOOLEAN,
                "the begin-of-sentence token in front of a text",
                default="true for prompt, false for content",
            ),
            honoured("add_special", BOOLEAN, "llama.cpp's name of add_special_tokens", stands_for="add_special_tokens"),
            honoured("parse_special", BOOLEAN, "spellings of added tokens in a text are those tokens", default="false"),
            honoured("add_generation_prompt", BOOLEAN, "of messages, as for an answer", default="true"),
            honoured("continue_final_message", BOOLEAN, "of messages, as for an answer", default="false"),
            honoured("return_token_strs", BOOLEAN, "each token's own text too, as `token_strs`", default="false"),
        ],
        refused("use return_token_strs", "with_pieces", False),
        refused("functions are no part of this prompt", "tools", []),
        refused("the model's own template is used", "chat_template"),
        refused("the model's own template takes no arguments", "chat_template_kwargs", {}),
        refused(TEXT_ONLY, "mm_processor_kwargs media_io_kwargs", {}),
    )


def detokenize_fields(limits: Limits) -> Table:
    """The body of /detokenize."""
    ids = IntegerList(limits.detokenize_tokens)
    return Table.of([_MODEL, honoured("tokens", ids, "token ids; special tokens become their names")])


def tokenize(raw: dict[str, Any], served: ServedModel, limits: Limits) -> dict[str, Any]:
    """The answer to a body of /tokenize. Raises ApiError, UsageError."""
    values = read_fields(tokenize_fields(limits), raw)
    served_name(values, served)
    ids = _message_ids(values, served) if "messages" in values else _text_ids(values, served, limits)
    tokenizer = served.engine.tokenizer
    strings = [token_string(tokenizer, token) for token in ids] if values.get("return_token_strs") else None
    return {"count": len(ids), "max_model_len": served.engine.context, "tokens": ids, "token_strs": strings}


def _message_ids(values: dict[str, Any], served: ServedModel) -> list[int]:
    wrong = [name for name in ("prompt", "content", "add_special_tokens", "parse_special") if name in values]
    if wrong:
        raise invalid(f"{wrong[0]} is of a text; leave it out beside messages", wrong[0])
    if served.template is None:
        raise invalid(f"{served.names[0]} has no chat template; use prompt", "messages")
    messages = parse_messages(values)
    served.check_length([message.content for message in messages])
    return chat_ids(values, messages, served.template, served.engine)[0]


def _text_ids(values: dict[str, Any], served: ServedModel, limits: Limits) -> list[int]:
    given = [name for name in ("prompt", "content") if name in values]
    if len(given) != 1:
        raise invalid("the request needs one of prompt, content and messages", "prompt")
    text: str = values[given[0]]
    if len(text) > limits.tokenize_characters:
        raise invalid(
            f"{given[0]} has {len(text):,} characters; the most is {limits.tokenize_characters:,}: send it in parts",
            given[0],
        )
    special = values.get("add_special_tokens", given == ["prompt"])
    ids = served.engine.tokenizer.encode(text, parse_special=values.get("parse_special", False))
    return [served.engine.model.config.bos_token_id, *ids] if special else ids


def detokenize(raw: dict[str, Any], served: ServedModel, limits: Limits) -> dict[str, Any]:
    """The answer to a body of /detokenize, under the names of vLLM and of llama.cpp. Raises ApiError."""
    values = read_fields(detokenize_fields(limits), raw)
    served_name(values, served)
    if "tokens" not in values:
        raise invalid("the request has no tokens; send a list of token ids", "tokens")
    served.check_tokens(values["tokens"], "tokens")
    text = _text_of(values["tokens"], served.engine.tokenizer)
    return {"prompt": text, "content": text}


def _text_of(ids: list[int], tokenizer: Tokenizer) -> str:
    """The text of tokens, in which special ones stand by their names; what is not UTF-8 becomes U+FFFD."""
    names = {token: name.encode("utf-8") for name, token in tokenizer.special_tokens.items()}
    return b"".join(names.get(token) or tokenizer.token_bytes(token) for token in ids).decode("utf-8", "replace")
