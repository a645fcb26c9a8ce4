"""What a study claims and what it does not, in words for a privacy officer; the numbers are the report's."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ...common.schema import known
from ...common.study.manifest import Manifest
from ...common.study.model_section import ModelSection
from ...common.study.study import PrivacyUnit, Study
from .rounding import number, probability, up

RECOMPUTE: Final = (
    "Recompute it. The claim follows from what the sites and the server signed. Whoever has the study’s folder DIR can "
    "recompute it without a network, and without the server’s word for it:"
)
AUTHORSHIP: Final = "Ask a site for that hash, which is of the manifest it signed: a page cannot vouch for itself."
SIMULATED: Final = (
    "A simulation. Every site ran in one process on one machine, which made every key and every signature. The "
    "protocol between them ran in full, but it hides nothing from whoever operates that machine."
)
MINIMISED: Final = (
    "What a site takes out of its records before it trains on them is stated as rules, which its own program compares "
    "with its policy. It is no part of the privacy claim, which holds whether or not anything was taken out."
)
NO_PRIVACY: Final = (
    "NO PRIVACY. This study ran without noise and promises nothing to anyone in its data. Its adapter may repeat "
    "what it was trained on. It serves comparison on synthetic data only; never release it if the data were real."
)
# Of studies that begin with each other's adapters.
_TOGETHER: Final = (
    "For a patient of several of these studies all their ε add up, and all their δ, as far as each claim is one for "
    "patients, at as many sites as that patient has records; a claim for records bounds nothing for a patient"
)
# Up to which ε a guarantee is called so (Ponomareva et al. 2023, "How to DP-fy ML", on choosing ε).
STRONG, REASONABLE = 1, 10
_WORDS: Final = [
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Something the claim does not cover."""

    title: str
    text: str


def claim(manifest: Manifest, epsilon: float) -> str:
    """The claim as one sentence, with the conditions it rests on; ``epsilon`` is the whole schedule's."""
    privacy = manifest.study.privacy
    return (
        "All that this study releases (the sum of every attempt, and with them the finished adapter) is "
        f"({up(epsilon)}, {probability(manifest.delta)})-differentially private for each {privacy.unit} under the "
        f"add-or-remove-one relation, against {adversary(manifest)}, provided that {_conditions(manifest)}."
    )


def for_whom(unit: PrivacyUnit, sites_per_patient: int, *, of: str = "") -> str:
    """Whom a claim is for, with the condition that a reader of a few words alone would take for granted.

    >>> for_whom("patient", 1, of=" of study 1"), for_whom("record", 1)
    ('each patient of study 1, at one site at most', 'each record')
    """
    at_most = f", at {count(sites_per_patient, 'site')} at most" if unit == "patient" else ""
    return f"each {unit}{of}{at_most}"


def adversary(manifest: Manifest) -> str:
    """Against whom the claim holds."""
    privacy = manifest.study.privacy
    if privacy.trust == "local":
        return (
            f"the aggregation server together with every site except the {privacy.unit}’s own, "
            "and anyone who holds the adapter"
        )
    return (
        f"the aggregation server together with any {count(privacy.corrupt_sites, 'site')} other than the "
        f"{privacy.unit}’s own, and anyone who holds the adapter"
    )


def seen(manifests: Sequence[Manifest]) -> str:
    """What the server and the other sites get to see of a site's work, and what hides the rest, by each roster."""
    sum_over = f"only the sum over {must_answer(manifests)}"
    if manifests[-1].study.privacy.trust == "local":
        return (
            "Each site adds all of the noise itself before anything leaves it. Secure aggregation then shows the "
            f"server {sum_over}; the claim does not depend on it."
        )
    return (
        f"Secure aggregation shows the server {sum_over}, never one site’s update. At least "
        f"{min(manifest.honest_shares for manifest in manifests)} honest sites are in every such sum. The noise that "
        "honest sites leave in it is unknown to this adversary and has at least the deviation that the claim counts."
    )


def must_answer(manifests: Iterable[Manifest]) -> str:
    """Of how many sites an attempt needs how many, under each of the rosters that a study had."""
    rosters = dict.fromkeys(at_least(each.threshold, of=len(each.study.sites)) for each in manifests)
    return " or ".join(rosters) + (", by the roster of the attempt" if len(rosters) > 1 else "")


