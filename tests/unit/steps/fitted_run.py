"""A run folder as a fit leaves it, without figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgetune.core.files import sha256_of_file
from edgetune.core.preprocess import PreprocessSpec
from edgetune.core.run import HEAD_NAME, BackboneRecord, FeaturesRecord, HeadRecord, Run, Split, write_run
from edgetune.steps.fit_journal import recorded


def write_fitted_run(out: Path, options: dict[str, Any]) -> Run:
    out.mkdir()
    (out / HEAD_NAME).write_bytes(b"head")
    run = Run(
        1, "classification", "now", recorded(options), {}, ("a", "b"),
        PreprocessSpec(8, 8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        BackboneRecord("net", "w", "x", "y", 4, 2, 1), FeaturesRecord("r", "fp32", 0, 4),
        HeadRecord("linear", 1.0, 5, sha256_of_file(out / HEAD_NAME)), Split("/data", (), (), ()),
    )  # fmt: skip
    write_run(out, run)
    return run
