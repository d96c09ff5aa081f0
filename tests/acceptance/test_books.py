"""Books that do not balance: the daemon undoes the batch, says in one line what is missing, and goes on when it can."""

from __future__ import annotations

from tests.fix_daemon import MakeDaemon
from tests.fix_load import MakeDelivery


def test_a_row_that_is_lost_is_told_and_nothing_of_its_batch_is_in(
    make_delivery: MakeDelivery, make_daemon: MakeDaemon
) -> None:
    # Given: somebody keeps a line of the ledger out.
    delivery = make_delivery(1)
    delivery.execute(
        "CREATE FUNCTION public.lose() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER lose BEFORE INSERT ON kbatchd.batches FOR EACH ROW EXECUTE FUNCTION public.lose()"
    )
    delivery.send(100)

    daemon = make_daemon(delivery.route, batch={"linger_seconds": 0.1}, workers={"count": 1}).start()

    daemon.wait_for_log("lines of the ledger: expected 1, got 0", 30, count=2)
    assert all("action=aside" in line for line in daemon.logged("lines of the ledger"))
    assert (delivery.rows(), delivery.progress()) == (0, {0: 0})
    delivery.execute("DROP TRIGGER lose ON kbatchd.batches")
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert daemon.stop() == 0