def protected(manifest: Manifest) -> str:
    """The privacy unit, in one or two sentences."""
    privacy, data = manifest.study.privacy, manifest.study.data
    if privacy.unit == "record":
        return (
            "The presence or absence of any one record. This is not a claim about patients: "
            "someone with several records is protected less, the less the more records there are."
        )
    overlap = privacy.sites_per_patient
    where = "at one site" if overlap == 1 else f"at up to {count(overlap, 'site')}"
    return (
        f"The presence or absence of any one patient, with all of that patient’s records {where}, however many they "
        f"are. One training step reads at most {count(data.records_per_unit, 'window')} of a patient’s records at a "
        "site."
    )


def released(manifest: Manifest) -> tuple[str, ...]:
    """The artefacts that the adversary is assumed to hold."""
    figures = {"synthetic": "synthetic patients", "public": "public text"}[known(manifest.study.data.evaluation)]
    total = "the noised sum" if manifest.study.privacy.noise else "the sum, WITHOUT NOISE,"
    return (
        f"{total} of every attempt, and the adapter after every round (to the server and to all sites)",
        "the finished adapter (to anyone)",
        "the ledger: who was in which attempt, and what they signed of it (to all sites, and to whoever verifies)",
        f"this report; its perplexities are measured without noise on {figures}, as the study declares",
    )


def epochs(manifest: Manifest, *, attempts: int) -> str:
    """Why there is no number of epochs, and how often each unit takes part instead."""
    study = manifest.study
    q, steps, unit = study.privacy.sampling_probability, study.training.local_steps, study.privacy.unit
    return (
        f"None. An epoch reads every {unit} once; here each step draws anew, since it is of such draws that the claim "
        f"is computed. On average a {unit} took part in {number(q * steps * attempts)} of "
        f"{count(steps * attempts, 'step')}, and would take part in {number(q * steps * manifest.max_attempts)} of all "
        f"{steps * manifest.max_attempts} that the claim covers."
    )


def data_touches(manifest: Manifest) -> tuple[str, ...]:
    """Every way in which the study reads the sites' records, and what it reads instead where one might expect more."""
    study = manifest.study
    steps = count(study.training.local_steps, "local step")
    return (
        f"Training: {steps} in each attempt, each on a fresh Poisson draw in which every {study.privacy.unit} takes "
        f"part with probability {number(study.privacy.sampling_probability)}, independently of all others.",
        "Reading: each site checks that its own file can be used and has no more units than the study states, and "
        "leaves out the records of patients who opted out. A fault in a file is shown at that site and nowhere else.",
        f"Timing: a step reads a bounded number of {study.privacy.unit}s, and {_instant(manifest)}.",
        "The test that one record’s gradient does not depend on its neighbours runs on random token ids, on no record.",
        "Nothing else. No count, draw size, loss or norm leaves a site.",
        "The clipping norm, the learning rates and the schedule were fixed before the first record was read; they must "
        "come from public or synthetic data.",
    )


def in_context(epsilon: float) -> str:
    """Where an ε stands among others, by a published scale; a scale is a custom, and proves nothing.

    >>> in_context(3.991).split("; ")[-1]
    'this study’s, 4.00, is reasonable by that scale.'
    """
    tier = "strong" if epsilon <= STRONG else "reasonable" if epsilon <= REASONABLE else "weak or none by itself"
    return (
        "A common scale for models trained with differential privacy (Ponomareva et al. 2023, arXiv:2303.00654) calls "
        f"the guarantee of an ε up to {STRONG} strong, up to {REASONABLE} reasonable, and beyond that weak or none by "
        f"itself; this study’s, {up(epsilon)}, is {tier} by that scale."
    )


def _instant(manifest: Manifest) -> str:
    after_s = manifest.study.training.answer_after_s
    if manifest.app_sha256 is None or after_s is None:
        return "nobody watches when a simulation’s updates are ready"
    return f"every site’s update leaves {after_s:g} s after it was asked for, whatever was drawn"


def began_with(model: ModelSection) -> str | None:
    """What the adapter was before the first round, where it was not drawn."""
    if model.first_adapter is None:
        return None
    if model.first_study is None:
        of = f"made of text that the study calls public: {model.first_text}"
    else:
        of = (
            f"that, as the study says, an earlier study left, whose manifest is {model.first_study}: "
            f"{model.first_text}. {_TOGETHER}"
        )
    return f"Training began with a first adapter {of}. Its file is {model.first_adapter}."


def _first_adapter(model: ModelSection) -> Iterator[Limit]:
    if model.first_study is not None:
        yield Limit(
            title="Patients of the earlier study",
            text=f"As the study says, training began with what the study with the manifest {model.first_study} left; "
            "nothing in this folder shows it. The adapter then also tells of whoever was in that one, and in what that "
            "one began with, as its own report says. It claims, under the conditions stated there: "
            f"{model.first_text}. {_TOGETHER}.",
        )
    elif model.first_adapter is not None:
        yield Limit(
            title="What the first adapter was made of",
            text=f"The study says that it is public text: {model.first_text}. Its hash shows which file it was, and "
            "nothing shows whose text; were it of patients, no noise would protect them.",
        )


