"""The counts as Prometheus reads them. The library is imported at the first scrape: starting must stay quick."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetune.serve.observe.stats import Histogram, ServerStats

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

_SECOND_NS = 1e9
_OPENMETRICS = "application/openmetrics-text"
_PLAIN = "text/plain"

# Triton's reasons of failed requests, by ours.
_TRITON_REASONS = {"queue_full": "REJECTED", "deadline": "REJECTED", "draining": "REJECTED", "not_ready": "REJECTED",
                   "disconnected": "CANCELED", "internal": "BACKEND", "nonfinite": "BACKEND"}  # fmt: skip


@dataclass(frozen=True)
class ModelInfo:
    """Which model answers now; `provider` is the runner's execution provider, `precision` fp32, fp16 or int8."""

    name: str
    version: str
    artifact: str
    sha256: str
    provider: str
    precision: str


@dataclass(frozen=True)
class Gauges:
    """What is asked at each scrape, on the event loop's thread; `model` may change from one to the next."""

    model: Callable[[], ModelInfo]
    queue_length: Callable[[], int]
    inflight_requests: Callable[[], int]
    open_connections: Callable[[], int]
    is_ready: Callable[[], bool]


class Metrics:
    """The page of metrics. `has_triton_names` adds the `nv_*` series that dashboards of Triton read."""

    def __init__(self, stats: ServerStats, gauges: Gauges, *, has_triton_names: bool = False) -> None:
        self._stats = stats
        self._gauges = gauges
        self._has_triton_names = has_triton_names
        self._registry: CollectorRegistry | None = None

    def load(self) -> CollectorRegistry:
        """Imports the library and registers the collectors, once. `render` does so too; a thread may do it before."""
        if self._registry is None:
            from prometheus_client import CollectorRegistry, ProcessCollector

            registry = CollectorRegistry(auto_describe=False)
            ProcessCollector(registry=registry)
            registry.register(self)
            self._registry = registry
        return self._registry

    def render(self, accept_header: str) -> tuple[bytes, str]:
        """The page and its content type: OpenMetrics where the client names it before plain text, else plain text.

        The library's own reading of the header raises for a version that is no number, so it is read here.
        """
        from prometheus_client import generate_latest
        from prometheus_client.openmetrics import exposition as openmetrics

        registry = self.load()
        kinds = [kind.partition(";")[0].strip().lower() for kind in accept_header[:1024].split(",")]
        if next((kind for kind in kinds if kind in (_OPENMETRICS, _PLAIN)), _PLAIN) == _OPENMETRICS:
            page: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
            return page, f"{_OPENMETRICS}; version=1.0.0; charset=utf-8"
        return generate_latest(registry), f"{_PLAIN}; version=0.0.4; charset=utf-8"

    def collect(self) -> Iterator[Metric]:
        """What the library's registry asks for at each scrape."""
        model = self._gauges.model()
        yield from self._requests(model)
        yield from self._runs()
        yield from self._state(model)
        if self._has_triton_names:
            yield from self._triton(model)

    def _requests(self, model: ModelInfo) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        labels = ["model", "version", "protocol", "route", "code"]
        requests = CounterMetricFamily("edgetune_requests", "Answers sent, by HTTP status.", labels=labels)
        durations = HistogramMetricFamily(
            "edgetune_request_duration_seconds", "From a request's first byte to its answer.", labels=["route"]
        )
        for route, seen in self._stats.routes.items():
            for code, count in sorted(seen.codes.items()):
                requests.add_metric([model.name, model.version, "http", route, str(code)], count)
            durations.add_metric([route], _cumulative(seen.durations, _SECOND_NS), seen.durations.total / _SECOND_NS)
        rejected = CounterMetricFamily("edgetune_rejected", "Requests refused, by reason.", labels=["reason"])
        for reason, count in self._stats.rejections.items():
            rejected.add_metric([reason], count)
        yield from (requests, durations, rejected)

    def _runs(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        stats = self._stats
        for name, words, histogram in (
            ("queue", "How long the oldest image of a run waited.", stats.queue),
            ("preprocess", "Decoding and preparing the images of a run.", stats.prepare),
            ("inference", "One run of the model.", stats.infer),
        ):
            buckets, total_s = _cumulative(histogram, _SECOND_NS), histogram.total / _SECOND_NS
            yield HistogramMetricFamily(f"edgetune_{name}_duration_seconds", words, buckets, total_s)
        sizes = stats.batch_sizes
        yield HistogramMetricFamily("edgetune_batch_size", "Images in a run.", _cumulative(sizes, 1), sizes.total)
        yield CounterMetricFamily("edgetune_failed_runs", "Runs of the model that failed.", stats.failed_runs)
        yield CounterMetricFamily(
            "edgetune_nonfinite_outputs", "Outputs with NaN or infinity.", stats.nonfinite_outputs
        )

    def _state(self, model: ModelInfo) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily

        gauges = self._gauges
        loads = CounterMetricFamily("edgetune_model_loads", "Models loaded, by result.", labels=["result"])
        for result, count in self._stats.loads.items():
            loads.add_metric([result], count)
        yield loads
        yield InfoMetricFamily("edgetune_model", "The model that answers.", {
            "model": model.name, "version": model.version, "artifact": model.artifact, "sha256": model.sha256,
            "ep": model.provider, "precision": model.precision,
        })  # fmt: skip
        yield GaugeMetricFamily("edgetune_queue_length", "Images that wait for a run.", gauges.queue_length())
        yield GaugeMetricFamily(
            "edgetune_inflight_requests", "Requests admitted and not answered.", gauges.inflight_requests()
        )
        yield GaugeMetricFamily("edgetune_open_connections", "Open client connections.", gauges.open_connections())
        yield GaugeMetricFamily("edgetune_ready", "1 while the server takes requests.", int(gauges.is_ready()))

    def _triton(self, model: ModelInfo) -> Iterator[Metric]:
        """Triton's names do not end in `_total`, so that their type must stay unknown; they count all the same."""
        counts = self._stats.model
        labels = {"model": model.name, "version": model.version}
        for name, value in (
            ("request_success", counts.success_count),
            ("count", counts.images),
            ("exec_count", counts.execution_count),
            ("request_duration_us", counts.success_ns // 1000),
            ("queue_duration_us", counts.queue_ns // 1000),
            ("compute_input_duration_us", counts.prepare_ns // 1000),
            ("compute_infer_duration_us", counts.infer_ns // 1000),
            ("compute_output_duration_us", counts.finish_ns // 1000),
        ):
            yield _untyped(f"nv_inference_{name}", [(labels, value)])
        yield _untyped("nv_inference_pending_request_count", [(labels, self._gauges.queue_length())])
        failures = self._failures().items()
        yield _untyped(
            "nv_inference_request_failure", [({**labels, "reason": reason}, count) for reason, count in failures]
        )

    def _failures(self) -> dict[str, int]:
        failures = {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
        for reason, count in self._stats.rejections.items():
            failures[_TRITON_REASONS.get(reason, "OTHER")] += count
        return failures


def _cumulative(histogram: Histogram, unit: float) -> list[tuple[str, float]]:
    """Upper bounds in `unit`s as Prometheus writes them, each with the number of values up to it."""
    bounds = [str(bound / unit) for bound in histogram.bounds]
    return list(zip([*bounds, "+Inf"], itertools.accumulate(histogram.counts), strict=True))


def _untyped(name: str, samples: list[tuple[dict[str, str], int]]) -> Metric:
    from prometheus_client.core import UnknownMetricFamily

    family = UnknownMetricFamily(name, "Under Triton's name.")
    for labels, value in samples:
        family.add_sample(name, labels, value)
    return family
