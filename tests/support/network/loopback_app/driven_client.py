"""What no site may run: it leaves a mark as soon as it is imported."""

import os
from pathlib import Path

from flwr.clientapp import ClientApp

(Path(os.environ["FLWR_HOME"]) / "imported").touch()
app = ClientApp()
