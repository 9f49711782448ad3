"""From a function with groups of flags to a command of the command line.

A group is a frozen dataclass whose fields are annotated with `flag(...)`. A command names a group as the type of one
parameter; `command` puts the group's flags into the command's signature and hands the function one typed object. So a
flag that is added to a group reaches every command that has the group.

The command line wins over the environment, also where flags exclude each other: a variable's value gives way to an
exclusive flag on the command line, and only two flags on the command line are an error. Groups declare such rules in
`RULES`, commands with `@rules`.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, TypeVar

import typer
from typer.models import ArgumentInfo, OptionInfo

from dslite.app.terminal import console
from dslite.app.terminal.log_file import keep_log
from dslite.app.terminal.signals import ending_at_once
from dslite.runtime.engine_options import check_choice
from dslite.runtime.errors import UsageError

OUTPUTS = ("text", "json", "jsonl", "md")  # what DSLITE_OUTPUT may say; each command takes some of them
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Excludes:
    """A flag that does not go with some others; parameter names. `message` None: the usual one.

    With `alias` they are two ways to say one thing, and both on the command line are no error.
    """

    name: str
    others: tuple[str, ...]
    message: str | None = None
    alias: bool = False


@dataclass(frozen=True)
class Needs:
    """A flag that means nothing without another one."""

    name: str
    other: str


@dataclass(frozen=True)
class Describes:
    """A flag that describes another one's value: the variable of the first does not fit a value of the command line."""

    name: str
    other: str


Rule = Excludes | Needs | Describes


def flag(*names: str, choices: tuple[str, ...] = (), **settings: Any) -> Any:
    """An option that is also read from the environment: --some-flag from DSLITE_SOME_FLAG, its aliases not.

    `choices` are all its values. A variable may hold a value of `OUTPUTS` that this command does not know.
    """
    longest = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = f"DSLITE_{longest[2:].replace('-', '_').upper()}"
    if choices:
        settings.setdefault("autocompletion", lambda incomplete: [c for c in choices if c.startswith(incomplete)])
    info = typer.Option(*names, envvar=variable, show_envvar=False, **settings)
    info.choices = choices
    return info


_EVERYWHERE = {
    "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")],
}


def rules(*declared: Rule) -> Callable[[_Function], _Function]:
    """Declare which of a command's own flags exclude or need each other."""

    def declare(function: _Function) -> _Function:
        function.__dict__["rules"] = declared
        return function

    return declare


def command_line_only(function: _Function) -> _Function:
    """Let a command ignore what the environment says of its flags."""
    function.__dict__["command_line_only"] = True
    return function


def handles_signals(function: _Function) -> _Function:
    """Leave signals to a command; any other one is ended by them, except where it keeps what it has made."""
    function.__dict__["handles_signals"] = True
    return function


def command(function: Callable[..., Any]) -> Callable[..., None]:
    """Expand a function's groups of flags, check its rules, and give it the flags that work everywhere."""
    own = inspect.signature(function).parameters.values()
    groups: dict[str, Any] = {each.name: each.annotation for each in own if is_dataclass(each.annotation)}
    parameters = [each for parameter in own for each in _expanded(parameter)]
    everywhere = [_keyword(name, kind, False) for name, kind in _EVERYWHERE.items()]
    declared = [*function.__dict__.get("rules", ()), *(rule for kind in groups.values() for rule in kind.RULES)]

    @functools.wraps(function)
    def wrapper(*, context: typer.Context, debug: bool, quiet: bool, verbose: bool, **arguments: Any) -> None:
        console.configure(debug=debug, quiet=quiet, verbose=verbose)
        given = _Given(context, {parameter.name: parameter for parameter in parameters}, arguments)
        if function.__dict__.get("command_line_only"):
            given.drop_environment()
        given.check(declared)
        keep_log(answers=not given.values.get("no_save", False))
        values = dict(given.values)
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
        with nullcontext() if function.__dict__.get("handles_signals") else ending_at_once():
            function(**values)
            sys.stdout.flush()

    signature = [*parameters, *everywhere, _keyword("context", typer.Context, inspect.Parameter.empty)]
    wrapper.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    return wrapper


def _expanded(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """A parameter, or those that a group stands for."""
    if not is_dataclass(parameter.annotation):
        return [parameter]
    return [_keyword(field.name, field.type, field.default) for field in fields(parameter.annotation)]


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


class _Given:
    """The values of a call, and where each comes from."""

    def __init__(
        self, context: typer.Context, parameters: Mapping[str, inspect.Parameter], values: Mapping[str, Any]
    ) -> None:
        self.values = dict(values)
        self._parameters = parameters
        self._sources = {name: getattr(context.get_parameter_source(name), "name", "DEFAULT") for name in values}

    def check(self, declared: Sequence[Rule]) -> None:
        """Settle exclusive flags and values that a command does not know. Raises UsageError."""
        for name, parameter in self._parameters.items():
            self._check_choice(name, getattr(_info(parameter), "choices", ()))
        for rule in declared:
            match rule:
                case Excludes():
                    for other in rule.others:
                        self._exclude(rule, other)
                case Needs(name, other) if self._is_given(name) and not self._is_given(other):
                    if not self._from_environment(name):
                        raise UsageError(f"{self._label(name)} needs {self._label(other)}", "give both, or neither")
                    self._drop(name)
                case Describes(name, other) if self._from_environment(name) and not self._from_environment(other):
                    if self._is_given(other):
                        self._drop(name)

    def drop_environment(self) -> None:
        for name in self.values:
            if self._from_environment(name):
                self._drop(name)

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = self.values.get(name)
        if not choices or value in choices:
            return
        if self._from_environment(name) and value in OUTPUTS:
            self._drop(name)
        else:
            check_choice(self._label(name), value, choices)

    def _exclude(self, rule: Excludes, other: str) -> None:
        if not (self._is_given(rule.name) and self._is_given(other)):
            return
        first, second = self._from_environment(rule.name), self._from_environment(other)
        if first != second:
            self._drop(rule.name if first else other)
        elif not rule.alias:
            message = rule.message or f"{self._label(rule.name)} does not go with {self._label(other)}"
            raise UsageError(message, "leave one of them out")

    def _is_given(self, name: str) -> bool:
        value = self.values[name]
        return self._sources[name] != "DEFAULT" and value is not None and value is not False and value != []

    def _from_environment(self, name: str) -> bool:
        return self._sources[name] == "ENVIRONMENT"

    def _drop(self, name: str) -> None:
        default = self._parameters[name].default
        self.values[name] = None if default is inspect.Parameter.empty else default
        self._sources[name] = "DEFAULT"

    def _label(self, name: str) -> str:
        """How a user names a parameter: --some-flag, or "a prompt" of an argument."""
        info = _info(self._parameters[name])
        if isinstance(info, OptionInfo):
            names = [str(name) for name in (info.default, *(info.param_decls or ()))]
            return next(name for name in names if name.startswith("--"))
        return f"a {(info.metavar or name).strip('[]').lower()}" if isinstance(info, ArgumentInfo) else name


def _info(parameter: inspect.Parameter) -> OptionInfo | ArgumentInfo | None:
    """What an Annotated type says of a parameter to Typer."""
    found = (each for each in getattr(parameter.annotation, "__metadata__", ()) if hasattr(each, "param_decls"))
    return next(found, None)
