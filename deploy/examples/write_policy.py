"""A site's policy, tried against a study: python write_policy.py [STUDY_FOLDER]; without one, study_in_python.py runs.

At a site, `grandrounds client join` does this with the study that it was sent, and then reserves the budget.
"""

from pathlib import Path
from tempfile import NamedTemporaryFile

from grandrounds import GrandRoundsError
from grandrounds.client.budget.policy import check_policy, read_policy
from grandrounds.common.study.manifest import Manifest
from grandrounds.deploy.examples.study_in_python import finished

POLICY = """
study.largest_epsilon = {epsilon}  # of any one study
study.largest_delta = 1e-3
study.trust = ["distributed"]
study.models = [{{ name = "tiny" }}]
study.verified_peers = {peers}     # keys of the others, each compared with its owner by telephone
data.synthetic_data_only = true    # leave it out where records are of people
"""


def reasons_against(policy: str, manifest: Manifest, site: str) -> list[str]:
    """Every point in which the study breaks the policy; what the policy leaves out has its careful default."""
    with NamedTemporaryFile("w", suffix=".toml") as file:
        Path(file.name).write_text(policy, encoding="utf-8")
        try:
            check_policy(read_policy(Path(file.name)), manifest, name=site)
        except GrandRoundsError as error:
            return error.what.split("; ")
    return []


if __name__ == "__main__":
    study = Manifest.parse((finished() / "study.json").read_bytes())
    print(reasons_against(POLICY.format(epsilon=0.5, peers=[]), study, "north"))
    keys = [study.server_key, *study.site_keys.values()]
    print(reasons_against(POLICY.format(epsilon=2.0, peers=keys), study, "north"))
