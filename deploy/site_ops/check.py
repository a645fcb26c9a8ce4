"""What a site finds out about itself before a study: whether all fits, and whether an answer is in time."""

import resource
import stat
from collections.abc import Iterator
from time import monotonic
from typing import Final

from ...client.budget.policy import Policy, check_policy
from ...client.site.assembly import open_model, open_update
from ...client.site.folder import SiteFolder, SiteSettings
from ...client.training.rehearsal import all_units, with_large_draw
from ...common.errors import DataError, ModelError, StudyError
from ...common.model.devices import described, peak_memory_bytes

_ROOM: Final = 2.0  # of the deadline: the way to the server and back, and other programs of the machine, take time, too


def check(folder: SiteFolder) -> list[str]:
    """Two private steps on the site's own records, of which nothing is kept or sent: what they took.

    Nothing is reserved. Raises StudyError, also where a large draw would miss the study's deadline, ModelError,
    DataError and StorageError, as a worker's start would.
    """
    settings, manifest, policy = folder.settings(), folder.manifest(), folder.policy()
    identity, frozen = folder.identity(), folder.frozen_adapter()
    check_policy(policy, manifest, name=settings.name)
    _check_readable(settings)
    started = monotonic()
    model = open_model(settings, manifest, identity=identity, frozen_adapter=frozen)
    update = open_update(settings, manifest, policy, model=model)
    adapter, large = model.get_adapter(), with_large_draw(update)
    loaded = monotonic()
    update(adapter)
    usual = monotonic()
    large(adapter)
    large_s, deadline_s = monotonic() - usual, manifest.study.training.deadline_s
    if large_s > deadline_s:
        raise StudyError(
            f"an update takes {large_s:.0f} s here where a draw is large, and the study allows {deadline_s:.0f} s",
            why="the site would be missing whenever a draw is large, and its attempts would be spent for nothing",
            fix="use a faster machine, or ask the study's author for a longer deadline (training.deadline_s)",
        )
    gibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # which Linux counts in KiB
    on_gpu = peak_memory_bytes(model.device) / 2**30
    units, unit = all_units(update), manifest.study.privacy.unit
    return [
        "key, policy, model and records fit the study; nothing was reserved, and nothing was sent",
        f"{sum(map(len, units))} records of {len(units)} {unit}s were read; the study counts on "
        f"{manifest.nominal_units(settings.name)}",
        f"loading took {loaded - started:.0f} s, an update of an average draw {usual - loaded:.1f} s, of one six "
        f"deviations above the mean {large_s:.1f} s, and all of it at most {gibibytes:.1f} GiB"
        + (f" of memory and {on_gpu:.1f} GiB of the GPU's" if on_gpu else ""),
        f"the model computes on {described(settings.device)}, {update.sampler.batch_size} records at a time",
        f"the study allows {deadline_s:.0f} s for an answer"
        + (": little room for a slow network" if _ROOM * large_s > deadline_s else ""),
        *_warnings(folder, settings, policy),
    ]


def _check_readable(settings: SiteSettings) -> None:
    """Before the model is loaded, which may take minutes, and names other causes. Raises DataError and ModelError."""
    try:
        settings.data.open("rb").close()
    except OSError as error:
        raise DataError(
            f"{settings.data} cannot be read ({error.strerror})",
            why="these are the records that the site trains on",
            fix="check `data` in site.toml, and that the worker's user may read the file",
        ) from error
    try:
        for path in settings.model.iterdir():
            if path.is_file():
                path.open("rb").close()
    except OSError as error:
        raise ModelError(
            f"{error.filename} cannot be read ({error.strerror})",
            why="the study fine-tunes this model, and every site has its files",
            fix="check `model` in site.toml, and that the worker's user may read the folder and all its files",
        ) from error


def _warnings(folder: SiteFolder, settings: SiteSettings, policy: Policy) -> Iterator[str]:
    for path in (settings.data, settings.held_out, policy.data.opted_out):
        if path is not None and path.exists() and path.stat().st_mode & stat.S_IROTH:
            yield f"warning: every user of this machine may read {path}; the worker's alone needs to: chmod o-r"
    if folder.is_paused:
        yield "this site is paused, and takes part in nothing until: grandrounds client unpause"
