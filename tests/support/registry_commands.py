"""``grandrounds registry`` in this process, as its tests call it."""

from pathlib import Path

from click.testing import Result
from typer.testing import CliRunner

from grandrounds.deploy.cli.registry import registry as commands


def ran(*words: str | Path) -> Result:
    """What a command comes to."""
    return CliRunner().invoke(commands, list(map(str, words)))


def done(*words: str | Path) -> str:
    """What a command prints, which must not fail."""
    result = ran(*words)
    assert result.exit_code == 0, result.exception
    return result.stdout
