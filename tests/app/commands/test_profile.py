"""`dslite profile` from outside."""

import pytest
from support.cli_process import Dslite


def test_profiles_are_listed_with_a_star_at_the_default_one(dslite: Dslite) -> None:
    head, *rows = dslite("profile", "list").text.splitlines()
    assert head.split() == ["NAME", "MODEL", "DESCRIPTION"]
    assert [row.split()[0] for row in rows] == ["plain*", "coder", "translator", "terse"]
    assert dslite("profile", "default", "coder").code == 0
    assert dslite("profile", "default").text == "coder\n"
    shown = dslite("profile", "list", "-o", "json").json
    assert [(profile["name"], profile["default"], profile["shipped"]) for profile in shown] == [
        ("plain", False, True),
        ("coder", True, True),
        ("translator", False, True),
        ("terse", False, True),
    ]


def test_a_profile_is_added_shown_changed_by_flags_and_removed(dslite: Dslite) -> None:
    (dslite.folder / "system.txt").write_text("Be brief.\nVery.")
    flags = [
        "--system-file",
        "system.txt",
        "-t",
        "0.2",
        "--stop",
        "a",
        "--stop",
        "b",
        "-m",
        "demo",
        "--description",
        "d",
    ]
    assert dslite("profile", "add", "brief", *flags).code == 0
    expected = {
        "description": "d",
        "system": "Be brief.\nVery.",
        "model": "demo",
        "temperature": 0.2,
        "stop": ["a", "b"],
    }
    common = {"name": "brief", "default": False, "shipped": False}
    assert dslite("profile", "show", "brief", "--json").json == common | expected
    assert 'system = """Be brief.\nVery."""\n' in dslite("profile", "show", "brief").text
    again = dslite("profile", "add", "brief")
    assert (again.code, again.out) == (2, b"")
    assert "dslite profile edit brief" in again.err.decode()
    assert dslite("profile", "edit", "brief", "-s", "", "--top-p", "0.5").code == 0
    del expected["system"]
    assert dslite("profile", "show", "brief", "--json").json == common | expected | {"top_p": 0.5}
    assert dslite("profile", "rm", "brief").code == 0
    assert dslite("profile", "show", "brief").code == 1
    assert dslite("profile", "edit", "brief", "-t", "0").code == 1


def test_a_profile_is_edited_in_the_users_editor(dslite: Dslite) -> None:
    dslite("profile", "add", "brief", "-s", "Be brief.")
    editor = dslite.folder / "my editor"
    editor.write_text("#!/bin/sh\nsed -i 's/brief/very brief/' \"$2\"; echo '# edited' >> \"$2\"\n")
    editor.chmod(0o755)
    env = {"EDITOR": "false", "VISUAL": f"'{editor}' --wait", "DSLITE_MODEL": "coder", "DSLITE_TEMPERATURE": "1"}
    assert dslite("profile", "edit", "brief", env=env).code == 0
    assert dslite("profile", "show", "brief").text == 'system = "Be very brief."\n# edited\n'
    failed = dslite("profile", "edit", "brief", env={"EDITOR": "false"})
    assert (failed.code, failed.out) == (1, b"")
    assert "ended with 1" in failed.err.decode()
    broken = dslite("profile", "edit", "brief", env={"EDITOR": "sh -c 'echo oops > \"$0\"'"})
    assert broken.code == 1
    assert "line 1, column" in broken.err.decode()
    assert dslite("profile", "show", "brief").text == 'system = "Be very brief."\n# edited\n'


def test_a_shipped_profile_that_was_removed_can_be_restored(dslite: Dslite) -> None:
    assert dslite("profile", "rm", "terse").code == 0
    assert "terse" not in dslite("profile", "list").text
    assert dslite("profile", "restore", "terse").code == 0
    assert "terse" in dslite("profile", "list").text
    assert dslite("profile", "restore", "nonsense").code == 1


@pytest.mark.parametrize(
    "args", [["add", "x", "-t", "3"], ["add", "x\ny"], ["edit", "coder", "--top-k", "-1"], ["add"]]
)
def test_a_wrong_flag_or_name_is_a_usage_error_and_writes_nothing(dslite: Dslite, args: list[str]) -> None:
    result = dslite("profile", *args)
    assert (result.code, result.out) == (2, b"")
    assert not (dslite.folder / "config" / "config.toml").exists()


def test_a_broken_config_file_is_named_with_its_place_and_stays(dslite: Dslite) -> None:
    config = dslite.folder / "config" / "config.toml"
    config.parent.mkdir()
    config.write_text("[profiles.a]\nsystem = 'x\n")
    for args in (
        ["list"],
        ["add", "b", "-s", "x"],
        ["edit", "coder", "-t", "0"],
        ["rm", "coder"],
        ["default", "coder"],
    ):
        result = dslite("profile", *args)
        assert (result.code, result.out) == (1, b""), args
        assert "line 2, column" in result.err.decode()
    assert config.read_text() == "[profiles.a]\nsystem = 'x\n"
