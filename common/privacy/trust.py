"""Whom a study trusts with the noise."""

from typing import Literal

# Sites share the noise of a release, or each adds all of it. Apart from the mechanism, whose sampler loads scipy.
Trust = Literal["distributed", "local"]
