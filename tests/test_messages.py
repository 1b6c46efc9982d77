import pytest

from onnxprune.messages import TEXT_LIMIT, one_line, quoted, visible, without_commands


def test_first_line_that_says_something():
    assert one_line("\n\n  first  \nsecond") == "first"
    assert one_line("") == "no reason given"


def test_control_and_bidirectional_characters_are_shown():
    assert one_line("a\x1b[2Jb\tc\rd\u202ee\u2028f") == r"a\x1b[2Jb\tc\rd\u202ee\u2028f"
    assert one_line("größe 日本") == "größe 日本"


def test_cut_at_the_limit():
    assert len(one_line("x" * 10_000)) == TEXT_LIMIT
    assert one_line("x" * TEXT_LIMIT) == "x" * TEXT_LIMIT
    assert one_line("\x00" * 300).endswith("...")
    assert len(one_line("\x00" * 300)) == TEXT_LIMIT


def test_names_in_quotes():
    assert quoted("weight") == "'weight'"
    assert quoted("it's") == '"it\'s"'
    assert quoted("a\nb\x1b\u202e") == r"'a\nb\x1b\u202e'"
    assert quoted("x" * 200) == "'" + "x" * 75 + "...'"
    assert len(quoted("x" * 200)) == 80


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("::error file=a::b", r"\x3a:error file=a::b"),
        (" ::set-env name=a::b", r" \x3a:set-env name=a::b"),
        ("a ::stop-commands::x", r"a \x3a:stop-commands::x"),
        ("##[error]x", r"\x23#[error]x"),
        ("a##vso[task.setvariable]b", r"a\x23#vso[task.setvariable]b"),
        ("##teamcity[buildStop]", r"\x23#teamcity[buildStop]"),
        ("aten::conv/a##b ## c [d] #[e]", "aten::conv/a##b ## c [d] #[e]"),
    ],
)
def test_commands_of_build_servers_are_none(text, shown):
    assert visible(text) == without_commands(text) == shown
    assert quoted(text) == f"'{shown}'"
    assert one_line(text) == shown.strip()


def test_a_command_in_several_lines():
    assert without_commands("a\n::error::b\n  ::warning::c") == "a\n\\x3a:error::b\n  \\x3a:warning::c"
