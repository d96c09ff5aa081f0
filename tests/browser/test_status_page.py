"""The monitor's status page in a real browser: what it shows is what PostgreSQL and Kafka say, as they change.

With KBATCHD_PICTURES=docs the pictures of the documentation are made as well, here and in test_docs_page.py.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import psycopg
import pytest
from confluent_kafka import Producer

from tests.fix_browser import keep_picture
from tests.fix_daemon import wait_until
from tests.fix_load import Delivery, new_delivery

if TYPE_CHECKING:
    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_browser import Browser
    from tests.fix_kafka import MakeTopic
    from tests.fix_monitor import MakeMonitored, Monitor

pytestmark = pytest.mark.browser

BAD = (b'{"partition":0}', b'{"partition":"<script>window.added = 1</script>","seq":1}', b"no JSON")


def send_bad(delivery: Delivery, times: int) -> None:
    producer = Producer({"bootstrap.servers": delivery.bootstrap_servers})
    for _ in range(times):
        for value in BAD:
            producer.produce(delivery.topic, value, key=b"the key", partition=0)
    assert producer.flush(30) == 0


def cells(browser: Browser, table: str) -> dict[str, list[str]]:
    """What a table of the page shows, by its lines' names."""
    script = (
        f"Object.fromEntries([...document.querySelectorAll('#{table} tr[data-name]')]"
        ".map(line => [line.dataset.name, [...line.cells].map(cell => cell.textContent)]))"
    )
    shown: dict[str, list[str]] = browser.run(script)
    return shown


def number(text: str) -> int:
    return int(text.replace(",", ""))


def progress_shown(browser: Browser, delivery: Delivery) -> dict[int, tuple[int, int, int]]:
    """Progress, end and lag of each partition, as the page has them; -1 for what it does not know."""
    name = delivery.route["name"]
    return {
        int(key.rpartition("/")[2]): tuple(number(text) if text[0].isdigit() else -1 for text in line[3:6])  # type: ignore[misc]
        for key, line in cells(browser, "partitions").items()
        if key.rpartition("/")[0] == name
    }


@pytest.fixture
def page(browser: Browser, delivery: Delivery, make_monitored: MakeMonitored) -> tuple[Browser, Monitor]:
    """The page of a daemon of one route."""
    _, monitor = make_monitored(delivery.route)
    browser.open(f"http://127.0.0.1:{monitor.port}/")
    return browser, monitor


def test_values_are_those_of_postgres_and_kafka(page: tuple[Browser, Monitor], delivery: Delivery) -> None:
    browser, _ = page
    delivery.send(4_321)
    send_bad(delivery, 7)
    delivery.wait_drained()
    ends = delivery.ends()
    assert sum(ends.values()) == 4_321 + 21
    expected = {partition: (delivery.progress()[partition], end, 0) for partition, end in ends.items()}
    wait_until(lambda: progress_shown(browser, delivery) == expected, 15, "progress and ends on the page", 0.2)

    def route() -> tuple[str, int, int]:
        line = cells(browser, "routes")[str(delivery.route["name"])]
        return line[2], number(line[4]), number(line[6])

    # Rows are counted after their commit.
    wait_until(lambda: route() == ("public.numbered", 0, delivery.rows()), 15, "the route's line on the page", 0.2)
    browser.wait_for("document.getElementById('verdict').textContent == 'All is well'")
    # Dead letters by cause, and a look at one: shown, not run.
    dead = delivery.query('SELECT route, code, "column", count(*) FROM kbatchd.dead_letters GROUP BY 1, 2, 3')
    causes = {f"{route}/{code}/{column or ''}": str(count) for route, code, column, count in dead}
    assert sum(map(int, causes.values())) == 21
    wait_until(lambda: {k: v[3] for k, v in cells(browser, "causes").items()} == causes, 15, "the causes", 0.2)
    browser.run("for (const button of document.querySelectorAll('#causes button')) button.click()")
    browser.wait_for("document.querySelectorAll('#causes pre').length >= 4")
    looked = browser.run("document.getElementById('causes').textContent")
    assert "<script>window.added = 1</script>" in looked
    assert "the key" in looked
    assert browser.run("window.added") is None
    assert browser.run("violations") == []


