"""The GPU tests and the table of private training steps, on a machine that has a GPU: ``make gpu``, in ten minutes.

It needs no network and no installation: of the package, what stands in the tree; of libraries, what the machine's
Python has. Tests and rows for which one is missing say so. Written are ``build/gpu/figures.json`` and ``table.md``.

``DEVICE=cpu SIZES=tiny make gpu`` shows on any machine that it runs.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from support.places import ROOT

OUT = ROOT / "build" / "gpu"
BEFORE_S = 540  # the last row begins before
ROW_S = 150
# What a step is: 8,192 tokens are computed at a time, so that each step is of several batches.
RECORDS = {"512": 32, "2048": 8}
TARGET = 1.05
LIBRARIES = ("torch", "transformers", "peft", "opacus", "bitsandbytes", "numpy")
# The site's own tests load these beside what computes.
SITE_NEEDS = ("flwr", "cryptography", "rfc8785", "sqlalchemy", "pyarrow")
TESTS = {"tests/gpu/on_gpu.py": (), "tests/gpu/site_on_gpu.py": SITE_NEEDS}


def main() -> int:
    """Runs everything; 1 where there is no GPU, a test fails or no row could be measured."""
    began = time.monotonic()
    device, sizes = os.environ.get("DEVICE", "cuda"), os.environ.get("SIZES", "1b 7b").split()
    if device != "cpu" and (missing := why_no_gpu()):
        print(f"no GPU can be used here: {missing}. Run this where there is one, or see by DEVICE=cpu SIZES=tiny.")
        return 1
    OUT.mkdir(parents=True, exist_ok=True)
    tested = tests(device)
    rows = []
    for model, precision, tokens in configurations(sizes):
        late = time.monotonic() - began > BEFORE_S
        figures = {"failed": "left out: ten minutes were over"} if late else measured(model, precision, tokens, device)
        rows.append({"model": model, "precision": precision, "tokens": int(tokens)} | figures)
        print("\n".join(lines_of(rows[-1])), flush=True)
    versions = {name: installed(name) for name in LIBRARIES}
    report = {"machine": machine(rows, device), "versions": versions, "tests": tested, "rows": rows}
    (OUT / "figures.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (OUT / "table.md").write_text(page(report), encoding="utf-8")
    print(f"written: {OUT}/figures.json and table.md, after {time.monotonic() - began:.0f} s")
    return int(any(said.startswith("failed") for said in tested.values()) or all("failed" in row for row in rows))


def why_no_gpu() -> str | None:
    """Why there is no GPU here; None where there is one."""
    if importlib.util.find_spec("torch") is None:
        return f"{sys.executable} has no torch"
    import torch

    return None if torch.cuda.is_available() else f"torch {torch.__version__} finds none"


def tests(device: str) -> dict[str, str]:
    """How each file of tests ended."""
    found = {}
    for path, needs in TESTS.items():
        missing = [name for name in ("pytest", "hypothesis", *needs) if importlib.util.find_spec(name) is None]
        if device == "cpu":
            found[path] = "left out: they need a GPU"
        elif missing:
            found[path] = f"left out: {', '.join(missing)} not installed"
        else:
            ran = subprocess.run([sys.executable, "-m", "pytest", "-q", path], cwd=ROOT, check=False, timeout=300)
            found[path] = "passed" if ran.returncode == 0 else f"failed (exit code {ran.returncode})"
        print(f"{path}: {found[path]}", flush=True)
    return found


def configurations(sizes: list[str]) -> Iterator[tuple[str, str, str]]:
    """Model, precision and tokens of each row's step: what matters most first."""
    for size in sizes:
        for precision in ("bfloat16", "nf4"):
            for tokens in ("64",) if size == "tiny" else RECORDS:
                yield f"random:{size}", precision, tokens


def measured(model: str, precision: str, tokens: str, device: str) -> dict[str, Any]:
    """The figures of one configuration, in a process of its own: what fails there fails alone."""
    command = [sys.executable, "-m", "grandrounds.deploy.bench.steps.dp_step", "--json", "--model", model]
    command += ["--precision", precision, "--tokens", tokens, "--device", device]
    command += ["--records", str(RECORDS.get(tokens, 4)), "--target-modules=all-linear", "--rank=16"]
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=ROW_S)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done in {ROW_S} s"}
    if ran.returncode:
        return {"failed": (ran.stderr.strip().splitlines() or ["no reason was given"])[-1][:300]}
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def machine(rows: list[dict[str, Any]], device: str) -> str:
    """What computed, by name, under which Python."""
    names = [row["device"] for row in rows if "device" in row]
    return f"{names[0] if names else device}; Python {platform.python_version()}"


def installed(library: str) -> str | None:
    """A library's version; None where it is not installed."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def lines_of(row: dict[str, Any]) -> list[str]:
    """One configuration as rows of a Markdown table: a row a kind of step."""
    what = f"| {row['model']} | {row['precision']} | {row['tokens']} |"
    if "failed" in row:
        return [f"{what} all | {row['failed']} | | | |"]
    return [f"{what} {name} | {cells(kind)} |" for name, kind in row["kinds"].items()]


def cells(kind: dict[str, Any]) -> str:
    """One kind's figures as cells."""
    if "failed" in kind:
        return f"{kind['failed']} | | | "
    time_ratio, memory_ratio = (
        f"{kind[name]:.2f} ×" if name in kind else "–" for name in ("time_ratio", "memory_ratio")
    )
    used = f"{kind['utilisation']:.0%}" if kind["utilisation"] else "unknown"
    return f"{kind['step_s']:.3f} s, {time_ratio} | {memory_ratio} | {kind['tokens_per_s']:,.0f} | {used}"


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in report["versions"].items())
    lines = [
        f"{report['machine']}. {versions}.",
        "",
        *(f"- `{path}`: {said}" for path, said in report["tests"].items()),
        "",
        "| model | precision | tokens | step | time | memory | tokens/s | FLOPs used |",
        "|---|---|---|---|---|---|---|---|",
        *(line for row in report["rows"] for line in lines_of(row)),
        "",
        "Time and memory (above the loaded model) are multiples of the step without privacy in the same run.",
    ]
    over = [
        f"{row['model']}, {row['precision']}, {row['tokens']} tokens: {name} {private[ratio]:.2f} ×"
        for row in report["rows"]
        for private in [row.get("kinds", {}).get("private", {})]
        for name, ratio in (("time", "time_ratio"), ("memory", "memory_ratio"))
        if private.get(ratio, 0) > TARGET
    ]
    if over:
        lines += ["", f"Above the aim of {TARGET} × for a private step: " + "; ".join(over) + "."]
    if not all(row.get("noise", True) for row in report["rows"]):
        lines += ["", "No noise was drawn: cryptography is not installed."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
