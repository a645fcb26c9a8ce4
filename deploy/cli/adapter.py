"""``grandrounds adapter``: a finished adapter tried, merged into its base model, exported for llama.cpp."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .terminal import say

if TYPE_CHECKING:
    from ..adapter.finished import FinishedAdapter

adapter = typer.Typer(
    name="adapter",
    help="Use a finished adapter. It is first compared with its study, and its base model with the study's.",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder, or an adapter's alone.")]
Base = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Folder or hub name of the base model, if it is not where the study has it."),
]


@adapter.command(name="try")
def try_(
    folder: Folder,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to continue; without it, standard input is read.")
    ] = None,
    base: Base = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=8192, help="The most tokens to add.")] = 64,
) -> None:
    """Continue a prompt without the adapter and with it, side by side, each time by the likeliest token."""
    if prompt is None and sys.stdin.isatty():
        say(["Type the prompt, and end it with Ctrl-D on a line of its own:"])
    text = sys.stdin.read().rstrip("\n") if prompt is None else prompt
    found, place = _opened(folder, base)
    from ...common.data.tokenisation import load_tokenizer
    from ..adapter.trial import continuations
    from ..views.continuations import print_continuations

    model = found.on(place)
    say([f"the prompt is continued twice, by up to {max_new_tokens} tokens, on the base model in {found.precision}"])
    print_continuations(continuations(model, load_tokenizer(str(place)), text, max_new_tokens=max_new_tokens))


@adapter.command()
def merge(
    folder: Folder,
    output: Annotated[Path, typer.Option(metavar="OUT", help="The folder to write; there must be none.")],
    base: Base = None,
) -> None:
    """Write base model and adapter as one model that transformers and vLLM load without peft, and compare it."""
    found, place = _opened(folder, base)
    from ..adapter.merge import merge as merged

    say(merged(found, place, output))


@adapter.command()
def export(
    folder: Folder,
    gguf: Annotated[Path, typer.Option(metavar="FILE", help="The GGUF file to write; there must be none.")],
    base: Base = None,
    precision: Annotated[
        Literal["f32", "f16"], typer.Option(help="Of the weights; llama-quantize makes smaller ones of the file.")
    ] = "f16",
) -> None:
    """Write base model and adapter as a GGUF file for llama.cpp, read it again and compare it."""
    found, place = _opened(folder, base)
    from ..adapter.gguf_file import export_gguf

    say(export_gguf(found, place, gguf, precision=precision))


def _opened(folder: Path, base: str | None) -> "tuple[FinishedAdapter, Path]":
    """The adapter and its base model's folder, which is compared when it is loaded."""
    say([f"the adapter in {folder} is read, and held against its study"])
    from ..adapter.finished import FinishedAdapter

    found = FinishedAdapter.read(folder)
    say([f"it is {found.origin}"])
    place = found.base_folder(base)
    say([f"the base model, {found.published}, is loaded from {place}"])
    return found, place
