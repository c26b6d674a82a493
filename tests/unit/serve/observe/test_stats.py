"""Triton's statistics worked by hand, and the figures that the metrics and the watchdog read."""

from __future__ import annotations

import random

import pytest

from edgetune.serve.observe.stats import BATCH_BOUNDS, DURATION_BOUNDS_NS, Histogram, ServerStats, Timing

MS = 1_000_000


def _three_requests() -> ServerStats:
    """Two requests of 1 and 3 images share a run; one of 2 has its own; then one fails in a run of its own."""
    stats = ServerStats(now_ns=lambda: 1_700_000_000_123_456_789)
    stats.executed(Timing(images=4, queue_ns=30, prepare_ns=400, infer_ns=5000))
    stats.request_inferred(Timing(images=1, queue_ns=10, prepare_ns=100, infer_ns=5000), finish_ns=7)
    stats.request_inferred(Timing(images=3, queue_ns=30, prepare_ns=300, infer_ns=5000), finish_ns=8)
    stats.executed(Timing(images=2, queue_ns=5, prepare_ns=60, infer_ns=2500))
    stats.request_inferred(Timing(images=2, queue_ns=5, prepare_ns=60, infer_ns=2500), finish_ns=9)
    stats.executed(Timing(images=1, queue_ns=1, prepare_ns=2, infer_ns=3, ok=False))
    stats.request_inferred(Timing(images=1, queue_ns=1, prepare_ns=2, infer_ns=3, ok=False), finish_ns=4)
    return stats


def test_tritons_statistics_by_hand() -> None:
    def ns(count: int, total: int) -> dict[str, int]:
        return {"count": count, "ns": total}

    assert _three_requests().to_triton("ants", "1") == {"model_stats": [{
        "name": "ants",
        "version": "1",
        "last_inference": 1_700_000_000_123,
        "inference_count": 1 + 3 + 2,
        "execution_count": 2,
        "inference_stats": {
            "success": ns(3, 5117 + 5338 + 2574),
            "fail": ns(1, 10),
            "queue": ns(3, 45),
            "compute_input": ns(3, 460),
            "compute_infer": ns(3, 12500),
            "compute_output": ns(3, 24),
            "cache_hit": ns(0, 0),
            "cache_miss": ns(0, 0),
        },
        "batch_stats": [
            {"batch_size": 2, "compute_input": ns(1, 60), "compute_infer": ns(1, 2500), "compute_output": ns(1, 0)},
            {"batch_size": 4, "compute_input": ns(1, 400), "compute_infer": ns(1, 5000), "compute_output": ns(1, 0)},
        ],
        "memory_usage": [],
    }]}  # fmt: skip


def test_perf_analyzers_condition_holds_for_any_mixture() -> None:
    stats = ServerStats()
    dice = random.Random(5)
    for _ in range(500):
        images, queue_ns, prepare_ns, infer_ns = (dice.randrange(1, 9) for _ in range(4))
        timing = Timing(images, queue_ns, prepare_ns, infer_ns, ok=dice.random() < 0.7)
        if dice.random() < 0.5:
            stats.executed(timing)
        else:
            stats.request_inferred(timing, dice.randrange(9))
    (entry,) = stats.to_triton("m", "1")["model_stats"]
    figures = entry["inference_stats"]
    same = {figures[key]["count"] for key in ("success", "queue", "compute_input", "compute_infer", "compute_output")}
    assert len(same) == 1
    assert figures["success"]["ns"] == sum(
        figures[key]["ns"] for key in ("queue", "compute_input", "compute_infer", "compute_output")
    )
    assert sum(batch["compute_infer"]["count"] for batch in entry["batch_stats"]) == entry["execution_count"]
    for batch in entry["batch_stats"]:
        assert len({batch[key]["count"] for key in batch if key != "batch_size"}) == 1


