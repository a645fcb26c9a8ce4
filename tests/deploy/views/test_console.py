"""The terminal shows words as they are, wherever they stand."""

from io import StringIO

from rich.table import Table

from grandrounds.deploy.cli.terminal import say
from grandrounds.deploy.views.console import plain_console, steps

WORDS = "[bold red]ε = 0.01[/] :smile: [link=http://a.b]x[/link]"


def test_brackets_and_colons_are_no_markup_in_lines_and_in_tables() -> None:
    console = plain_console(file=StringIO(), width=100, force_terminal=True, highlight=False)
    table = Table.grid()
    table.add_row(WORDS)
    console.print(WORDS)
    console.print(table)
    assert isinstance(console.file, StringIO)
    assert [line.rstrip() for line in console.file.getvalue().splitlines()] == [WORDS, WORDS]


def test_a_line_that_is_said_is_one_line_and_steers_nothing(capsys) -> None:
    say(["a\x1b[2Jb\nc"])
    assert capsys.readouterr().out == "a�[2Jb�c\n"


def test_without_a_terminal_each_step_is_a_line_of_standard_error_as_it_begins(capsys) -> None:
    with steps() as step:
        step("reading [a] file")
        assert capsys.readouterr() == ("", "reading [a] file …\n")
