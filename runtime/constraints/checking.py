"""Whether an answer that another program made has the shape that was asked for."""

import json

from dslite.runtime.constraints.constraint import Constraint, parse_schema
from dslite.runtime.errors import DsliteError


def check_answer(text: str, constraint: Constraint, host: str) -> None:
    """Raise DsliteError where the answer of a server has not the shape. A schema is checked as JSON, in any layout."""
    if (fault := _fault(text.strip(" "), constraint)) is not None:
        raise DsliteError(
            f"the answer of {host} is not of the shape that was asked for: {fault}",
            "ask again, or a server that enforces it (dslite serve does)",
        )


def _fault(text: str, constraint: Constraint) -> str | None:
    if constraint.kind != "json_schema":
        from dslite.runtime.constraints.compiler import follows

        return None if follows(text, constraint) else f"it does not follow the {constraint.kind}"
    import jsonschema

    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON ({error})"
    schema = parse_schema(constraint.text)
    try:
        fault = next(jsonschema.validators.validator_for(schema)(schema).iter_errors(value), None)
    except Exception as problem:  # a schema that the library cannot read fails in many ways
        return f"the schema cannot be checked ({problem})"
    return None if fault is None else f"{fault.json_path}: {fault.message[:200]}"
