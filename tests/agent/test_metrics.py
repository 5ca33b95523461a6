"""What control knows of itself is in the text for Prometheus, each family once and well formed."""

from agent.metrics import control_text
from agent.status_file import Status

KNOWN = Status(
    control_pid=7, serve_pid=8, http="http://127.0.0.1:1", connected=True, acked={}, waiting=12,
    under_way=2, serve_restarts=1, refused=3, stale=["catalog"], clock_off_s=-90, unrecorded=4,
    certificate_expires=1_800_000_000.7, doing={"reader": "probation", "second": "idle"},
)  # fmt: skip


def samples(text: str) -> dict[str, float]:
    return {
        name: float(value)
        for name, _, value in (
            line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")
        )
    }


def test_each_figure_of_control_is_told() -> None:
    text = control_text(KNOWN)
    assert samples(text) == {
        "skerry_agent_connected": 1,
        "skerry_agent_outbox_records": 12,
        "skerry_agent_outbox_batches": 2,
        "skerry_agent_serve_restarts_total": 1,
        "skerry_agent_unrecorded_total": 4,
        "skerry_agent_refused_messages_total": 3,
        "skerry_agent_clock_ahead_seconds": -90,
        "skerry_agent_patched_total": 0,
        "skerry_agent_patch_failures_total": 0,
        "skerry_agent_certificate_expires_timestamp_seconds": 1_800_000_001,
        'skerry_agent_metadata_stale{repository="catalog"}': 1,
        'skerry_agent_metadata_stale{repository="director"}': 0,
        'skerry_agent_slot_state{slot="reader",state="probation"}': 1,
        'skerry_agent_slot_state{slot="second",state="idle"}': 1,
    }
    kinds = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds)) == len({name.split("{")[0] for name in samples(text)})


def test_a_certificate_that_cannot_be_read_has_no_end() -> None:
    unreadable = Status(
        control_pid=7, serve_pid=None, http="", connected=False, acked={}, waiting=0, under_way=0
    )
    found = samples(control_text(unreadable))
    assert found["skerry_agent_connected"] == 0
    assert "skerry_agent_certificate_expires_timestamp_seconds" not in found
