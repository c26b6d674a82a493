"""The page of metrics, read back by the library's own parsers and compared with figures worked by hand."""

from __future__ import annotations

import subprocess
import sys

import pytest
from prometheus_client import REGISTRY
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families

from edgetune.serve.observe.metrics import Gauges, Metrics, ModelInfo
from edgetune.serve.observe.stats import ServerStats, Timing

MS = 1_000_000
OPENMETRICS = "application/openmetrics-text"
# What Prometheus 2.5x sends.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
NAME = 'ants "and"\nbees\\'  # quotes, a line's end and a backslash must survive

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def _stats() -> ServerStats:
    stats = ServerStats()
    for ms in (0.5, 0.6, 3, 3, 70, 9000):
        stats.request_done("infer", 200, round(ms * MS))
    stats.request_done("infer", 503, 100_000)
    stats.request_done("other", 200, 200_000)
    stats.rejected("queue_full")
    stats.rejected("disconnected")
    stats.rejected("bad_image")
    stats.rejected("bad_image")
    for _ in range(3):
        stats.rejected("internal")
    stats.executed(Timing(images=3, queue_ns=2 * MS, prepare_ns=4 * MS, infer_ns=30 * MS))
    stats.executed(Timing(images=1, queue_ns=0, prepare_ns=1 * MS, infer_ns=10 * MS))
    stats.executed(Timing(images=1, queue_ns=0, prepare_ns=0, infer_ns=0, ok=False))
    stats.request_inferred(Timing(images=3, queue_ns=2 * MS, prepare_ns=4 * MS, infer_ns=30 * MS), finish_ns=MS)
    stats.request_inferred(Timing(images=1, queue_ns=0, prepare_ns=1 * MS, infer_ns=10 * MS), finish_ns=MS)
    stats.request_inferred(Timing(images=1, queue_ns=0, prepare_ns=0, infer_ns=0, ok=False), finish_ns=0)
    stats.nonfinite()
    return stats


def _metrics(*, has_triton_names: bool = False) -> Metrics:
    gauges = Gauges(
        model=lambda: ModelInfo(NAME, "1", "model.int8.onnx", "ab" * 32, "CPUExecutionProvider", "int8"),
        queue_length=lambda: 4,
        inflight_requests=lambda: 5,
        open_connections=lambda: 6,
        is_ready=lambda: True,
    )
    return Metrics(_stats(), gauges, has_triton_names=has_triton_names)


def _families(page: bytes, kind: str) -> dict[str, Metric]:
    text = page.decode()
    is_open = kind.startswith(OPENMETRICS)
    parse = openmetrics_parser.text_string_to_metric_families if is_open else text_string_to_metric_families
    return {family.name: family for family in parse(text)}


def _samples(families: dict[str, Metric]) -> Samples:
    return {(s.name, frozenset(s.labels.items())): s.value for family in families.values() for s in family.samples}


@pytest.fixture(params=["", PROMETHEUS], ids=["plain", "openmetrics"])
def samples(request: pytest.FixtureRequest) -> Samples:
    page, kind = _metrics(has_triton_names=True).render(request.param)
    return _samples(_families(page, kind))