def test_lag_is_shown_while_postgres_refuses(page: tuple[Browser, Monitor], delivery: Delivery, database: str) -> None:
    browser, _ = page
    delivery.send(400)
    delivery.wait_drained()
    with psycopg.connect(database) as connection:
        connection.execute("LOCK TABLE public.numbered IN ACCESS EXCLUSIVE MODE")
        delivery.send(800, first=100)
        ends, stands = delivery.ends(), delivery.progress()
        expected = {number: (stands[number], end, end - stands[number]) for number, end in ends.items()}
        assert sum(lag for _, _, lag in expected.values()) == 800
        wait_until(lambda: progress_shown(browser, delivery) == expected, 15, "the lag on the page", 0.2)
        browser.wait_for("document.getElementById('lag').textContent == '800'")
        browser.wait_for("Number(document.getElementById('lags').dataset.highest) >= 800")
    delivery.wait_drained()
    browser.wait_for("document.getElementById('lag').textContent == '0'")


def test_page_survives_a_restart(browser: Browser, delivery: Delivery, make_monitored: MakeMonitored) -> None:
    daemon, monitor = make_monitored(delivery.route)
    browser.open(f"http://127.0.0.1:{monitor.port}/")
    delivery.send(1_000)
    delivery.wait_drained()
    browser.wait_for("document.getElementById('rows').textContent == '1,000'")
    assert browser.run("document.getElementById('contact').hidden")
    daemon.stop()
    browser.wait_for("!document.getElementById('contact').hidden")
    assert "No answer from the monitor for" in browser.run("document.getElementById('contact').textContent")
    assert cells(browser, "partitions"), "what was known is still there"
    daemon.start().wait_ready()
    delivery.send(400, first=250)
    browser.wait_for("document.getElementById('contact').hidden")
    browser.wait_for("document.getElementById('rows').textContent == '400'")
    # What was before the restart comes from the page's own memory, or from the ledger.
    assert browser.run("Math.max(...samples.map(sample => Object.values(sample.rates)[0] || 0))") > 0
    browser.run("document.getElementById('day').click()")
    day = "bins.reduce((sum, bin) => sum + bin.rows, 0)"
    [(rows,)] = delivery.query("SELECT sum(rows) FROM kbatchd.batches")
    wait_until(lambda: browser.run(day) == rows, 45, "the ledger's rows of the day", 0.5)
    assert browser.run("document.querySelectorAll('#rates polyline').length") == 1


def test_worker_that_is_away_is_seen(browser: Browser, delivery: Delivery, make_monitored: MakeMonitored) -> None:
    daemon, monitor = make_monitored(delivery.route, workers={"restart_backoff_max_seconds": 30.0})
    browser.open(f"http://127.0.0.1:{monitor.port}/")
    browser.wait_for("document.getElementById('verdict').textContent == 'All is well'")
    pid = next(each["pid"] for each in monitor.status()["processes"] if each["kind"] == "worker")
    os.kill(pid, 19)
    browser.wait_for("document.getElementById('verdict').textContent.includes('worker 0 has been silent')")
    assert "silent" in cells(browser, "processes")["worker-0"][1]
    os.kill(pid, 18)
    browser.wait_for("document.getElementById('verdict').textContent == 'All is well'")
    os.kill(pid, 9)
    browser.wait_for("document.querySelector('[data-name=worker-0]').cells[5].textContent == '1'")
    browser.wait_for("document.getElementById('notes').textContent.includes('worker ended')")
    assert daemon.workers()


@pytest.mark.parametrize(
    ("name", "dark", "width"), [("light", False, 1200), ("dark", True, 1200), ("phone", False, 390)]
)
def test_pictures(
    browser: Browser,
    kafka: Kafka | GivenKafka,
    database: str,
    make_topic: MakeTopic,
    make_monitored: MakeMonitored,
    name: str,
    width: int,
    *,
    dark: bool,
) -> None:
    requests, orders = (
        new_delivery(kafka.bootstrap_servers, make_topic(partitions, table), partitions, database, f"public.{table}")
        for table, partitions in (("requests", 4), ("orders", 2))
    )
    _, monitor = make_monitored(requests.route, orders.route)
    browser.screen(width, 900 if width > 400 else 844, dark=dark, mobile=width < 400)
    browser.open(f"http://127.0.0.1:{monitor.port}/")
    with requests.load(3_000), orders.load(1_100):
        send_bad(requests, 5)
        browser.wait_for("samples.filter(sample => sample.lags).length >= (6)")
        browser.wait_for("document.querySelectorAll('#causes tr[data-name]').length == 3")
    # Nothing is wider than the screen, and what it says is on it.
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    back = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(16, 21, 28)") == dark
    assert browser.run("violations") == []
    picture = browser.shoot()
    assert picture.startswith(b"\x89PNG")
    keep_picture(f"status-{name}", picture)
