"""Every number is checked with its range before it reaches an allocation, a thread pool or native code."""

import io
import sys
from pathlib import Path

import pytest
from support import in_process
from support.cli_process import Dslite
from support.paths import path_variables

from dslite.runtime.engine.sampling_params import SamplingParams
from dslite.runtime.engine_options import EngineOptions
from dslite.runtime.errors import UsageError

HUGE = "9" * 40
FLAGS = [
    ("complete", "--threads", ["100000", "0", "-1", "1025", "2147483648", HUGE], "from 1 to 1024"),
    ("complete", "--ctx-size", ["0", "-1", "2147483648", HUGE], "from 1 to 4096"),
    ("complete", "--expert-slots", ["0", "-1", "100000", HUGE], "--expert-slots"),
    ("complete", "--vram", ["0", "-1GiB", "inf", "nan", "1e3", HUGE, "9" * 18 + "TiB", ""], "--vram"),
    ("complete", "--ram", ["0", "-1GiB", "inf", "nan", HUGE, "9999999999TiB"], "--ram"),
    ("complete", "--device", ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:" + HUGE, "cpu:0"], "--device"),
    ("complete", "--logprobs", ["-1", "21", HUGE], "from 0 to 20"),
    ("complete", "--top-k", ["-1", "2147483648", HUGE], "from 0 (off) to 2^31 - 1"),
    ("complete", "--max-tokens", ["-1", "2147483648", HUGE], "from 0 to 2^31 - 1"),
    ("complete", "--seed", ["-1", "9223372036854775808", HUGE], "from 0 to 2^63 - 1"),
    ("complete", "--temperature", ["nan", "inf", "-inf", "-0.1", "2.1", "1e400"], "from 0 to 2"),
    ("complete", "--top-p", ["nan", "inf", "0", "-1", "1.01"], "above 0, up to 1"),
    ("complete", "--min-p", ["nan", "inf", "-0.1", "1.1"], "from 0 to 1"),
    ("complete", "--repetition-penalty", ["nan", "inf", "0", "-1", "11"], "above 0, up to 10"),
    ("serve", "--port", ["-1", "65536", HUGE], "from 0 to 65535"),
    ("serve", "--parallel", ["0", "-1", "257", HUGE], "from 1 to 256"),
    ("serve", "--queue", ["0", "-1", HUGE], "from 1 to 65536"),
    ("serve", "--timeout", ["0", "-1", "nan", "inf", "1e300"], "from 1 to 604800"),
    ("serve", "--threads", ["100000"], "from 1 to 1024"),
    ("bench", "--threads", ["100000"], "from 1 to 1024"),
    ("bench", "--repeat", ["0", "-1", HUGE], "from 1 to 1000"),
    ("bench", "--batch-size", ["0", "-1", "1000000000", HUGE], "from 1 to 1024"),
    ("bench", "--gen-tokens", ["-1", HUGE], "from 0 to 2147483647"),
    ("bench", "--prompt-tokens", ["0", "-1", "1,-1", HUGE], "from 1 to 2147483647"),
    ("bench", "--depth", ["-1", "0,-5", HUGE], "from 0 to 2147483647"),
    ("plan", "--pcie", ["nan", "inf", "0", "-1", "1e300"], "above 0"),
    ("plan", "--gpu-bandwidth", ["nan", "inf", "0", "-1"], "above 0"),
    ("plan", "--ram-bandwidth", ["nan", "inf", "0", "-1"], "above 0"),
    ("plan", "--disk-bandwidth", ["nan", "inf", "0", "-1"], "above 0"),
    ("plan", "--ctx-size", ["0", "-1", HUGE], "from 1 to 4096"),
    ("session list", "--limit", ["0", "-1", "2147483648", HUGE], "from 1 to 2147483647"),
    ("session search x", "--limit", ["0", "-1", HUGE], "from 1 to 2147483647"),
]
ROWS = [(name, flag, value, named) for name, flag, values, named in FLAGS for value in values]
MODEL = {"complete": ["x", "--no-save"], "serve": [], "bench": [], "plan": []}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> in_process.Dslite:
    """The command line in this process: no process starts for each of the rows."""
    for name, folder in path_variables(tmp_path).items():
        monkeypatch.setenv(name, folder)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    return in_process.Dslite(monkeypatch, capsys)


@pytest.mark.parametrize(("name", "flag", "value", "named"), ROWS)
def test_a_flag_out_of_range_is_a_usage_error_that_names_it(
    name: str, flag: str, value: str, named: str, here: in_process.Dslite
) -> None:
    words = [*name.split(), *(["-m", "demo", *MODEL[name]] if name in MODEL else []), f"{flag}={value}"]
    code, out, err = here(*words)
    assert (code, out) == (2, "")
    assert named in err


@pytest.mark.parametrize(("name", "flag", "value", "named"), [row for row in ROWS if row[0] in MODEL and row[2]][::5])
def test_its_variable_is_checked_alike(
    name: str, flag: str, value: str, named: str, here: in_process.Dslite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"DSLITE_{flag[2:].replace('-', '_').upper()}", value)
    code, out, err = here(name, "-m", "demo", *MODEL[name])
    assert (code, out) == (2, "")
    assert named in err


@pytest.mark.parametrize(
    "line",
    ["temperature = nan", "top_k = 99999999999", "max_tokens = -1", "top_p = inf", "seed = -1", "min_p = 2"],
)
@pytest.mark.parametrize("table", ["defaults", "profiles.odd"])
def test_a_key_of_the_config_file_is_named_and_left_out(table: str, line: str, dslite: Dslite, greeter: Path) -> None:
    file = dslite.folder / "config" / "config.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"[{table}]\n{line}\n")
    done = dslite("complete", "-m", str(greeter), "--profile", "odd" if "odd" in table else "plain", "x")
    assert (done.code, done.out) == (0, b"hi\n"), "what is wrong is left out, and the rest applies"
    assert f"{line.split()[0]} is {line.split()[-1]}; it must be" in done.err.decode()


@pytest.mark.parametrize(
    "value",
    ['"temperature": NaN', '"top_k": 99999999999', f'"max_tokens": {HUGE}', '"top_p": Infinity', f'"seed": -{HUGE}'],
)
def test_a_batch_line_is_checked_alike(value: str, dslite: Dslite, greeter: Path) -> None:
    lines = f'{{"prompt": "x", {value}}}\n{{"prompt": "x"}}\n'
    done = dslite("complete", "-m", str(greeter), "--batch", "-", stdin=lines.encode())
    bad, good = done.lines
    assert set(bad) == {"id", "error"}
    assert good["text"] == "hi"


@pytest.mark.parametrize("slots", [1, 1024])
def test_the_ends_of_a_range_are_taken(slots: int) -> None:
    assert EngineOptions(threads=slots).threads == slots


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": True},
        {"threads": 2.0},
        {"dtype": "float16"},
        {"dtype": "int8"},
        {"miss": "drop"},
        {"device": ""},
        {"vram": "12GiB"},
        {"ram": -1},
    ],
)
def test_options_of_the_library_check_themselves(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        EngineOptions(**wrong)  # type: ignore[arg-type]


def test_the_smallest_temperature_still_answers(dslite: Dslite, greeter: Path) -> None:
    done = dslite("complete", "-m", str(greeter), "--no-save", "-t", "1e-300", "x")
    assert (done.code, done.text) == (0, "hi\n")


def test_unbounded_integers_stay_out_of_sampling() -> None:
    with pytest.raises(UsageError, match=r"top_k is .*from 0 \(off\)"):
        SamplingParams(top_k=2**31)
