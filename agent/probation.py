"""Probation: whether a candidate may stay, judged by what it did on live traffic."""

from skerry.wire import LiveStats, Probation

__all__ = ["judge"]


def judge(
    probation: Probation, live: LiveStats, elapsed_s: float, before: LiveStats | None = None
) -> tuple[str, str] | None:
    """Judge a candidate by what it did on live traffic.

    Args:
        probation: the limits that the assignment gave.
        live: since the candidate was activated.
        elapsed_s: since it was activated, by the clock.
        before: what the committed release did until then, None where nobody knows.

    Returns:
        None to wait; ``("ok", "")`` to commit; else a code and a message.
    """
    asked = live.answered + live.errors
    rate = live.errors / asked if asked else 0.0
    late = elapsed_s >= probation.timeout_s
    if rate > probation.max_error_rate and (asked >= probation.min_answered or late):
        return "error_rate", (
            f"expected at most {probation.max_error_rate:.2%} of requests to fail, "
            f"{live.errors} of {asked} did"
        )
    if live.answered >= probation.min_answered and live.seconds >= probation.min_seconds:
        limit = probation.max_p99_ms
        if limit is not None and live.p99_us is not None and live.p99_us > limit * 1000:
            return "latency", f"expected p99 below {limit} ms, got {live.p99_us / 1000:.1f} ms"
        ratio, was = probation.max_latency_ratio, before.p99_us if before else None
        if ratio is not None and was and live.p99_us is not None and live.p99_us > ratio * was:
            return "latency", (
                f"expected p99 of at most {ratio:g} x the {was / 1000:.1f} ms of the release "
                f"before, got {live.p99_us / 1000:.1f} ms"
            )
        return "ok", ""
    if late:
        return "insufficient_data", (
            f"expected {probation.min_answered} answers in {probation.timeout_s:.0f} s, "
            f"got {live.answered}"
        )
    return None
