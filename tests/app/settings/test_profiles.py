"""Profiles: shipped ones under the user's own, kept in config.toml among whatever else it holds."""

import tomllib
from pathlib import Path

import pytest

from dslite.app.errors import ConfigFileError, NotFoundError
from dslite.app.settings.config_file import read_config
from dslite.app.settings.profile_toml import profile_text, save_profile_text
from dslite.app.settings.profiles import (
    Profile,
    all_profiles,
    default_profile,
    default_values,
    get_profile,
    remove_profile,
    restore_profile,
    save_profile,
    set_default_profile,
    shipped_profiles,
)
from dslite.runtime.errors import UsageError

NESTED = """\
# my settings
[profiles.brief] # short
# why: I read on a phone
system = "Be brief." # two words
colour = "blue"

[chat]
theme = "dark" # at night

[profiles.last]
system = '''
one
two'''
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSLITE_CONFIG_DIR", str(tmp_path))
    return tmp_path / "config.toml"


def test_four_profiles_ship_and_each_is_valid() -> None:
    assert list(shipped_profiles()) == ["plain", "coder", "translator", "terse"]
    assert shipped_profiles()["plain"].system is None
    assert all(profile.description for profile in shipped_profiles().values())
    assert not [name for name, profile in shipped_profiles().items() if name != "plain" and not profile.system]


def test_a_saved_profile_comes_back_as_it_was(file: Path) -> None:
    odd = Profile(
        "brief \u6587",
        "for me",
        'one\ntwo \\ "three" \'\'\'""" \x1b\u2028 tab\t end\n',
        "demo",
        {"temperature": 0.2, "top_k": 5, "stop": ("a", "\n")},
    )
    save_profile(odd)
    assert get_profile(odd.name) == odd
    save_profile(Profile(odd.name, system="short"))
    assert get_profile(odd.name) == Profile(odd.name, system="short")


@pytest.mark.parametrize("name", ["brief", "last", "new", "coder"])
def test_saving_one_profile_leaves_every_other_line(file: Path, name: str) -> None:
    file.write_text(NESTED)
    save_profile(Profile(name, system="Changed.", sampling={"temperature": 0.7}))
    text = file.read_text()
    for comment in ("# my settings", "# short", "# why: I read on a phone", "# at night"):
        assert comment in text
    expected = tomllib.loads(NESTED)
    expected["profiles"].setdefault(name, {})
    expected["profiles"][name] |= {"system": "Changed.", "temperature": 0.7}
    assert tomllib.loads(text) == expected


def test_removing_a_profile_leaves_the_others_and_forgets_it_as_default(file: Path) -> None:
    file.write_text(NESTED)
    set_default_profile("brief")
    assert default_profile().name == "brief"
    remove_profile("brief")
    assert default_profile().name == "plain"
    expected = tomllib.loads(NESTED)
    del expected["profiles"]["brief"]
    assert tomllib.loads(file.read_text()) == {**expected, "defaults": {}}
    assert 'theme = "dark" # at night' in file.read_text()
    with pytest.raises(NotFoundError):
        get_profile("brief")


def test_a_shipped_profile_can_be_changed_removed_and_restored(file: Path) -> None:
    original = get_profile("coder")
    assert original.shipped
    save_profile(Profile("coder", system="mine"))
    assert get_profile("coder") == Profile("coder", system="mine")
    remove_profile("coder")
    assert "coder" not in all_profiles()
    remove_profile("terse")
    assert restore_profile("coder") == original
    assert "terse" not in all_profiles()
    save_profile(Profile("terse", system="mine"))
    assert get_profile("terse").system == "mine"
    assert restore_profile("terse") == shipped_profiles()["terse"]
    assert tomllib.loads(file.read_text()).get("profiles", {}) == {}


def test_only_shipped_profiles_can_be_restored(file: Path) -> None:
    with pytest.raises(NotFoundError, match="ships"):
        restore_profile("brief")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "\x1b[31m", " x"])
def test_names_that_cannot_be_seen_or_typed_are_refused(file: Path, name: str) -> None:
    with pytest.raises(UsageError):
        save_profile(Profile(name))
    assert not file.exists()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("temperature = 5", "temperature is 5; it must be from 0 to 2"),
        ("temperature = 'hot'", "temperature is 'hot'; it must be a number"),
        ("temperature = true", "temperature is True"),
        ("top_k = 1.5", "top_k is 1.5"),
        ("temperature = nan", "temperature is nan"),
        ("stop = 3", "stop is 3"),
        ("system = 3", "system is 3; it must be a text"),
    ],
)
def test_a_wrong_value_is_named_with_its_table(file: Path, line: str, fault: str) -> None:
    faults: list[str] = []
    file.write_text(f"[profiles.brief]\n{line}\ndescription = 'd'\n")
    assert all_profiles(read_config(report=faults.append))["brief"] == Profile("brief", "d")
    file.write_text(f"[defaults]\n{line}\nseed = 3\n")
    assert default_values(read_config(report=faults.append)) == {"seed": 3}
    of_profile, of_defaults = faults
    assert fault in of_profile
    assert fault in of_defaults
    assert "[profiles.brief]" in of_profile
    assert "[defaults]" in of_defaults


def test_a_default_profile_that_is_gone_is_named(file: Path) -> None:
    file.write_text("[defaults]\nprofile = 'lost'\n")
    with pytest.raises(NotFoundError, match=r"\[defaults\]: there is no profile 'lost'"):
        default_profile()


def test_a_profile_is_edited_as_text_with_its_comments(file: Path) -> None:
    file.write_text(NESTED)
    text = profile_text("brief")
    assert "# why: I read on a phone" in text
    save_profile_text("brief", text.replace("Be brief.", "Be very brief.") + "temperature = 0.1\n# the end\n")
    assert get_profile("brief").system == "Be very brief."
    assert get_profile("brief").sampling == {"temperature": 0.1}
    saved = file.read_text()
    assert "# why: I read on a phone" in saved
    assert "# the end" in saved
    assert tomllib.loads(saved)["profiles"]["brief"]["colour"] == "blue"
    assert tomllib.loads(saved)["chat"] == {"theme": "dark"}


@pytest.mark.parametrize(("text", "fault"), [("system = ", "line 1, column"), ("temperature = 9", "from 0 to 2")])
def test_a_wrong_edit_changes_nothing(file: Path, text: str, fault: str) -> None:
    file.write_text(NESTED)
    with pytest.raises(ConfigFileError, match=fault):
        save_profile_text("brief", text)
    assert file.read_text() == NESTED


def test_a_shipped_profile_is_edited_as_text_into_one_of_the_users(file: Path) -> None:
    save_profile_text("terse", profile_text("terse") + "temperature = 0.5\n")
    assert get_profile("terse").sampling == {"temperature": 0.5}
    assert get_profile("terse").system == shipped_profiles()["terse"].system
