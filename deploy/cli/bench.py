"""``grandrounds bench``: what a piece costs on this machine, beside a named baseline, in one run."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ...common.model.base_model import Precision
from .generate import ComputedIn, Guidance

bench = typer.Typer(
    name="bench", help="Measure a piece on this machine beside a named baseline, in one run.", no_args_is_help=True
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@bench.command()
def noise(
    count: Annotated[int, typer.Option(min=1000, max=10**9, help="Draws a repetition.")] = 5_000_000,
    stddev: Annotated[int, typer.Option(min=64, max=2**30, help="Standard deviation in lattice steps.")] = 2**17,
    as_json: AsJson = False,
) -> None:
    """Exact noise from a secret key, beside numpy's normal."""
    _begin("draws of noise")
    from ..bench.noise import bench_noise, noise_line

    figures = bench_noise(count=count, stddev=stddev)
    _print(figures, noise_line(figures), as_json)


@bench.command()
def dp_step(
    model: Annotated[
        str, typer.Option(help="A model's folder or hub name; builtin (SmolLM2-135M); random:1b, random:7b.")
    ] = "builtin",
    records: Annotated[int, typer.Option(min=1, max=10_000, help="Records in a step.")] = 6,
    tokens: Annotated[int, typer.Option(min=8, max=8192, help="Tokens a record.")] = 64,
    batch: Annotated[int, typer.Option(min=0, max=1024, help="Records at a time; 0: as many as a site would.")] = 0,
    target_modules: Annotated[
        str, typer.Option(help="Layers to adapt: by name, comma-separated; all-linear.")
    ] = "v_proj",
    rank: Annotated[int, typer.Option(min=1, max=256, help="Rank of the adapter.")] = 4,
    precision: Annotated[Precision, typer.Option(help="In which the base model is held.")] = "float32",
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute activations again in the backward pass.")
    ] = False,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1.")] = "cpu",
    ranks: Annotated[int, typer.Option(min=1, max=64, help="Devices of one more private step, on all of them.")] = 1,
    repetitions: Annotated[int, typer.Option(min=1, max=1000, help="Steps of each kind; the median counts.")] = 3,
    as_json: AsJson = False,
) -> None:
    """A private training step, beside the same step without privacy and Opacus's, by hooks and by ghost clipping."""
    _begin("private steps; first the model is loaded")
    from ..bench.steps.dp_step import StepBench, lora_on, step_table
    from ..bench.steps.random_models import PREFIX
    from ..builtin.models import base_model_folder

    figures = StepBench(
        model=model if model.startswith(PREFIX) else str(base_model_folder(model)),
        lora=lora_on(target_modules, rank=rank),
        records=records,
        tokens=tokens,
        batch=batch,
        precision=precision,
        checkpointing=checkpointing,
        device=device,
        ranks=ranks,
        repetitions=repetitions,
    ).run()
    _print(figures, step_table(figures), as_json)


