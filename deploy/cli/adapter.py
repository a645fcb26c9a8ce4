"""``grandrounds adapter``: a first one, made or continued; a finished one tried, merged, exported for llama.cpp."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .terminal import say

if TYPE_CHECKING:
    from ...common.study.study import Study
    from ..adapter.finished import FinishedAdapter

adapter = typer.Typer(
    name="adapter",
    help="Make a first adapter, of public text or a study's; use a finished one, held against its study.",
    no_args_is_help=True,
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A study's folder, or an adapter's alone.")]
Base = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Folder or hub name of the base model, if it is not where the study has it."),
]
Vouched = Annotated[
    str | None,
    typer.Option(metavar="HASH", help="The SHA-256 of the study's manifest, as somebody you trust tells it."),
]
_NAMED = "its SHA-256 is {}, by which a study that is fixed names it"


@adapter.command()
def prepare(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A study that names the file, as first_adapter.")],
    public_text: Annotated[
        Path, typer.Option(metavar="FILE", help="Records of nobody who has to be protected (.jsonl .csv .parquet).")
    ],
    said: Annotated[
        str | None,
        typer.Option(metavar="WORDS", help="What they are, for the report (default: the file's name)."),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=0, max=1000, help="Steps of the study's training on them, without noise, to begin after.")
    ] = 0,
) -> None:
    """Make what a study begins with of public text: A, of a core adapter B, and a start that is trained on it."""
    from ...common.system.files import write_atomically
    from ..views.console import steps as shown

    described, output = _begun(study)
    with shown() as step:
        step("loading PyTorch")
        from ..plan.first_adapter import prepare as prepared

        made = prepared(described, public_text, said=said or public_text.name, steps=steps, tell=step)
    write_atomically(output, made.first.data)
    short = []
    if described.privacy.clipping_norm > 2 * made.norm:
        longer = described.privacy.clipping_norm / made.norm
        short = [f"the noise is for gradients {longer:.3g} times as long, of the clipping norm: choose a larger alpha"]
    say(
        [
            f"{output} is the first adapter, of {made.units} public units: {made.first.made.text}",
            _NAMED.format(made.first.sha256),
            f"where A reads lie {made.caught:.1%} of the mean gradient's squared norm there; of an A that is drawn it "
            f"would be {made.by_chance:.2%}",
            f"A's rows are {made.scale:.3g} times as long as drawn ones, so that a unit's gradient has the same norm "
            f"({made.norm:.3g} in the median), and clipping norm and rate are those of the study",
            *short,
        ]
    )


@adapter.command(name="continue")
def continue_(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="A study that names the file, as first_adapter.")],
    finished: Annotated[Path, typer.Option("--from", metavar="DIR", help="The folder of the study that has ended.")],
    manifest_hash: Annotated[
        str | None,
        typer.Option(
            metavar="HASH", help="The SHA-256 of the earlier study's manifest, as somebody you trust tells it."
        ),
    ] = None,
) -> None:
    """Begin a study with what another one left: its next stage. Each has a claim, and who is in both bears the sum."""
    from ...common.system.files import write_atomically
    from ..adapter.continuation import continued
    from ..adapter.finished import FinishedAdapter

    described, output = _begun(study)
    first = continued(described, FinishedAdapter.read(finished, manifest_hash=manifest_hash))
    whose = "as you expected" if manifest_hash else "which nothing shows to be the study that you mean: --manifest-hash"
    say(  # before anything is written
        [
            f"the earlier study is that of the manifest {first.made.study_sha256}, {whose}",
            f"what it left is {first.made.text}; a patient of both studies bears the sum of both ε and of both δ, as "
            "far as both are claims for patients at as many sites",
            f"{output} becomes the first adapter; {_NAMED.format(first.sha256)}",
        ]
    )
    write_atomically(output, first.data)
    say([f"{output} is written"])


def _begun(study: Path) -> "tuple[Study, Path]":
    """A study that names its first adapter, and where that is to be, where nothing is yet. Raises GrandRoundsError."""
    from ...common.errors import StudyError
    from ..adapter.output import require_absent
    from ..simulation.config import read_simulation, read_tables

    described, _ = read_simulation(read_tables(study, {}))
    if described.model.first_adapter is None:
        raise StudyError(
            f"{study} names no first adapter",
            why="what is made is written where the study will read it",
            fix='add first_adapter = "first.safetensors" to its [model]',
        )
    output = Path(described.model.first_adapter)
    require_absent(output)
    return described, output


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
def groups(
    folder: Folder,
    records: Annotated[
        Path,
        typer.Argument(metavar="RECORDS", help="With one or more columns of age, sex, race, language, diagnosis."),
    ],
    against: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Another adapter, as one trained without noise: what does the noise cost?"),
    ] = None,
    base: Base = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell whom the adapter serves worse, by groups of people in records that nothing trained on; nothing is kept."""
    from ..views.console import steps as shown

    with shown() as step:
        step(f"measuring on {records.name}")
        from ..adapter.by_group import by_group
        from ..adapter.finished import FinishedAdapter

        found = FinishedAdapter.read(folder)
        other = None if against is None else FinishedAdapter.read(against)
        measured = by_group(found, found.base_folder(base), records, other=other)
    from ..views.groups import group_figures, print_groups

    if as_json:
        typer.echo(json.dumps(group_figures(measured), ensure_ascii=False))
    else:
        print_groups(measured)


