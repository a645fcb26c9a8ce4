"""What a study needs a site's policy to allow, as a file that the site's operator reads, and may copy from."""

import json
from collections.abc import Mapping
from typing import Final

from ...common.crypto.identity import shown_key
from ...common.schema import known
from ...common.study.manifest import Manifest

_TEXT: Final = """\
# The least that policy.toml of {name} has to allow for this study, with manifest
#   {manifest}
# Read it, and copy what the site means to allow; or have `grandrounds client join DIR study.zip` ask, and write it.
[study]
{limits}
package_versions = [{version}]
verified_peers = [  # take away the # before a key once it was compared with its owner, not by e-mail alone
{peers}
]

[[study.models]]
name = {model}
sha256 = "{model_sha256}"

# [data] is the site's own. Of what all studies together may cost each {unit}, this one sets aside {cost}.
[data]
{own}{minimised}
"""
_MINIMISED: Final = """

# [minimise] has to do what the study says of this site, and no more: {rules}."""


def needed_policy(manifest: Manifest, name: str) -> str:
    """The least policy, as TOML, under which the site ``name`` may join, but for the keys: each is a remark."""
    study, privacy = manifest.study, manifest.study.privacy
    site = next(site for site in study.sites if site.name == name)
    limits: dict[str, object] = {"trust": [privacy.trust]}
    if privacy.noise:
        limits |= {"largest_epsilon": site.largest_epsilon or privacy.target_epsilon, "largest_delta": manifest.delta}
    if privacy.trust == "distributed":
        limits |= {"smallest_honest_shares": manifest.honest_shares}
    own = {"unit": privacy.unit, "epsilon": site.budget_epsilon}
    if site.sensitivity == "synthetic" or not privacy.noise:
        own |= {"synthetic_data_only": True}
    others = {"server": manifest.server_key} | {site: key for site, key in manifest.site_keys.items() if site != name}
    return _TEXT.format(
        name=name,
        manifest=manifest.sha256,
        limits=_lines(limits),
        version=json.dumps(manifest.package_version),
        peers="\n".join(f'  # "{shown_key(key)}",  # {owner}' for owner, key in others.items()),
        model=json.dumps(study.model.name, ensure_ascii=False),
        model_sha256=manifest.model_sha256,
        unit=privacy.unit,
        cost=f"ε = {known(privacy.target_epsilon):g} and δ = {manifest.delta:g}" if privacy.noise else "nothing",
        own=_lines(own),
        minimised="" if site.minimised is None else _MINIMISED.format(rules=", ".join(site.minimised) or "nothing"),
    )


def _lines(fields: Mapping[str, object]) -> str:
    return "\n".join(f"{field} = {json.dumps(value)}" for field, value in fields.items() if value is not None)
