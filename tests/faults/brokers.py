"""One to three real brokers, each behind a proxy that its metadata names: its clients go through the proxy.

One broker is its own controller. Of more, any may be stopped or killed, so the controller is a process of its own.
The tests' own clients go past the proxies, to `direct`. A topic's replicas are placed by the test.
"""

from __future__ import annotations

import signal
import uuid
from base64 import urlsafe_b64encode
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from confluent_kafka import ElectionType, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from kbatchd.devstack.kafka import LOG_LEVEL, PROPERTIES, START_SECONDS, STOP_SECONDS, _java, cache_directory, jars
from kbatchd.devstack.process import end, free_ports, is_listening, run, spawn, tail, wait_until_ready
from kbatchd.errors import ServerUnavailable
from tests.faults.kafka_wire import KafkaWire
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

#: Several of them fit beside all else: 256 MB of heap, and the simplest collector. Half of it for a mere controller.
JVM = ("-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-XX:TieredStopAtLevel=1")
CONTROLLER_JVM = ("-Xms32m", "-Xmx128m", *JVM[2:])

CONTROLLER_ID = 100

#: Behind devstack's own lines: of a name that comes twice, the last line counts.
MORE = """
process.roles={roles}
node.id={node}
controller.quorum.voters={voter}
listeners={listeners}
advertised.listeners={advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT
log.dirs={data}
offsets.topic.num.partitions=1
transaction.state.log.num.partitions=1
log.cleaner.dedupe.buffer.size=2097152
log.segment.bytes=16777216
log.index.size.max.bytes=1048576
controlled.shutdown.enable={controlled}
# A leader without followers sees them gone in a second, and what only it has counts.
replica.lag.time.max.ms=1500
replica.fetch.wait.max.ms=100
broker.session.timeout.ms=1500
broker.heartbeat.interval.ms=250
leader.imbalance.check.interval.seconds=1
"""


class Node:
    """One process of Kafka's: a broker, the controller, or both."""

    def __init__(self, directory: Path, node: int, voter: str, listeners: str, advertised: str, roles: str) -> None:
        self.node = node
        self.log = directory / f"kafka-{node}.log"
        self._properties = directory / f"server-{node}.properties"
        self._values = {
            "roles": roles,
            "node": node,
            "voter": voter,
            "listeners": listeners,
            "advertised": advertised,
            "data": directory / f"data-{node}",
            "controlled": "true",
        }
        self._jvm = JVM if "broker" in roles else CONTROLLER_JVM
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        return self._process is not None

    def start(self, cluster_id: str, port: int) -> None:
        """Start it, on the data it has if it has any; return when it listens."""
        if self._process is not None:
            return
        directory = self.log.parent
        temporary = f"-Djava.io.tmpdir={directory}"
        java = [_java(), *self._jvm, LOG_LEVEL, temporary, "-cp", str(jars(cache_directory()) / "*")]
        if not self._properties.exists():
            self._format(java, cluster_id)
        self._process = spawn([*java, "kafka.Kafka", str(self._properties)], log=self.log, death_signal=signal.SIGKILL)
        wait_until_ready(
            f"Kafka {self.node}", self._process, lambda: is_listening(port), log=self.log, timeout_seconds=START_SECONDS
        )

    def end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            end(process, how, timeout_seconds=STOP_SECONDS)

    def send(self, how: signal.Signals) -> None:
        """Send a signal: SIGSTOP and SIGCONT make a broker that is there and does not answer."""
        assert self._process is not None
        self._process.send_signal(how)

    def _format(self, java: list[str], cluster_id: str) -> None:
        names = dict.fromkeys(("port", "controller_port"), 0) | dict.fromkeys(
            ("more_listeners", "advertised", "protocols"), ""
        )
        text = PROPERTIES.format(data=self._values["data"], **names) + MORE.format(**self._values)
        draft = self._properties.with_suffix(".draft")
        draft.write_text(text)
        command = [*java, "kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config", str(draft)]
        if not run(command, log=self.log):
            raise ServerUnavailable(f"Kafka's data directory cannot be made.\n{tail(self.log)}")
        draft.rename(self._properties)


