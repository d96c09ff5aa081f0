"""Logins that expire: tokens that live ten seconds, before a real broker that checks their signatures and their end."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING

import orjson
import pytest

from kbatchd.devstack.kafka import Kafka
from kbatchd.errors import EX_CONFIG
from tests.fix_daemon import wait_until
from tests.fix_http import Client, free_port
from tests.fix_kafka import _topics
from tests.fix_load import new_delivery, read_topic
from tests.fix_oauth import AUDIENCE, CLIENT, SECRET, Issuer, TokenEndpoint, token_endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fix_daemon import MakeDaemon
    from tests.fix_load import Delivery
    from tests.fix_tls import Certificates

LIFE_SECONDS = 10.0

#: How each of the tokens begins.
JWT = "eyJ"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    issuer = Issuer(tmp_path_factory.mktemp("issuer"), LIFE_SECONDS)
    yield issuer
    issuer.close()


@pytest.fixture(scope="module")
def broker(issuer: Issuer, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A broker that asks for tokens; who sends to its other listener needs none."""
    listeners = issuer.listeners(certificates.both("GOOD"))
    with Kafka(tmp_path_factory.mktemp("kafka-oauth"), listeners=listeners) as server:
        yield server


@pytest.fixture
def delivery(broker: Kafka, database: str, issuer: Issuer) -> Iterator[Delivery]:
    issuer.behave()
    issuer.audience = AUDIENCE
    with _topics(broker.bootstrap_servers, delete=False) as make:
        yield new_delivery(broker.bootstrap_servers, make(2), 2, database)


@pytest.fixture
def secured(broker: Kafka, certificates: Certificates) -> dict[str, object]:
    """What stands in [kafka], but for the way to a token."""
    return {
        "bootstrap_servers": broker.login_servers("OAUTH"),
        "tls": True,
        "tls_ca_file": str(certificates.authority),
        "sasl_mechanism": "OAUTHBEARER",
    }


class TestCommand:
    @pytest.fixture
    def secured(self, secured: dict[str, object], issuer: Issuer) -> dict[str, object]:
        return {**secured, "token_command": issuer.command}

    def test_every_kind_of_client_renews(
        self, make_daemon: MakeDaemon, delivery: Delivery, secured: dict[str, object]
    ) -> None:
        port = free_port()
        daemon = make_daemon(
            delivery.route,
            kafka=secured,
            gateway={"listen": f"127.0.0.1:{port}"},
            monitor={"listen": f"127.0.0.1:{free_port()}"},
            log={"level": "debug"},
        )
        daemon.start().wait_ready()
        sent = 0
        until = time.monotonic() + 2.5 * LIFE_SECONDS  # a life is what it is
        command = [sys.executable, "-m", "kbatchd", "produce", "--config", str(daemon.config), delivery.topic]
        with subprocess.Popen([*command, "--generate", "250", "--rate", "10"], stdout=subprocess.PIPE) as producing:
            with delivery.load(per_second=500), Client(port) as client:
                while time.monotonic() < until:
                    answer = client.post(f"/v1/{delivery.topic}", b'{"partition":7,"seq":%d}' % sent)
                    assert answer.status == 202, answer
                    sent += 1
                    time.sleep(0.2)
            assert producing.wait(60) == 0
        delivery.wait_drained()
        for words in (["status", "--exit-code"], ["check"], ["progress", "show"]):
            done = daemon.command(*words)
            assert done.returncode == 0, done.stdout + done.stderr
        assert daemon.stop() == 0
        assert_all_is_there(delivery)
        assert JWT not in daemon.log.read_text()
        assert not daemon.logged(" WARNING ") + daemon.logged(" ERROR ")

    def test_one_that_fails_is_told_and_run_again(
        self, make_daemon: MakeDaemon, delivery: Delivery, secured: dict[str, object], issuer: Issuer
    ) -> None:
        daemon = make_daemon(delivery.route, kafka=secured)
        daemon.start().wait_ready()
        with delivery.load(per_second=500):
            for how, why in (("exit 3", "ended with exit status 3"), ("echo x; exit", "does not say when")):
                issuer.behave(how)
                daemon.wait_for_log(why, 30)
            daemon.wait_for_log("action=kafka_error", 30)  # the token's life is over, and a broker has asked for it
            rows = delivery.rows()
            issuer.behave()
            daemon.wait_for_log("action=kafka_token_back", 30, count=2)
            wait_until(lambda: delivery.rows() > rows + 1_000, 30, "rows again")
        delivery.wait_drained()
        delivery.assert_exactly_once()
        assert len(daemon.logged("action=worker_started")) == 2
        assert daemon.stop() == 0

    def test_a_start_without_a_token_waits(
        self, make_daemon: MakeDaemon, delivery: Delivery, secured: dict[str, object], issuer: Issuer
    ) -> None:
        issuer.behave("exit 1")
        daemon = make_daemon(delivery.route, kafka=secured)
        daemon.start().wait_for_log("action=startup_wait")
        assert "no token for Kafka: kafka.token_command: sh ended with exit status 1" in daemon.lines()[-1]
        issuer.behave()
        daemon.wait_ready()
        assert daemon.stop() == 0

    def test_one_that_the_brokers_refuse_ends_the_start(
        self, make_daemon: MakeDaemon, delivery: Delivery, secured: dict[str, object], issuer: Issuer
    ) -> None:
        issuer.audience = "others"
        issuer.mint()
        daemon = make_daemon(delivery.route, kafka=secured)
        assert daemon.start().wait(40) == EX_CONFIG
        [fault] = daemon.logged("action=check_failed")
        assert "kafka: the brokers refuse us: " in fault
        assert "or whom the token is for" in fault


