"""The format of weights: which source of it wins, and what does not know it."""

import json
from pathlib import Path

import pytest
from support.cli_process import Dslite

from dslite.app.settings.config_file import Config
from dslite.app.settings.precedence import AnswerSettings, settle
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import UsageError


def _config(path: Path, **tables: object) -> Config:
    return Config(path / "config.toml", tables)


def test_the_flag_wins_over_the_profile_and_the_profile_over_the_defaults(tmp_path: Path) -> None:
    config = _config(tmp_path, defaults={"weights": "int8"}, profiles={"small": {"weights": "int4"}})

    def weights(flag: str | None, profile: str | None) -> str | None:
        return settle(AnswerSettings(weights=flag), profile, None, raw=False, config=config).weights  # type: ignore[arg-type]

    assert weights("bfloat16", "small") == "bfloat16"
    assert weights(None, "small") == "int4"
    assert weights(None, None) == "int8"


def test_an_unknown_format_is_a_usage_error_that_names_the_three() -> None:
    with pytest.raises(UsageError, match="--weights is 'int2'; it must be bfloat16, int8 or int4"):
        EngineOptions(weights="int2")  # type: ignore[arg-type]


def test_answers_name_the_format_of_their_weights(dslite: Dslite, greeter: Path) -> None:
    result = dslite("complete", "-m", str(greeter), "hello", "-o", "json", "--no-save")
    assert result.json["weights"] == "bfloat16"


def test_a_batch_line_that_asks_for_other_weights_is_that_lines_error(dslite: Dslite, greeter: Path) -> None:
    lines = [{"prompt": "hello", "weights": "bfloat16"}, {"prompt": "hello", "weights": "int4"}]
    stdin = "\n".join(map(json.dumps, lines)).encode()
    out = dslite("complete", "-m", str(greeter), "--batch", "-", stdin=stdin).text
    first, second = map(json.loads, out.splitlines())
    assert first["text"] == "hi"
    assert "weights is 'int4'" in second["error"]


def test_a_profile_keeps_the_format(dslite: Dslite) -> None:
    dslite("profile", "add", "small", "--weights", "int4")
    assert dslite("profile", "show", "small", "-o", "json").json["weights"] == "int4"
    assert dslite("profile", "add", "tiny", "--weights", "int3").code == 2