def _get(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_requests_by_status_and_refusals_by_reason(samples: Samples) -> None:
    where = {"model": NAME, "version": "1", "protocol": "http"}
    assert _get(samples, "edgetune_requests_total", **where, route="infer", code="200") == 6
    assert _get(samples, "edgetune_requests_total", **where, route="infer", code="503") == 1
    assert _get(samples, "edgetune_requests_total", **where, route="other", code="200") == 1
    assert _get(samples, "edgetune_rejected_total", reason="queue_full") == 1
    assert _get(samples, "edgetune_rejected_total", reason="bad_image") == 2
    assert _get(samples, "edgetune_rejected_total", reason="auth") == 0


def test_request_durations_are_cumulative_and_in_seconds(samples: Samples) -> None:
    name = "edgetune_request_duration_seconds"
    # The values in ms: 0.1, 0.5, 0.6, 3, 3, 70, 9000.
    expected = {"0.0005": 2, "0.001": 3, "0.002": 3, "0.005": 5, "0.01": 5, "0.02": 5, "0.05": 5, "0.1": 6, "0.2": 6,
                "0.5": 6, "1.0": 6, "2.0": 6, "5.0": 6, "+Inf": 7}  # fmt: skip
    found = {dict(labels)["le"]: value for (key, labels), value in samples.items()
             if key == f"{name}_bucket" and ("route", "infer") in labels}  # fmt: skip
    assert found == expected
    assert _get(samples, f"{name}_count", route="infer") == 7
    assert _get(samples, f"{name}_sum", route="infer") == pytest.approx(9.0772, rel=1e-12)


def test_runs_and_batches(samples: Samples) -> None:
    assert _get(samples, "edgetune_queue_duration_seconds_sum") == pytest.approx(0.002)
    assert _get(samples, "edgetune_preprocess_duration_seconds_sum") == pytest.approx(0.005)
    assert _get(samples, "edgetune_inference_duration_seconds_sum") == pytest.approx(0.040)
    assert _get(samples, "edgetune_inference_duration_seconds_bucket", le="0.01") == 1
    assert _get(samples, "edgetune_inference_duration_seconds_bucket", le="0.05") == 2
    assert [_get(samples, "edgetune_batch_size_bucket", le=f"{size}.0") for size in (1, 2, 4, 8, 16, 32, 64)] == [
        1, 1, 2, 2, 2, 2, 2
    ]  # fmt: skip
    assert _get(samples, "edgetune_batch_size_sum") == 4
    assert _get(samples, "edgetune_failed_runs_total") == 1
    assert _get(samples, "edgetune_nonfinite_outputs_total") == 1


def test_state_and_model(samples: Samples) -> None:
    assert _get(samples, "edgetune_queue_length") == 4
    assert _get(samples, "edgetune_inflight_requests") == 5
    assert _get(samples, "edgetune_open_connections") == 6
    assert _get(samples, "edgetune_ready") == 1
    assert _get(samples, "edgetune_model_loads_total", result="failed") == 0
    info = {"model": NAME, "version": "1", "artifact": "model.int8.onnx", "sha256": "ab" * 32,
            "ep": "CPUExecutionProvider", "precision": "int8"}  # fmt: skip
    assert _get(samples, "edgetune_model_info", **info) == 1


def test_tritons_names(samples: Samples) -> None:
    where = {"model": NAME, "version": "1"}
    expected = {"request_success": 2, "count": 4, "exec_count": 2, "pending_request_count": 4,
                "request_duration_us": 49_000, "queue_duration_us": 2_000, "compute_input_duration_us": 5_000,
                "compute_infer_duration_us": 40_000, "compute_output_duration_us": 2_000}  # fmt: skip
    assert {name: _get(samples, f"nv_inference_{name}", **where) for name in expected} == expected
    reasons = {"REJECTED": 1, "CANCELED": 1, "BACKEND": 3, "OTHER": 2}
    found = {reason: _get(samples, "nv_inference_request_failure", **where, reason=reason) for reason in reasons}
    assert found == reasons


def test_the_process_is_measured_and_the_global_registry_left_alone(samples: Samples) -> None:
    assert _get(samples, "process_resident_memory_bytes") > 1 << 20
    assert not any(family.name.startswith("edgetune_") for family in REGISTRY.collect())


def test_tritons_names_are_off_unless_asked_for() -> None:
    assert b"nv_" not in _metrics().render("")[0]


def test_names_follow_prometheus_rules() -> None:
    page, kind = _metrics().render("")
    for family in _families(page, kind).values():
        assert family.name.startswith(("edgetune_", "process_")), family.name
        assert family.type in {"counter", "gauge", "histogram"}, family.name
        assert family.documentation.endswith("."), family.name
        # Counters end in `_total` on the page; the parser takes that off the family's name.
        assert family.type != "counter" or all(sample.name.endswith("_total") for sample in family.samples)
    assert b"# TYPE edgetune_requests_total counter\n" in page


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain, application/openmetrics-text", "text/plain; version=0.0.4; charset=utf-8"),
        (PROMETHEUS, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("Application/OpenMetrics-Text", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("application/openmetrics-text; version=abc", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        ("text/plain; version=9.x", "text/plain; version=0.0.4; charset=utf-8"),
        (",;=\x00\xff" * 5000, "text/plain; version=0.0.4; charset=utf-8"),
    ],
    ids=["none", "any", "plain first", "prometheus", "case", "odd version", "odd plain version", "noise"],
)
def test_the_accept_header_chooses_and_never_breaks(accept: str, kind: str) -> None:
    page, found = _metrics().render(accept)
    assert found == kind
    assert page.endswith(b"# EOF\n") == kind.startswith(OPENMETRICS)


def test_the_model_is_asked_at_each_scrape() -> None:
    names = iter(["before", "after"])
    gauges = Gauges(
        lambda: ModelInfo(next(names), "1", "", "", "", ""), lambda: 0, lambda: 0, lambda: 0, is_ready=lambda: False
    )
    metrics = Metrics(ServerStats(), gauges)
    assert b'model="before"' in metrics.render("")[0]
    page = metrics.render("")[0]
    assert b'model="after"' in page
    assert b"edgetune_ready 0.0\n" in page


def test_importing_the_module_does_not_import_the_library() -> None:
    code = "import sys, edgetune.serve.observe.metrics; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
