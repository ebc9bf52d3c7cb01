"""A small share of `scripts.damage.torture_serve`: no request is lost or answered with another one's text."""

import asyncio

from running_server import running

from scripts.damage import torture_serve


def test_no_request_is_lost_or_mixed_up(base, tmp_path):
    plan = torture_serve.prepare(base, tmp_path)
    with running(base, plan.folder) as server:
        clients = torture_serve.Torture(plan, server.port, 3)
        asyncio.run(clients.run(clients=20, requests=120))
        assert server.becomes_idle()
    assert clients.faults == []
    assert clients.counts["whole: right"] > 20
    assert clients.counts["stream: right"] > 10
    assert clients.counts["cancel: right"] > 3
    assert sum(count for kind, count in clients.counts.items() if kind.startswith("upload")) > 2


def test_a_wrong_answer_is_seen(tmp_path):
    plan = torture_serve.Plan(tmp_path, {}, {("A", "x", 1): ["right"]})
    clients = torture_serve.Torture(plan, 0, 0)
    assert clients._judged(("A", "x", 1), "right") == "right"
    assert clients._judged(("A", "x", 1), "ri", is_whole=False) == "right"
    assert clients._judged(("A", "x", 1), "ri") == "mixed up"
    assert clients._judged(("A", "x", 1), "wrong", is_whole=False) == "mixed up"
    assert len(clients.faults) == 2