@bench.command()
def step(
    dimension: Annotated[int, typer.Option(min=1, max=10**9, help="Trained numbers, about.")] = 40_000_000,
    tokens: Annotated[int, typer.Option(min=8, max=8192, help="Tokens a record.")] = 64,
    width: Annotated[int, typer.Option(min=64, max=16384, help="Width of the layers, which share one weight.")] = 2048,
    rank: Annotated[int, typer.Option(min=1, max=256, help="Rank of the adapter on all of them.")] = 16,
    records: Annotated[int, typer.Option(min=1, max=1000, help="Records in a step, each a unit.")] = 2,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Clip, integers, check and sum of large units, and noise, beside the gradients that they are made of."""
    _begin("a step of many trained numbers")
    from ..bench.steps.unit_sum import SumBench, sum_lines

    figures = SumBench(dimension=dimension, tokens=tokens, width=width, rank=rank, records=records, device=device).run()
    _print(figures, sum_lines(figures), as_json)


@bench.command()
def secagg(
    sites: Annotated[int, typer.Option(min=3, max=1000, help="Sites in the cohort.")] = 20,
    dimension: Annotated[int, typer.Option(min=1, max=10**9, help="Numbers in an update.")] = 1_000_000,
    dropouts: Annotated[int, typer.Option(min=0, help="Sites lost before their masked input.")] = 1,
    modulus_bits: Annotated[Literal["16", "32"], typer.Option(help="16 suits local trust, 32 distributed.")] = "16",
    repetitions: Annotated[int, typer.Option(min=1, help="Attempts of each kind; the fastest counts.")] = 3,
    table: Annotated[bool, typer.Option("--table", help="Ours alone, for larger updates and smaller cohorts.")] = False,
    as_json: AsJson = False,
) -> None:
    """An attempt of secure aggregation, beside Flower's SecAgg+ and the machine's own speed."""
    _begin("attempts of secure aggregation")
    from ..bench.secagg import SecaggBench, secagg_lines, secagg_table, table_lines

    measured = SecaggBench(
        sites=sites,
        dimension=dimension,
        dropouts=dropouts,
        modulus_bits=16 if modulus_bits == "16" else 32,
        repetitions=repetitions,
    )
    if table:
        rows = secagg_table(measured)
        _print({"rows": rows}, table_lines(rows), as_json)
        return
    figures = measured.run()
    _print(figures, secagg_lines(figures, measured), as_json)


@bench.command()
def accountant(
    sites: Annotated[int, typer.Option(min=1, max=1000, help="Sites, each with noise of its own in each round.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds.")] = 40,
    identical: Annotated[int, typer.Option(min=1, max=1_000_000, help="Releases that are all alike.")] = 100_000,
    as_json: AsJson = False,
) -> None:
    """Epsilon of releases that differ in their noise, beside dp_accounting on a few of them."""
    _begin("the accountant")
    from ..bench.accountant import accountant_lines, bench_accountant

    figures = bench_accountant(sites=sites, rounds=rounds, identical=identical, for_library=20)
    _print(figures, accountant_lines(figures), as_json)


@bench.command()
def data(
    model: Annotated[str, typer.Option(help="A model folder or hub name, for its tokenizer.")] = "builtin",
    notes: Annotated[int, typer.Option(min=100, max=10**8, help="Notes that are made up.")] = 10_000,
    words: Annotated[int, typer.Option(min=1, max=100_000, help="Words of each.")] = 300,
    max_tokens: Annotated[int, typer.Option(min=8, max=8192, help="Tokens of a window.")] = 384,
    table: Annotated[bool, typer.Option("--table", help="10,000, 100,000 and 1,000,000 notes: half an hour.")] = False,
    as_json: AsJson = False,
) -> None:
    """Preparing records, beside the tokenizer's own batches; and opening and drawing what was prepared."""
    _begin("how records are prepared")
    from ..bench.data import TABLE, DataBench, data_line
    from ..builtin.models import base_model_folder

    sizes = TABLE if table else (notes,)
    base = base_model_folder(model)
    rows = [DataBench(base=base, notes=size, words=words, max_tokens=max_tokens).run() for size in sizes]
    _print({"rows": rows} if table else rows[0], "\n".join(map(data_line, rows)), as_json)


@bench.command("round")
def round_(
    sites: Annotated[int, typer.Option(min=3, max=100, help="Sites, each with a worker and a node of its own.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds of the study.")] = 5,
    trips: Annotated[int, typer.Option(min=1, max=1000, help="Empty messages before the study, and after it.")] = 5,
    dimension: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Measure memory instead, with an adapter that trains so many numbers."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """A round of a deployment on this machine, beside empty messages of Flower's and beside the simulation.

    With --dimension, the peak memory of each process with a large adapter, beside that with a small one.
    """
    _begin("rounds of a deployment; first its programs are started")
    if dimension is not None:
        from ..bench.large_round import LargeRoundBench, large_round_table

        large = LargeRoundBench(sites=sites, rounds=rounds, dimension=dimension)
        figures = large.run(lambda line: typer.echo(line, err=True))
        _print(figures, large_round_table(figures), as_json)
        return
    from ..bench.round import RoundBench, round_table

    measured = RoundBench(sites=sites, rounds=rounds, trips=trips)
    figures = measured.run(lambda line: typer.echo(line, err=True))
    _print(figures, round_table(figures, measured), as_json)


@bench.command()
def utility(
    output: Annotated[Path, typer.Option(help="Folder of the rows, the table, and each run's study.")] = Path(
        "grandrounds-utility"
    ),
    config: Annotated[
        Path | None, typer.Option(help="A study's TOML file: its model, data, privacy, training and secagg, but for ε.")
    ] = None,
    levers: Annotated[
        Path | None,
        typer.Option(
            help="TOML: of each lever by its name, the tables that it changes; each is tried, too. No default "
            "beside them changes; where no noise_stages are stated, attempts beyond its own rounds have more noise."
        ),
    ] = None,
    ways: Annotated[
        str,
        typer.Option(
            metavar="WAY,WAY", help="Of: pooled,pooled-noisier,distributed,local,alone,noise-off,no-privacy; all."
        ),
    ] = "distributed,noise-off",
    epsilon: Annotated[str, typer.Option(metavar="ε,ε", help="Of each private way.")] = "4",
    sites: Annotated[str, typer.Option(metavar="N,N", help="Built-in hospitals.")] = "5",
    patients: Annotated[str, typer.Option(metavar="N,N", help="Synthetic patients of all of them.")] = "120",
    split: Annotated[str, typer.Option(metavar="iid,age", help="How patients are spread over hospitals.")] = "iid",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Of patients and of the adapter's frozen part.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, max=10**9, help="The first of them.")] = 401,
    processes: Annotated[int, typer.Option(min=1, max=256, help="Runs beside one another.")] = 1,
    device: Annotated[str, typer.Option(metavar="NAME,NAME", help="Of each run: cpu, cuda, cuda:1.")] = "cpu",
    extraction: Annotated[
        bool,
        typer.Option(help="Ask the adapters for facts, too; perplexity alone takes less. Rows without are made again."),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Train in several ways on the same synthetic patients: perplexity, share of the gain kept, F1 of an extraction.

    The defaults take an hour on two processors. It goes on where it was stopped, and says which rows another program
    made; each federation's ledger is verified.
    """
    from ...common.schema import read_toml
    from ..bench.utility.bench import UtilityBench
    from ..bench.utility.grid import Grid
    from ..bench.utility.levers import Levers
    from ..bench.utility.table import markdown

    grid = Grid.read(
        ways=ways,
        epsilon=epsilon,
        sites=sites,
        patients=patients,
        split=split,
        seeds=seeds,
        first_seed=first_seed,
        device=device.split(","),
    )
    measured = UtilityBench(
        output=output,
        jobs=Levers.read(levers, {} if config is None else read_toml(config)).jobs(tuple(grid.runs())),
        asks=extraction,
        processes=processes,
        devices=grid.device,
    )
    rows = measured.run(lambda line: typer.echo(line, err=True))
    _print({"rows": [row.model_dump(mode="json") for row in rows]}, markdown(rows), as_json)


@bench.command()
def synthetic(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR…", help="Studies of the built-in patients that have ended, or adapters."),
    ],
    output: Annotated[Path, typer.Option(help="Folder of the notes; what is there is not made again.")] = Path(
        "grandrounds-synthetic"
    ),
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="The base model, if it is elsewhere.")] = None,
    count: Annotated[int, typer.Option(min=2, max=10**6, help="Notes of each adapter, and of the base model.")] = 1000,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=8192, help="The most tokens of each.")] = 256,
    guidance: Guidance = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the notes.")] = 1,
    precision: ComputedIn = None,
    as_json: AsJson = False,
) -> None:
    """Train classifiers on synthetic notes and test them on real ones, beside training on real ones.

    All are of the built-in patients. It goes on where it was stopped.
    """
    from ..bench.synthetic.bench import SyntheticBench, synthetic_table
    from ..generate.sampling import Sampling
    from ..views.console import counted

    sampling = Sampling(
        count=count,
        max_new_tokens=max_new_tokens,
        temperature=0.7,
        top_p=0.9,
        guidance=guidance,
        seed=seed,
        batch=128,
        precision=precision,
    )
    _begin("what classifiers learn from synthetic notes")
    figures = SyntheticBench(folders=folders, output=output, base=base, sampling=sampling).run(counted)
    _print(figures, synthetic_table(figures), as_json)


@bench.command()
def attacks(
    members: Annotated[int, typer.Option(help="Canary patients who are trained on, and as many who are not.")] = 200,
    memorised: Annotated[int, typer.Option(help="Of them, those on whom one is trained until it knows them.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, max=10_000, help="Of the adapter that is made to memorise.")] = 24,
    seed: Annotated[int, typer.Option(min=0, max=10**9, help="Of canary patients and the frozen adapter.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Attacks on an adapter with privacy, beside one without noise and one made to memorise, on canary patients."""
    from ..views.console import steps

    _begin("attacks on three adapters, which are trained first; an hour on one processor")
    with steps() as step:
        step("loading PyTorch")
        from ..bench.attacks import AttackBench, attack_table

        rows = AttackBench(members=members, memorised=memorised, rounds=rounds, seed=seed).run(step)
    _print({"rows": rows}, attack_table(rows), as_json)


def _begin(what: str) -> None:
    """One line before anything is loaded, and none while it is measured."""
    typer.echo(f"measuring {what} …", err=True)


def _print(figures: dict[str, Any], line: str, as_json: bool) -> None:
    typer.echo(json.dumps(figures) if as_json else line)