class TestOidc:
    @pytest.fixture
    def endpoint(self, issuer: Issuer) -> Iterator[TokenEndpoint]:
        with token_endpoint(issuer) as server:
            yield server

    @pytest.fixture
    def secured(self, secured: dict[str, object], endpoint: TokenEndpoint, tmp_path: Path) -> dict[str, object]:
        secret = tmp_path / "client_secret"
        secret.write_text(f"{SECRET}\n")
        secret.chmod(0o600)
        oidc = {"sasl.oauthbearer.method": "oidc", "sasl.oauthbearer.token.endpoint.url": endpoint.url}
        return {**secured, "sasl_username": CLIENT, "password_file": str(secret), "librdkafka": oidc}

    def test_librdkafka_renews(
        self, make_daemon: MakeDaemon, delivery: Delivery, secured: dict[str, object], endpoint: TokenEndpoint
    ) -> None:
        daemon = make_daemon(delivery.route, kafka=secured)
        daemon.start().wait_ready()
        given = len(endpoint.given)
        with delivery.load(per_second=500):
            time.sleep(1.5 * LIFE_SECONDS)
        assert len(endpoint.given) >= given + 4  # two workers, each with two clients
        delivery.wait_drained()
        delivery.assert_exactly_once()
        assert daemon.stop() == 0
        assert not daemon.logged(" WARNING ") + daemon.logged(" ERROR ")

    @pytest.mark.soak  # librdkafka tries for half a minute before it says that there is no token
    def test_an_issuer_that_is_away(
        self, make_daemon: MakeDaemon, delivery: Delivery, secured: dict[str, object], endpoint: TokenEndpoint
    ) -> None:
        daemon = make_daemon(delivery.route, kafka=secured)
        daemon.start().wait_ready()
        with delivery.load(per_second=500):
            endpoint.is_down = True
            daemon.wait_for_log("Failed to retrieve OIDC token", 60)
            daemon.wait_for_log("SASL authentication error", 60)
            endpoint.is_down = False
            daemon.wait_for_log("action=kafka_back", 60, count=2)
        delivery.wait_drained()
        delivery.assert_exactly_once()
        assert len(daemon.logged("action=worker_started")) == 2
        assert daemon.stop() == 0

    def test_a_wrong_secret_ends_the_start(
        self, make_daemon: MakeDaemon, delivery: Delivery, secured: dict[str, object], tmp_path: Path
    ) -> None:
        (tmp_path / "client_secret").write_text("an0ther")
        daemon = make_daemon(delivery.route, kafka=secured)
        assert daemon.start().wait(40) == EX_CONFIG
        [fault] = daemon.logged("action=check_failed")
        assert "kafka: the issuer of tokens refuses us: " in fault
        assert "an0ther" not in daemon.log.read_text()


def assert_all_is_there(delivery: Delivery) -> None:
    """Compare topic and table, whatever the records say of themselves."""
    values = (
        orjson.loads(message.value() or b"") for message in read_topic(delivery.bootstrap_servers, delivery.topic)
    )
    sent = Counter((value["partition"], value["seq"]) for value in values)
    rows = Counter(delivery.query(f"SELECT partition, seq FROM {delivery.table}"))
    assert rows == sent
    assert sum(sent.values()) > 2.5 * LIFE_SECONDS * 500