def _public_records(study: Study) -> Iterator[Limit]:
    if study.data.public is not None:
        yield Limit(
            title="Whose the public records are",
            text=f"To each step every site adds {count(study.data.public_units, 'unit')} of records that the study "
            f"calls public ({study.data.public}), clipped as the sites’ own and chosen without regard to them. They "
            "are nobody’s unit in this claim; were they of patients, it would not protect these.",
        )


def not_claimed(manifest: Manifest) -> tuple[Limit, ...]:
    """All that the claim does not cover; without noise there is none, and so that is everything."""
    if not manifest.study.privacy.noise:
        return (Limit(title="Any privacy", text=NO_PRIVACY),)
    overlap = manifest.study.privacy.sites_per_patient
    assumed = "one site only" if overlap == 1 else f"at most {count(overlap, 'site')}"
    return (
        Limit(
            title="Patients of a compromised site",
            text="Whoever controls a site’s machine can read its records there. The claim is for patients of honest "
            "sites.",
        ),
        Limit(
            title="That every site did its part",
            text="Each site’s own installed code clips, samples and adds noise. No other party can see whether it did.",
        ),
        Limit(
            title="People other than the unit",
            text="Relatives, clinicians, patients named in another patient’s note, and patients registered under two "
            "identifiers may be mentioned in records that are not counted as theirs.",
        ),
        Limit(
            title="Patients at several sites",
            text=f"That a patient’s records are at {assumed} is assumed and never checked. "
            "The report’s table of overlaps shows what more would mean.",
        ),
        Limit(
            title="Other studies on the same patients",
            text="What other studies release about a patient adds to what this one does. Each site keeps a budget "
            "for all studies on its patients together; this report is of one.",
        ),
        Limit(
            title="What the base model already knew",
            text="The base model was trained by others on other texts. What it memorised then, it may still say.",
        ),
        *_first_adapter(manifest.study.model),
        *_public_records(manifest.study),
        Limit(
            title="Facts about a site or a population",
            text="Learning them is the purpose of the study. They may also concern someone whose records were never "
            "in it.",
        ),
        Limit(
            title="Side channels",
            text="What a site’s machine shows beside its messages, such as load and power, may depend on data. Of when "
            f"they leave: {_instant(manifest)}. A site that is not ready in time stays silent, which is seen.",
        ),
        Limit(
            title="What those who ran the study declare",
            text="What the study is called and for, who takes part and when is signed by all sites, and proven by "
            "nothing. The perplexities and the description of the evaluation set are the server’s word. What a site’s "
            "records are, and where they are kept, is that site’s word.",
        ),
        Limit(
            title="A correct result",
            text="A malicious server or a single malicious site can make the sums, and so the adapter, anything at "
            "all.",
        ),
        Limit(
            title="Availability",
            text="The server, or too many absent sites, can stop the study or use up its attempts.",
        ),
        Limit(
            title="A site’s machine set back to an earlier state",
            text="Restoring an old copy of a site’s state can make it forget what it has already released. The ledger "
            "shows that where its counter of charges falls, and not otherwise.",
        ),
        Limit(
            title="Withdrawal of consent",
            text="Nobody’s influence can be taken back out of an adapter that has been released.",
        ),
    )


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, small numbers as words.

    >>> count(1, "site"), count(3, "site"), count(24, "entry", "entries")
    ('one site', 'three sites', '24 entries')
    """
    word = _WORDS[number] if number < len(_WORDS) else str(number)
    return f"{word} {noun}" if number == 1 else f"{word} {plural or noun + 's'}"


def at_least(sites: int, *, of: int) -> str:
    """How many sites it takes.

    >>> at_least(3, of=3), at_least(3, of=4)
    ('all 3 sites', 'at least 3 of the 4 sites')
    """
    return f"all {of} sites" if sites == of else f"at least {sites} of the {of} sites"


def _conditions(manifest: Manifest) -> str:
    privacy = manifest.study.privacy
    conditions = ["the honest sites ran this code unchanged"]
    if privacy.unit == "patient":
        conditions.append(f"no patient’s records are at more than {count(privacy.sites_per_patient, 'site')}")
    if privacy.trust == "distributed":
        conditions.append("the cryptography of secure aggregation is not broken")
    return ", ".join(conditions[:-1]) + (" and " if len(conditions) > 1 else "") + conditions[-1]
