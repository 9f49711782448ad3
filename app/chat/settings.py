"""Settings of the next answer of a chat: flags and /set values, then the profile, then the config's defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from dslite.app.settings import sampling
from dslite.app.settings.constraint_files import read_constraint
from dslite.app.settings.profiles import PLAIN, Profile
from dslite.runtime.errors import UsageError

_INTEGERS = ("top_k", "seed", "max_tokens")
_ALIASES = {"temp": "temperature", "num_predict": "max_tokens", "system_prompt": "system"}


@dataclass
class ChatSettings:
    """`chosen` holds flags and later /set values. `system` None means: the profile's; an empty text means none."""

    model: str
    profile: Profile = field(default_factory=lambda: Profile(PLAIN))
    chosen: dict[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None

    @property
    def system_message(self) -> str | None:
        return (self.profile.system if self.system is None else self.system) or None

    def sampling(self, **changes: Any) -> Mapping[str, Any]:
        """A snapshot of all sampling values in the contract's order of precedence; the model's defaults lie below."""
        values = sampling.overlaid(sampling.overlaid(self.defaults, self.profile.sampling), self.chosen)
        return MappingProxyType({**values, **changes})

    def describe(self) -> str:
        """Every value that is not the model's own, one a line."""
        values = [
            f"{key} {' '.join(map(str, value)) if key in sampling.LISTS else value}"
            for key, value in self.sampling().items()
        ]
        return "\n".join([*(values or ["sampling as the model says"]), f"system {self.system_message or '(none)'}"])

    def set(self, key: str, value: str) -> str:
        """Change one value and say so. Raises UsageError."""
        name = key.lower().replace("-", "_")
        name = _ALIASES.get(name, name)
        if name == "system":
            return self.set_system(value)
        if name not in sampling.KEYS:
            raise UsageError(
                f"there is nothing called {key} to set", f"choose one of {', '.join(sampling.KEYS)}, system"
            )
        if value.lower() in ("default", "none"):
            self.chosen.pop(name, None)
            return f"{name} is back at its default"
        parsed = sampling.chosen(**{name: _parse(name, value)})
        self.chosen = sampling.overlaid(self.chosen, parsed)
        return f"{name} is {value}"

    def set_system(self, text: str) -> str:
        """Change the system message; `-` removes it."""
        self.system = "" if text in ("-", "none") else text
        return "the system message is set" if self.system else "there is no system message now"

    def as_profile(self, name: str) -> Profile:
        """What is set, as a profile: the present one with the flags and the values of /set on top."""
        return Profile(
            name,
            self.profile.description if name == self.profile.name else "",
            self.system_message,
            self.profile.model,
            sampling.overlaid(self.profile.sampling, self.chosen),
            weights=self.profile.weights,
        )

    def use(self, profile: Profile) -> None:
        """Change the profile. Values of /set stay; a system message of /system does not."""
        self.profile = profile
        self.system = None


def _parse(name: str, value: str) -> Any:
    if name == "stop":
        return [value]
    if name in sampling.CONSTRAINTS:
        return read_constraint(name, value)
    try:
        if name == "stop_token_ids":
            return [int(token_id) for token_id in value.replace(",", " ").split()]
        return int(value) if name in _INTEGERS else float(value)
    except ValueError:
        kind = "a whole number" if name in _INTEGERS else "a number"
        kind = "whole numbers" if name == "stop_token_ids" else kind
        raise UsageError(f"{name} is {value!r}; it must be {kind}") from None
