"""Sampling parameters from flags, config.toml, JSON and generation_config.json: their keys, types and ranges."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dslite.runtime.constraints.constraint import KINDS, schema_text
from dslite.runtime.downloads.layout import generation_defaults
from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.errors import UsageError

_TYPES: dict[str, type | tuple[type, ...]] = {
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": int,
    "min_p": (int, float),
    "repetition_penalty": (int, float),
    "seed": int,
    "max_tokens": int,
}
LISTS = ("stop", "stop_token_ids")
CONSTRAINTS: tuple[str, ...] = KINDS  # of the answer: at most one
KEYS = (*_TYPES, *LISTS, *CONSTRAINTS)


def chosen(**flags: Any) -> dict[str, Any]:
    """The sampling flags that were given, checked. Raises UsageError."""
    values = check_types(flags)
    SamplingParams(**values)
    return values


def check_types(values: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling values of a mapping from JSON or TOML, each of its type. Raises UsageError."""
    chosen: dict[str, Any] = {key: values[key] for key in KEYS if values.get(key) is not None}
    for key, kind in _TYPES.items():
        if key in chosen and (isinstance(chosen[key], bool) or not isinstance(chosen[key], kind)):
            raise UsageError(f"{key} is {chosen[key]!r}; it must be a {'whole ' if kind is int else ''}number")
    if "stop" in chosen:
        stop = [chosen["stop"]] if isinstance(chosen["stop"], str) else chosen["stop"]
        if not isinstance(stop, list | tuple) or not all(isinstance(text, str) for text in stop):
            raise UsageError(f"stop is {chosen['stop']!r}; it must be a text or a list of texts")
        chosen["stop"] = tuple(stop)
    if "stop_token_ids" in chosen:
        ids = chosen["stop_token_ids"]
        if not isinstance(ids, list | tuple) or not all(type(token_id) is int for token_id in ids):
            raise UsageError(f"stop_token_ids is {ids!r}; it must be a list of whole numbers")
        chosen["stop_token_ids"] = tuple(ids)
    if "json_schema" in chosen:
        chosen["json_schema"] = schema_text(chosen["json_schema"])
    for key in ("regex", "grammar"):
        if not isinstance(chosen.get(key, ""), str):
            raise UsageError(f"{key} is {chosen[key]!r}; it must be a text")
    return chosen


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling values over others. A shape of the answer takes the place of any below it."""
    shaped = any(above.get(key) is not None for key in CONSTRAINTS)
    kept = {key: value for key, value in below.items() if not (shaped and key in CONSTRAINTS)}
    return {**kept, **above}


def model_defaults(folder: Path) -> dict[str, Any]:
    """The sampling parameters of generation_config.json. Raises UsageError."""
    raw = generation_defaults(folder)
    values = {key: raw[key] for key in ("temperature", "top_p", "top_k", "repetition_penalty") if raw.get(key)}
    if raw.get("do_sample") is False:
        values["temperature"] = 0.0
    return check_types(values)