class Brokers:
    """A cluster; its brokers count from 1."""

    def __init__(self, directory: Path, count: int = 1) -> None:
        """Choose the ports and open the proxies; nothing runs yet."""
        self._directory = directory
        self._cluster_id = urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        self._controller_port, *ports = free_ports(1 + 2 * count)
        self._direct = ports[:count]
        self.wires = [KafkaWire(port) for port in ports[count:]]
        alone = count == 1
        voter = f"{1 if alone else CONTROLLER_ID}@127.0.0.1:{self._controller_port}"
        controller = f"CONTROLLER://127.0.0.1:{self._controller_port}"
        self._controller = (
            None if alone else Node(directory, CONTROLLER_ID, voter, controller, controller, "controller")
        )
        self._nodes = []
        for index in range(count):
            direct = f"PLAINTEXT://127.0.0.1:{self._direct[index]}"
            listeners = f"{direct},PROXIED://127.0.0.1:{ports[count + index]}" + (f",{controller}" if alone else "")
            advertised = f"{direct},PROXIED://127.0.0.1:{self.wires[index].port}"
            roles = "broker,controller" if alone else "broker"
            self._nodes.append(Node(directory, index + 1, voter, listeners, advertised, roles))

    @property
    def wire(self) -> KafkaWire:
        """The proxy of the first broker: the only one, where there is one broker."""
        return self.wires[0]

    @property
    def bootstrap_servers(self) -> str:
        """Where the daemon connects: through the proxies."""
        return ",".join(f"127.0.0.1:{wire.port}" for wire in self.wires)

    @property
    def direct(self) -> str:
        """Where the test itself connects."""
        return ",".join(f"127.0.0.1:{port}" for port in self._direct)

    def start(self, *brokers: int) -> None:
        """Start these brokers, or all; return when each that runs is known to the others."""
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            if self._controller is not None:
                self._controller.start(self._cluster_id, self._controller_port)
            for number in brokers or range(1, len(self._nodes) + 1):
                self._nodes[number - 1].start(self._cluster_id, self._direct[number - 1])
            wait_until(lambda: self.known() == {n.node for n in self._nodes if n.runs}, START_SECONDS, "the brokers")
        except BaseException:
            self.close()
            raise

    def stop(self, broker: int) -> None:
        """Shut one down in good order: it gives its partitions away."""
        self._nodes[broker - 1].end(signal.SIGTERM)

    def kill(self, broker: int) -> None:
        """End one as a crash would; return when the others know."""
        self._nodes[broker - 1].end(signal.SIGKILL)
        if any(node.runs for node in self._nodes):
            wait_until(lambda: broker not in self.known(), 30, f"broker {broker} to be missed")

    def send(self, broker: int, how: signal.Signals) -> None:
        """Send a signal to one: SIGSTOP and SIGCONT."""
        self._nodes[broker - 1].send(how)

    @property
    def running(self) -> list[bool]:
        """Tell of each broker whether its process is there."""
        return [node.runs for node in self._nodes]

    def known(self) -> set[int]:
        """Return the brokers that the cluster knows to be there."""
        try:
            return set(self.admin().list_topics(timeout=5.0).brokers)
        except KafkaException:
            return set()

    def admin(self) -> AdminClient:
        """Make a client past the proxies."""
        up = [str(p) for p, node in zip(self._direct, self._nodes, strict=True) if node.runs] or self._direct
        return AdminClient({"bootstrap.servers": ",".join(f"127.0.0.1:{p}" for p in up), "log_level": 0})

    def make_topic(
        self, partitions: int = 1, name: str | None = None, replicas: Sequence[int] = (1,), **config: object
    ) -> str:
        """Make a topic; each partition's first replica is the leader that is preferred."""
        return self.spread_topic([replicas] * partitions, name, **config)

    def spread_topic(self, replicas: Sequence[Sequence[int]], name: str | None = None, **config: object) -> str:
        """Make a topic whose partitions have each its own replicas."""
        topic = name or f"t-{uuid.uuid4().hex[:12]}"
        settings = {key.replace("_", "."): str(value) for key, value in config.items()}
        partitions = len(replicas)
        new = NewTopic(topic, partitions, replica_assignment=[list(each) for each in replicas], config=settings)
        admin = self.admin()  # it must live as long as its future
        admin.create_topics([new])[topic].result()
        self.wait_for_leader(topic, partitions=partitions)
        return topic

    def leader(self, topic: str, partition: int = 0) -> int:
        """Return who leads a partition; -1: nobody."""
        partitions = self.admin().list_topics(topic, timeout=10.0).topics[topic].partitions
        return partitions[partition].leader if partition in partitions else -1

    def segments(self, topic: str, partition: int = 0, broker: int = 1) -> list[Path]:
        """Return the files that hold a partition's records at a broker."""
        return sorted((self._directory / f"data-{broker}" / f"{topic}-{partition}").glob("*.log"))

    def in_sync(self, topic: str, partition: int = 0) -> set[int]:
        """Return the replicas that have all the leader has."""
        return set(self.admin().list_topics(topic, timeout=10.0).topics[topic].partitions[partition].isrs)

    def wait_for_leader(self, topic: str, broker: int | None = None, partitions: int = 1) -> None:
        """Return when this broker leads the topic's partitions, or any broker does."""

        def led() -> bool:
            leaders = [self.leader(topic, partition) for partition in range(partitions)]
            return all(leader == broker if broker else leader > 0 for leader in leaders)

        wait_until(led, 30, f"a leader of {topic}")

    def elect(self, topic: str, partition: int = 0) -> None:
        """Let who is there lead, in sync or not."""
        at = TopicPartition(topic, partition)
        admin = self.admin()
        with suppress(KafkaException):  # it leads already
            admin.elect_leaders(ElectionType.UNCLEAN, [at]).result()

    def close(self) -> None:
        """End all."""
        for node in (*self._nodes, self._controller):
            if node is not None:
                node.end(signal.SIGKILL)
        for wire in self.wires:
            wire.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
