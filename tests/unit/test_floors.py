"""The house: packages floor by floor, what each may import, and who owns which library.

A package imports only from the floors below its own, and only what the table says.
"""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

import kbatchd

#: Floor by floor, from the top: each package with those that it imports. No arrow beside these, and none without use.
FLOORS: dict[int, dict[str, set[str]]] = {
    9: {
        "commands": {
            "audit", "daemon", "monitor", "check", "gateway", "produce", "worker", "letters", "kafka", "door", "shapes",
            "schema", "postgres", "config", "log", "stats", "devstack",
        },
    },
    8: {
        "daemon": {"check", "postgres", "config", "log", "stats"},
        "monitor": {"gateway", "kafka", "schema", "postgres", "config", "stats"},
    },
    7: {
        "check": {"kafka", "sink", "shapes", "encode", "schema", "postgres", "config", "log"},
        "gateway": {"files", "kafka", "door", "shapes", "encode", "schema", "postgres", "config", "log", "stats"},
    },
    6: {
        "worker": {"kafka", "sink", "encode", "schema", "postgres", "config", "log", "stats"},
        "audit": {"kafka", "sink", "encode", "schema", "postgres", "config"},
        "letters": {"kafka", "sink", "encode", "schema", "postgres", "config"},
        "produce": {"files", "kafka", "door", "shapes", "encode", "postgres", "config", "log"},
    },
    5: {
        "sink": {"encode", "schema", "postgres", "config"},
        "kafka": {"config"},
        "files": {"door", "encode", "log"},
    },
    4: {
        "shapes": {"encode", "postgres", "config"},
        "door": {"encode", "postgres", "config"},
    },
    3: {
        "schema": {"postgres"},
        "encode": {"postgres", "config"},
    },
    2: {
        "postgres": {"config"},
    },
    1: {
        "stats": set(),
        "config": set(),
        "log": set(),
        "devstack": set(),
    },
}  # fmt: skip

#: The modules beside the packages: the ground, under all floors, which imports nothing but itself, and the roof.
GROUND = {"", "errors", "lineage", "manual", "model", "paths", "printable", "shipped", "systemd"}
ROOF = {"__main__": {"cli"}, "cli": {"log"}}

#: Who may import a library, type-checking imports included.
OWNERS = {
    "confluent_kafka": {"kafka", "produce", "check", "devstack"},
    "psycopg": {"audit", "postgres", "schema", "sink", "letters", "check", "config", "devstack", "commands"},
    "pydantic": {"config"},
    "pydantic_core": {"config"},
    "tomli": {"config"},
    "rich": {"produce", "commands"},
    "httptools": {"gateway"},
    "uvloop": {"gateway", "monitor"},
    "zstandard": {"files"},
    "prometheus_client": {"monitor"},
    "jgo": {"devstack"},
    "orjson": {
        "kafka", "encode", "schema", "sink", "door", "shapes", "files", "produce", "check", "gateway", "monitor",
        "commands",
    },
}  # fmt: skip

FLOOR_OF = {package: floor for floor, packages in FLOORS.items() for package in packages} | dict.fromkeys(GROUND, 0)
ALLOWED = {package: arrows for packages in FLOORS.values() for package, arrows in packages.items()} | ROOF

Modules = dict[str, ast.Module]


@pytest.fixture(scope="module")
def modules() -> Modules:
    """Parse every module, without importing it; named without the `kbatchd.`, a package by its own name."""
    package = Path(kbatchd.__file__).parent
    found = {}
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):  # of the compiled one, its stub
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def test_the_table_goes_down() -> None:
    assert not [
        f"{package} ({floor}) -> {arrow} ({FLOOR_OF[arrow]})"
        for floor, packages in FLOORS.items()
        for package, arrows in packages.items()
        for arrow in arrows
        if FLOOR_OF[arrow] >= floor
    ]


def test_every_import_is_in_the_table(modules: Modules) -> None:
    assert not [fault for module, tree in modules.items() for fault in _faults(module, tree, set(modules))]


def test_every_arrow_of_the_table_is_used(modules: Modules) -> None:
    used = {(_room(module), _room(each)) for module, tree in modules.items() for each in _ours(tree, set(modules))}
    assert not {(package, arrow) for package, arrows in ALLOWED.items() for arrow in arrows} - used


def test_every_owner_uses_its_library(modules: Modules) -> None:
    used = {(each.partition(".")[0], _room(module)) for module, tree in modules.items() for each in _imported(tree)}
    assert not {(library, package) for library, packages in OWNERS.items() for package in packages} - used


def test_packages_of_the_table_are_there(modules: Modules) -> None:
    packages = {module.partition(".")[0] for module in modules if "." in module}
    assert packages == {package for floor in FLOORS.values() for package in floor}


