"""How an answer is drawn and where it ends. Imports no torch: a wrong flag is refused without that second."""

from dataclasses import dataclass, fields
from functools import cached_property

from dslite.runtime.constraints.constraint import KINDS, Constraint
from dslite.runtime.errors import UsageError

_INT32_MAX = 2**31 - 1
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0, 2, "from 0 to 2"),
    "top_p": (1e-9, 1, "above 0, up to 1"),
    "top_k": (0, _INT32_MAX, "from 0 (off) to 2^31 - 1"),
    "min_p": (0, 1, "from 0 to 1"),
    "repetition_penalty": (1e-9, 10, "above 0, up to 10"),
    "seed": (0, 2**63 - 1, "from 0 to 2^63 - 1"),
    "max_tokens": (0, _INT32_MAX, "from 0 to 2^31 - 1"),
    "min_tokens": (0, _INT32_MAX, "from 0 to 2^31 - 1"),
}


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is drawn and where it ends.

    Temperature 0 is greedy; top_k 0 is off; `max_tokens` None means what the context leaves. A token of
    `stop_token_ids` ends the answer as the model's own end tokens do; with `ignore_eos` those end nothing.
    No end token of either kind is drawn before `min_tokens` tokens. One of `json_schema` (its JSON), `regex` and
    `grammar` (Lark) gives the shape that the answer is forced into; it ends where nothing more can come.
    """

    temperature: float = 0.3
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or field.name not in _RANGES:
                continue
            low, high, text = _RANGES[field.name]
            if not low <= value <= high:
                raise UsageError(f"{field.name} is {value}; it must be {text}")
        if wrong := [token_id for token_id in self.stop_token_ids if not 0 <= token_id <= _INT32_MAX]:
            raise UsageError(f"stop_token_ids has {wrong[0]}; a token's id is from 0 to 2^31 - 1")
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise UsageError(f"{given[0]} and {given[1]} exclude each other", "give one shape")
        _ = self.constraint  # its own checks

    @cached_property
    def constraint(self) -> Constraint | None:
        """The shape of the answer. Raises UsageError."""
        for kind in KINDS:
            if (text := getattr(self, kind)) is not None:
                return Constraint(kind, text)
        return None
