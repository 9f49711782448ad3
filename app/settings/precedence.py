"""The settings of an answer: flags, then the profile, then [defaults] of config.toml.

What none of them says comes from the model's generation_config.json, and after that from SamplingParams.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from dslite.app.errors import NotFoundError
from dslite.app.settings.config_file import Config, read_config
from dslite.app.settings.profiles import PLAIN, Profile, default_profile, default_values, get_profile, save_profile
from dslite.app.settings.sampling import overlaid
from dslite.runtime.engine_options import WEIGHTS, Weights
from dslite.runtime.units import parse_time

if TYPE_CHECKING:
    from dslite.app.sessions.store import Conversation


@dataclass(frozen=True)
class AnswerSettings:
    """`model` and `weights` None are the command's own defaults. `sampling` holds keys of SamplingParams."""

    model: str | None = None
    profile: Profile = field(default_factory=lambda: Profile(PLAIN))
    system: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    weights: Weights | None = None


def settle(
    flags: AnswerSettings,
    profile: str | None,
    conversation: "Conversation | None",
    *,
    raw: bool,
    config: Config | None = None,
) -> AnswerSettings:
    """Put flags over a profile over the defaults. Raises NotFoundError, ConfigFileError.

    `profile` is the name given with --profile. A conversation keeps its model and system message, unless flags or that
    profile set others. Raw text has no system message, so only a profile given by name applies to it.
    """
    config = config or read_config()
    defaults = config.table("defaults")
    named = None if profile is None else get_profile(profile, config)
    chosen = named or (Profile(PLAIN) if raw else _implied_profile(config, conversation))
    saved = None
    if conversation is not None:
        saved = AnswerSettings(conversation.model or None, system=conversation.system or "")
    sources = (flags, named, saved, chosen)
    models = (source.model for source in sources if source is not None)
    systems = (source.system for source in sources if source is not None)
    return AnswerSettings(
        next((model for model in models if model), config.text("defaults", "model")),
        chosen,
        next((system for system in systems if system is not None), defaults.get("system")) or None,
        overlaid(overlaid(default_values(config), chosen.sampling), flags.sampling),
        flags.weights or cast(Weights | None, chosen.weights) or default_weights(config),
    )


def default_weights(config: Config | None = None) -> Weights | None:
    """`weights` of [defaults]. Raises ConfigFileError."""
    value = (config or read_config()).text("defaults", "weights")
    return value if value in WEIGHTS else None


def keep_alive(config: Config | None = None) -> float | None:
    """Seconds that a warm engine outlives its last answer; None: none is started. Raises ConfigFileError."""
    value = (config or read_config()).table("engine").get("keep_alive")
    return parse_time(str(value)) or None if value is not None else None


def _implied_profile(config: Config, conversation: "Conversation | None") -> Profile:
    """The conversation's profile if it still exists, else the plain one; without a conversation the default one."""
    if conversation is None:
        return default_profile(config)
    try:
        return get_profile(conversation.profile or PLAIN, config)
    except NotFoundError:
        return Profile(PLAIN)


def save_flags(name: str | None, flags: AnswerSettings, base: str | None) -> bool:
    """Save the flags as the profile `name`, over the profile `base`; whether a name was given. Raises NotFoundError."""
    if name is None:
        return False
    below = Profile(name) if base is None else replace(get_profile(base), name=name, shipped=False)
    save_profile(
        replace(
            below,
            model=flags.model or below.model,
            weights=flags.weights or below.weights,
            system=below.system if flags.system is None else flags.system or None,
            sampling=overlaid(below.sampling, flags.sampling),
        )
    )
    return True