@adapter.command()
def merge(
    folder: Folder,
    output: Annotated[Path, typer.Option(metavar="OUT", help="The folder to write; there must be none.")],
    base: Base = None,
    manifest_hash: Vouched = None,
) -> None:
    """Write base model and adapter as one model that transformers and vLLM load without peft, and compare it."""
    found, place = _opened(folder, base, manifest_hash)
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
    manifest_hash: Vouched = None,
) -> None:
    """Write base model and adapter as a GGUF file for llama.cpp, read it again and compare it."""
    found, place = _opened(folder, base, manifest_hash)
    from ..adapter.gguf_file import export_gguf

    say(export_gguf(found, place, gguf, precision=precision))


@adapter.command()
def attack(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `grandrounds simulate` wrote.")],
    attach: Annotated[
        bool, typer.Option("--attach", help="Put the scores beside the report, as attacks.json: of patients of nobody.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Attack a simulation's adapter: who was trained on, and what is continued verbatim, beside what ε allows.

    A site attacks a finished study's adapter with records of its own: `grandrounds client fetch DIR --attack`.
    """
    from ..views.console import steps as shown

    with shown() as step:
        from ...common.audit.attack_scores import require_of_nobody
        from ...common.study.artefacts import ATTACKS
        from ...common.system.code_pin import check_code
        from ...common.system.files import write_atomically
        from ...server.report.attacks import findings_of
        from ..simulation.folder import SimulationFolder
        from .audit import require_free

        if attach:
            require_free(folder / ATTACKS)
            signed = SimulationFolder.open(folder).manifest()
            require_of_nobody(signed.study, app_sha256=signed.app_sha256)
            check_code(version=signed.package_version, sha256=signed.package_sha256)  # or nobody would take the scores
        step("loading PyTorch")
        from ..attacks.simulation import attack_simulation

        manifest, evidence = attack_simulation(folder, tell=step)
        found = findings_of(evidence, manifest)
        if attach:
            write_atomically(folder / ATTACKS, evidence.to_json())
    if as_json:
        typer.echo(json.dumps({**found.model_dump(mode="json"), "promised_auc": found.promised_auc}))
    else:
        written = [f"the scores are in {folder / ATTACKS}, which `grandrounds verify {folder}` checks from now on"]
        say([*found.lines(), *(written if attach else [])])


def _opened(folder: Path, base: str | None, manifest_hash: str | None = None) -> "tuple[FinishedAdapter, Path]":
    """The adapter and its base model's folder, which is compared when it is loaded."""
    say([f"the adapter in {folder} is read, and held against its study"])
    from ..adapter.finished import FinishedAdapter

    found = FinishedAdapter.read(folder, manifest_hash=manifest_hash)
    say([f"it is {found.origin}"])
    place = found.base_folder(base)
    say([f"the base model, {found.published}, is loaded from {place}"])
    return found, place