@pytest.mark.parametrize(
    ("value", "bucket"),
    [(0, 0), (499_999, 0), (500_000, 0), (500_001, 1), (MS, 1), (MS + 1, 2), (5000 * MS, 12), (5000 * MS + 1, 13),
     (10**12, 13)],
)  # fmt: skip
def test_a_bound_belongs_to_the_bucket_below_it(value: int, bucket: int) -> None:
    histogram = Histogram(DURATION_BOUNDS_NS)
    histogram.add(value)
    assert [index for index, count in enumerate(histogram.counts) if count] == [bucket]
    assert histogram.total == value


def test_the_bounds_are_the_documented_ones() -> None:
    expected_s = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]
    assert [bound / 1e9 for bound in DURATION_BOUNDS_NS] == expected_s
    assert BATCH_BOUNDS == (1, 2, 4, 8, 16, 32, 64)


def test_runs_fill_the_histograms_and_failed_ones_do_not() -> None:
    stats = _three_requests()
    assert stats.batch_sizes.counts == [0, 1, 1, 0, 0, 0, 0, 0]
    assert (stats.queue.total, stats.prepare.total, stats.infer.total) == (35, 460, 7500)
    assert sum(stats.infer.counts) == 2
    assert stats.failed_runs == 1


def test_requests_are_counted_by_route_and_status() -> None:
    stats = ServerStats()
    for route, code in [("infer", 200), ("infer", 200), ("infer", 503), ("/../etc", 404), ("classify", 200)]:
        stats.request_done(route, code, 3 * MS)
    assert stats.routes["infer"].codes == {200: 2, 503: 1}
    assert stats.routes["other"].codes == {404: 1}
    assert stats.routes["infer"].durations.counts[3] == 3
    assert stats.routes["classify"].durations.total == 3 * MS


def test_unknown_reasons_count_as_other() -> None:
    stats = ServerStats()
    for reason in ("queue_full", "queue_full", "x" * 1000, "", "other"):
        stats.rejected(reason)
    assert {reason: count for reason, count in stats.rejections.items() if count} == {"queue_full": 2, "other": 3}


def test_every_reason_that_errors_may_carry_is_known() -> None:
    stats = ServerStats()
    reasons = ("queue_full", "deadline", "too_large", "bad_image", "draining", "auth", "disconnected")
    for reason in reasons:
        stats.rejected(reason)
    assert {reason for reason, count in stats.rejections.items() if count} == set(reasons)


def test_p99_of_the_last_runs() -> None:
    stats = ServerStats()
    assert stats.recent_p99_ns() == 0
    stats.executed(Timing(1, 0, 0, 77))
    assert stats.recent_p99_ns() == 77
    for infer_ns in random.Random(1).sample(range(1, 101), 100):
        stats.executed(Timing(1, 0, 0, infer_ns))
    # 101 values: 1..100 and 77 once more; the 100th of them in order is 99.
    assert stats.recent_p99_ns() == 99
    for infer_ns in [1000] * 3 + [5] * 253:
        stats.executed(Timing(1, 0, 0, infer_ns))
    assert stats.recent_p99_ns() == 1000  # 3 of 256 are slow: more than one in a hundred
    stats.executed(Timing(1, 0, 0, 5))
    assert stats.recent_p99_ns() == 5  # 2 of 256 are slow: fewer
    stats.executed(Timing(1, 0, 0, 10**9, ok=False))
    assert stats.recent_p99_ns() == 5


def test_a_new_model_begins_its_own_statistics_and_the_server_keeps_its_counts() -> None:
    stats = _three_requests()
    stats.model_loaded(ok=False)
    assert stats.model.success_count == 3
    stats.model_loaded(ok=True)
    (entry,) = stats.to_triton("ants", "2")["model_stats"]
    assert (entry["inference_count"], entry["execution_count"], entry["batch_stats"]) == (0, 0, [])
    assert stats.recent_p99_ns() == 0
    assert sum(stats.infer.counts) == 2
    assert stats.loads == {"ok": 1, "failed": 1}