def test_few_modules_stand_beside_the_packages(modules: Modules) -> None:
    beside = {module for module in modules if "." not in module} - set(FLOOR_OF) | GROUND | set(ROOF)
    assert beside == GROUND | set(ROOF)
    assert len(beside - {""}) <= 10


def test_no_module_imports_itself_in_the_end(modules: Modules) -> None:
    assert not _circle({module: _ours(tree, set(modules)) - {module} for module, tree in modules.items()})


def test_nobody_imports_past_a_door(modules: Modules) -> None:
    doors = {module for module, tree in modules.items() if "." not in module and module and _hands_on(tree)}
    assert not [
        f"{module} imports {each}"
        for module, tree in modules.items()
        for each in _ours(tree, set(modules))
        if _room(each) in doors and "." in each and _room(each) != _room(module)
    ]


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("sink.sink", "from kbatchd.worker import claims", "sink (5) imports worker (6)"),
        ("sink.sink", "from kbatchd.worker.claims import Claims", "sink (5) imports worker (6)"),
        ("sink.sink", "import kbatchd.worker.claims", "sink (5) imports worker (6)"),
        ("sink.sink", "def f():\n    from kbatchd import config, worker", "sink (5) imports worker (6)"),
        ("sink.sink", "if TYPE_CHECKING:\n    from kbatchd.cli import main", "sink (5) imports cli"),
        ("sink.sink", "from kbatchd.kafka import reader", "sink (5) imports kafka (5)"),
        ("files.csv", "from kbatchd.postgres.books import Books", "files imports postgres: not in the table"),
        ("model", "def f():\n    import kbatchd.log", "model (0) imports log (1)"),
        ("worker.worker", "import confluent_kafka", "worker imports confluent_kafka"),
        ("worker.worker", "import psycopg.errors", "worker imports psycopg"),
        ("worker.worker", "from psycopg import sql", "worker imports psycopg"),
        ("utils.all", "", "utils stands on no floor"),
        ("utils", "", "utils stands on no floor"),
        ("sink.sink", "from . import batch", "sink.sink imports relatively"),
    ],
)
def test_a_planted_fault_is_found(modules: Modules, module: str, source: str, fault: str) -> None:
    assert _faults(module, ast.parse(textwrap.dedent(source)), {*modules, module}) == [fault]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("worker.worker", "from kbatchd import __version__, config\nfrom kbatchd.errors import KbatchError"),
        ("worker.worker", "from kbatchd.sink import batch\nfrom kbatchd.worker import claims"),
        ("sink.sink", "import psycopg\nfrom kbatchd.schema.progress import Owner"),
    ],
)
def test_sound_imports_pass(modules: Modules, module: str, source: str) -> None:
    assert not _faults(module, ast.parse(source), set(modules))


def test_a_planted_circle_is_found() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]


def _faults(module: str, tree: ast.Module, known: set[str]) -> list[str]:
    room = _room(module)
    if room not in FLOOR_OF and room not in ROOF:
        return [f"{room} stands on no floor"]
    if any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)):
        return [f"{module} imports relatively"]
    faults = [
        f"{room} imports {library}"
        for library in dict.fromkeys(each.partition(".")[0] for each in _imported(tree))
        if room not in OWNERS.get(library, {room})
    ]
    for imported in sorted({_room(each) for each in _ours(tree, known)} - {room}):
        if room not in ROOF and FLOOR_OF.get(imported, 99) >= FLOOR_OF[room] and not {room, imported} <= GROUND:
            faults.append(f"{_shown(room)} imports {_shown(imported)}")
        elif imported not in GROUND and imported not in ALLOWED.get(room, set()):
            faults.append(f"{room} imports {imported}: not in the table")
    return faults


def _room(module: str) -> str:
    """Return a module's package, or the module itself where it stands beside them."""
    return module.partition(".")[0]


def _shown(room: str) -> str:
    return f"{room} ({FLOOR_OF[room]})" if room in FLOOR_OF else room


def _ours(tree: ast.Module, known: set[str]) -> set[str]:
    """Return the modules of kbatchd that a module imports, named as `modules` names them."""
    found = set()
    for each in _imported(tree):
        if each == "kbatchd" or each.startswith("kbatchd."):
            name = each.removeprefix("kbatchd").removeprefix(".")
            # `from kbatchd.sink import batch` imports a module, `from kbatchd.errors import Fenced` a name of one.
            while name and name not in known:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


def _imported(tree: ast.Module) -> list[str]:
    """List every import with its names, wherever it stands: under TYPE_CHECKING and in functions too."""
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported += [f"{node.module}.{alias.name}" for alias in node.names]
    return imported


def _hands_on(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" for node in tree.body)


def _circle(arrows: dict[str, set[str]]) -> list[str]:
    """Return the modules of a circle, the first of them twice; nothing where there is none."""
    done: set[str] = set()

    def look(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for each in sorted(arrows.get(module, set())):
            if found := look(each, [*way, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(arrows) if (found := look(module, []))), [])
