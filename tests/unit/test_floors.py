"""Imports go only downwards, and each third-party library has its owners."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

import kbatchd

#: Every module of the package, by floor. A package stands for all modules in it.
FLOORS = {
    4: {"kbatchd.__main__", "kbatchd.cli", "kbatchd.commands"},
    3: {"kbatchd.checkup", "kbatchd.excerpt", "kbatchd.findings", "kbatchd.inspection", "kbatchd.trial",
        "kbatchd.claims", "kbatchd.daemon", "kbatchd.devstack", "kbatchd.flusher", "kbatchd.gateway",
        "kbatchd.handover", "kbatchd.later", "kbatchd.identity", "kbatchd.intake", "kbatchd.lag", "kbatchd.monitor",
        "kbatchd.preflight", "kbatchd.produce", "kbatchd.properties", "kbatchd.prune", "kbatchd.reload",
        "kbatchd.remedies", "kbatchd.replay", "kbatchd.standing", "kbatchd.standstill", "kbatchd.starting",
        "kbatchd.unreadable", "kbatchd.watch", "kbatchd.worker", "kbatchd.one_by_one"},
    2: {"kbatchd.column_names", "kbatchd.inference", "kbatchd.table_text",
        "kbatchd._lane", "kbatchd.bar", "kbatchd.batch", "kbatchd.batch_copy", "kbatchd.bodies", "kbatchd.careful_lane",
        "kbatchd.column_types", "kbatchd.compiled_lane", "kbatchd.csv_files", "kbatchd.door", "kbatchd.fast_lane",
        "kbatchd.fields_numbers",
        "kbatchd.fields_times", "kbatchd.mapping", "kbatchd.message", "kbatchd.text_lane",
        "kbatchd.copying",
        "kbatchd.exact", "kbatchd.failures", "kbatchd.fields", "kbatchd.files", "kbatchd.ledger", "kbatchd.insertion",
        "kbatchd.letters", "kbatchd.migrations", "kbatchd.outage", "kbatchd.producer", "kbatchd.progress",
        "kbatchd.reached", "kbatchd.feeding", "kbatchd.halting",
        "kbatchd.renaming", "kbatchd.resumable", "kbatchd.rows", "kbatchd.samples", "kbatchd.shape",
        "kbatchd.sink",
        "kbatchd.source", "kbatchd.streams", "kbatchd.tables", "kbatchd.targets",
        "kbatchd.offsets", "kbatchd.topics", "kbatchd.truncation", "kbatchd.upsert"},
    1: {"kbatchd.books", "kbatchd.catalogue", "kbatchd.config_mapping", "kbatchd.config_monitor", "kbatchd.notes",
        "kbatchd.config", "kbatchd.config_faults", "kbatchd.config_gateway",
        "kbatchd.config_kafka", "kbatchd.config_postgres", "kbatchd.config_route", "kbatchd.config_table",
        "kbatchd.kafka_errors", "kbatchd.client_settings", "kbatchd.config_text", "kbatchd.conninfo",
        "kbatchd.credentials", "kbatchd.folding", "kbatchd.headers", "kbatchd.internal", "kbatchd.log",
        "kbatchd.postgres", "kbatchd.rdkafka_log", "kbatchd.stats", "kbatchd.systemd", "kbatchd.place",
        "kbatchd.suspicions"},
    0: {"kbatchd", "kbatchd.errors", "kbatchd.histograms", "kbatchd.lineage", "kbatchd.model", "kbatchd.outlet",
        "kbatchd.places",
        "kbatchd.paths", "kbatchd.printable",
        "kbatchd.refused_login", "kbatchd.shipped", "kbatchd.toml_lines"},
}  # fmt: skip

#: The only imports between modules of one floor.
SAME_FLOOR = {
    ("kbatchd.__main__", "kbatchd.cli"),
    ("kbatchd.worker", "kbatchd.flusher"),
    ("kbatchd.worker", "kbatchd.handover"),
    ("kbatchd.worker", "kbatchd.intake"),
    ("kbatchd.worker", "kbatchd.one_by_one"),
    ("kbatchd.intake", "kbatchd.one_by_one"),
    ("kbatchd.suspicions", "kbatchd.place"),
    ("kbatchd.stats", "kbatchd.place"),
    ("kbatchd.intake", "kbatchd.handover"),
    ("kbatchd.worker", "kbatchd.standstill"),
    ("kbatchd.worker", "kbatchd.unreadable"),
    ("kbatchd.worker", "kbatchd.watch"),
    ("kbatchd.flusher", "kbatchd.claims"),
    ("kbatchd.flusher", "kbatchd.handover"),
    ("kbatchd.flusher", "kbatchd.identity"),
    ("kbatchd.claims", "kbatchd.handover"),
    ("kbatchd.claims", "kbatchd.identity"),
    ("kbatchd.watch", "kbatchd.identity"),
    ("kbatchd.truncation", "kbatchd.source"),
    ("kbatchd.claims", "kbatchd.starting"),
    ("kbatchd.offsets", "kbatchd.topics"),
    ("kbatchd.source", "kbatchd.offsets"),
    ("kbatchd.reload", "kbatchd.daemon"),
    ("kbatchd.reload", "kbatchd.preflight"),
    ("kbatchd.door", "kbatchd.exact"),
    ("kbatchd.door", "kbatchd.fields"),
    ("kbatchd.resumable", "kbatchd.samples"),
    ("kbatchd.samples", "kbatchd.mapping"),
    ("kbatchd.samples", "kbatchd.shape"),
    ("kbatchd.shape", "kbatchd.mapping"),
    ("kbatchd.csv_files", "kbatchd.feeding"),
    ("kbatchd.csv_files", "kbatchd.files"),
    ("kbatchd.feeding", "kbatchd.exact"),
    ("kbatchd.feeding", "kbatchd.mapping"),
    ("kbatchd.csv_files", "kbatchd.mapping"),
    ("kbatchd.door", "kbatchd.rows"),
    ("kbatchd.careful_lane", "kbatchd.column_types"),
    ("kbatchd.careful_lane", "kbatchd.fields"),
    ("kbatchd.careful_lane", "kbatchd.fields_times"),
    ("kbatchd.careful_lane", "kbatchd.mapping"),
    ("kbatchd.careful_lane", "kbatchd.message"),
    ("kbatchd.column_types", "kbatchd.exact"),
    ("kbatchd.column_types", "kbatchd.fields"),
    ("kbatchd.column_types", "kbatchd.fields_numbers"),
    ("kbatchd.column_types", "kbatchd.fields_times"),
    ("kbatchd.fast_lane", "kbatchd.careful_lane"),
    ("kbatchd.fast_lane", "kbatchd.column_types"),
    ("kbatchd.fast_lane", "kbatchd.exact"),
    ("kbatchd.fast_lane", "kbatchd.fields_numbers"),
    ("kbatchd.fast_lane", "kbatchd.fields_times"),
    ("kbatchd.fast_lane", "kbatchd.mapping"),
    ("kbatchd.fields_numbers", "kbatchd.fields"),
    ("kbatchd.fields_times", "kbatchd.fields"),
    ("kbatchd.fields_times", "kbatchd.fields_numbers"),
    ("kbatchd.mapping", "kbatchd.fields"),
    ("kbatchd.mapping", "kbatchd.message"),
    ("kbatchd.message", "kbatchd.exact"),
    ("kbatchd.message", "kbatchd.fields"),
    ("kbatchd.rows", "kbatchd.careful_lane"),
    ("kbatchd.rows", "kbatchd.column_types"),
    ("kbatchd.rows", "kbatchd.fast_lane"),
    ("kbatchd.rows", "kbatchd.mapping"),
    ("kbatchd.rows", "kbatchd.message"),
    ("kbatchd.rows", "kbatchd.text_lane"),
    ("kbatchd.tables", "kbatchd.mapping"),
    ("kbatchd.targets", "kbatchd.mapping"),
    ("kbatchd.text_lane", "kbatchd.fields_numbers"),
    ("kbatchd.text_lane", "kbatchd.careful_lane"),
    ("kbatchd.text_lane", "kbatchd.column_types"),
    ("kbatchd.text_lane", "kbatchd.exact"),
    ("kbatchd.text_lane", "kbatchd.fields"),
    ("kbatchd.text_lane", "kbatchd.fields_times"),
    ("kbatchd.text_lane", "kbatchd.mapping"),
    ("kbatchd.config_mapping", "kbatchd.config_faults"),
    ("kbatchd.config_mapping", "kbatchd.config_table"),
    ("kbatchd.config_route", "kbatchd.config_mapping"),
    ("kbatchd.compiled_lane", "kbatchd._lane"),
    ("kbatchd.compiled_lane", "kbatchd.careful_lane"),
    ("kbatchd.compiled_lane", "kbatchd.fast_lane"),
    ("kbatchd.compiled_lane", "kbatchd.fields"),
    ("kbatchd.compiled_lane", "kbatchd.mapping"),
    ("kbatchd.rows", "kbatchd.compiled_lane"),
    ("kbatchd.rows", "kbatchd.exact"),
    ("kbatchd.rows", "kbatchd.fields"),
    ("kbatchd.config_route", "kbatchd.config_faults"),
    ("kbatchd.batch_copy", "kbatchd.batch"),
    ("kbatchd.batch_copy", "kbatchd.copying"),
    ("kbatchd.batch_copy", "kbatchd.progress"),
    ("kbatchd.batch_copy", "kbatchd.upsert"),
    ("kbatchd.insertion", "kbatchd.batch"),
    ("kbatchd.insertion", "kbatchd.batch_copy"),
    ("kbatchd.sink", "kbatchd.batch"),
    ("kbatchd.sink", "kbatchd.copying"),
    ("kbatchd.sink", "kbatchd.batch_copy"),
    ("kbatchd.sink", "kbatchd.insertion"),
    ("kbatchd.sink", "kbatchd.progress"),
    ("kbatchd.sink", "kbatchd.upsert"),
    ("kbatchd.letters", "kbatchd.sink"),
    ("kbatchd.reached", "kbatchd.progress"),
    ("kbatchd.source", "kbatchd.outage"),
    ("kbatchd.halting", "kbatchd.progress"),
    ("kbatchd.renaming", "kbatchd.progress"),
    ("kbatchd.preflight", "kbatchd.inspection"),
    ("kbatchd.preflight", "kbatchd.properties"),
    ("kbatchd.checkup", "kbatchd.properties"),
    ("kbatchd.client_settings", "kbatchd.rdkafka_log"),
    ("kbatchd.config", "kbatchd.config_text"),
    ("kbatchd.checkup", "kbatchd.excerpt"),
    ("kbatchd.checkup", "kbatchd.findings"),
    ("kbatchd.checkup", "kbatchd.inspection"),
    ("kbatchd.checkup", "kbatchd.trial"),
    ("kbatchd.checkup", "kbatchd.watch"),
    ("kbatchd.trial", "kbatchd.findings"),
    ("kbatchd.trial", "kbatchd.remedies"),
    ("kbatchd.inference", "kbatchd.exact"),
    ("kbatchd.inference", "kbatchd.column_names"),
    ("kbatchd.table_text", "kbatchd.column_names"),
    ("kbatchd.table_text", "kbatchd.inference"),
    ("kbatchd.targets", "kbatchd.batch"),
    ("kbatchd.targets", "kbatchd.progress"),
    ("kbatchd.targets", "kbatchd.rows"),
    ("kbatchd.targets", "kbatchd.batch_copy"),
    ("kbatchd.targets", "kbatchd.upsert"),
    ("kbatchd.log", "kbatchd.folding"),
    ("kbatchd.log", "kbatchd.systemd"),
    ("kbatchd.stats", "kbatchd.notes"),
    ("kbatchd.lag", "kbatchd.watch"),
    ("kbatchd.replay", "kbatchd.later"),
    ("kbatchd.standing", "kbatchd.lag"),
    ("kbatchd.monitor", "kbatchd.standing"),
    ("kbatchd.monitor", "kbatchd.gateway"),
    ("kbatchd.monitor", "kbatchd.lag"),
    ("kbatchd.config", "kbatchd.config_monitor"),
    ("kbatchd.config_monitor", "kbatchd.config_table"),
    ("kbatchd.postgres", "kbatchd.config"),
    ("kbatchd.config", "kbatchd.config_faults"),
    ("kbatchd.config", "kbatchd.config_gateway"),
    ("kbatchd.config", "kbatchd.config_kafka"),
    ("kbatchd.config", "kbatchd.config_postgres"),
    ("kbatchd.config", "kbatchd.config_route"),
    ("kbatchd.config", "kbatchd.config_table"),
    ("kbatchd.config_gateway", "kbatchd.config_faults"),
    ("kbatchd.config_gateway", "kbatchd.config_table"),
    ("kbatchd.config_gateway", "kbatchd.credentials"),
    ("kbatchd.config_kafka", "kbatchd.config_faults"),
    ("kbatchd.config_kafka", "kbatchd.config_table"),
    ("kbatchd.config_kafka", "kbatchd.credentials"),
    ("kbatchd.config_postgres", "kbatchd.credentials"),
    ("kbatchd.config_table", "kbatchd.credentials"),
    ("kbatchd.config_postgres", "kbatchd.config_faults"),
    ("kbatchd.config_postgres", "kbatchd.config_table"),
    ("kbatchd.config_postgres", "kbatchd.conninfo"),
    ("kbatchd.config_route", "kbatchd.config_table"),
    ("kbatchd.config_table", "kbatchd.config_faults"),
    ("kbatchd.errors", "kbatchd.model"),
}

#: Who may import a library, type-checking imports included.
OWNERS = {
    "confluent_kafka": {"kbatchd.client_settings", "kbatchd.properties", "kbatchd.kafka_errors", "kbatchd.offsets",
                        "kbatchd.source", "kbatchd.topics", "kbatchd.producer", "kbatchd.resumable",
                        "kbatchd.devstack", "kbatchd.commands"},
    "psycopg": {"kbatchd.checkup", "kbatchd.copying", "kbatchd.trial", "kbatchd.conninfo", "kbatchd.letters",
                "kbatchd.batch_copy", "kbatchd.postgres", "kbatchd.refused_login",
                "kbatchd.catalogue", "kbatchd.ledger", "kbatchd.sink", "kbatchd.progress", "kbatchd.migrations",
                "kbatchd.insertion", "kbatchd.reached", "kbatchd.upsert", "kbatchd.devstack", "kbatchd.commands"},
    "pydantic": {"kbatchd.config", "kbatchd.config_faults", "kbatchd.config_monitor",
                 "kbatchd.config_gateway", "kbatchd.config_kafka",
                 "kbatchd.config_mapping", "kbatchd.config_postgres", "kbatchd.config_route", "kbatchd.config_table"},
    "tomli": {"kbatchd.config_text"},
    "rich": {"kbatchd.bar", "kbatchd.commands"},
}  # fmt: skip

FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}


def test_imports_go_downwards() -> None:
    assert not [fault for module, tree in _modules() for fault in _faults(module, tree)]


def test_table_names_only_modules_that_exist() -> None:
    assert not set(FLOOR_OF) - {_entry(module) for module, _ in _modules()}


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("kbatchd.sink", "from kbatchd import worker", "kbatchd.sink (2) imports kbatchd.worker (3)"),
        ("kbatchd.sink", "from kbatchd.worker import Worker", "kbatchd.sink (2) imports kbatchd.worker (3)"),
        ("kbatchd.sink", "import kbatchd.worker", "kbatchd.sink (2) imports kbatchd.worker (3)"),
        ("kbatchd.sink", "from . import worker", "kbatchd.sink (2) imports kbatchd.worker (3)"),
        ("kbatchd.sink", "from .worker import Worker", "kbatchd.sink (2) imports kbatchd.worker (3)"),
        ("kbatchd.model", "def f():\n    import kbatchd.log", "kbatchd.model (0) imports kbatchd.log (1)"),
        ("kbatchd.config", "if TYPE_CHECKING:\n    from kbatchd.cli import main",
         "kbatchd.config (1) imports kbatchd.cli (4)"),
        ("kbatchd.batch", "from kbatchd import sink", "kbatchd.batch (2) imports kbatchd.sink (2)"),
        ("kbatchd.daemon.supervisor", "from ..cli import main", "kbatchd.daemon (3) imports kbatchd.cli (4)"),
        ("kbatchd.worker", "import confluent_kafka", "kbatchd.worker imports confluent_kafka"),
        ("kbatchd.worker", "import psycopg.errors", "kbatchd.worker imports psycopg"),
        ("kbatchd.worker", "from psycopg import sql", "kbatchd.worker imports psycopg"),
        ("kbatchd.utils", "", "kbatchd.utils stands on no floor"),
    ],
)  # fmt: skip
def test_checker_finds_a_planted_fault(module: str, source: str, fault: str) -> None:
    assert _faults(module, ast.parse(textwrap.dedent(source))) == [fault]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kbatchd.worker", "from kbatchd import sink, __version__\nfrom kbatchd.errors import KbatchError"),
        ("kbatchd.daemon.supervisor", "from kbatchd.daemon.process import fork\nfrom .process import fork"),
        ("kbatchd.sink", "import psycopg\nfrom kbatchd.progress import Owner"),
    ],
)
def test_checker_lets_sound_imports_pass(module: str, source: str) -> None:
    assert not _faults(module, ast.parse(source))


def _modules() -> list[tuple[str, ast.Module]]:
    """Parse every module of the package, without importing it."""
    package = Path(kbatchd.__file__).parent
    found = []
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):  # of the compiled lane, its stub
        parts = ["kbatchd", *path.relative_to(package).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        found.append((".".join(parts), ast.parse(path.read_text(encoding="utf-8"))))
    return found


def _faults(module: str, tree: ast.Module) -> list[str]:
    importer = _entry(module)
    if importer not in FLOOR_OF:
        return [f"{module} stands on no floor"]
    faults = []
    for imported in dict.fromkeys(_imported(module, tree)):
        top = imported.partition(".")[0]
        if importer not in OWNERS.get(top, {importer}):
            faults.append(f"{importer} imports {top}")
        if top != "kbatchd" or (entry := _entry(imported)) == importer:
            continue
        if entry not in FLOOR_OF:
            faults.append(f"{importer} imports {entry}, which stands on no floor")
        elif FLOOR_OF[entry] >= FLOOR_OF[importer] and (importer, entry) not in SAME_FLOOR:
            faults.append(f"{importer} ({FLOOR_OF[importer]}) imports {entry} ({FLOOR_OF[entry]})")
    return faults


def _imported(module: str, tree: ast.Module) -> list[str]:
    """List every import, wherever it stands: under TYPE_CHECKING and in functions too."""
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                # In a module, one dot is its package; only `__init__` files differ, and none of ours imports.
                parents = module.split(".")[: -node.level]
                origin = ".".join([*parents, *filter(None, [node.module])])
            # `from kbatchd import worker` imports a module, `from kbatchd import __version__` does not.
            names = [f"{origin}.{alias.name}" for alias in node.names if f"{origin}.{alias.name}" in FLOOR_OF]
            imported += names or [origin]
    return imported


def _entry(module: str) -> str:
    """Return the table's entry for a module: itself or its package."""
    parts = module.split(".")
    return ".".join(parts[:2])
