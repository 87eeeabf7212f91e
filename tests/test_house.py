"""The rules of CONTRIBUTING.md, checked on the syntax trees: layers, pure cores, sizes, names, a test each."""

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("derp", "tailnet")
GENERATED = "tailnet/proto/generated"

# Every room with its layer, from the ground up: a room may import those above it in this list and no other.
# A room not named here is a mistake: find its place first.
ORDER: tuple[tuple[str, int], ...] = (
    ("derp", 0),
    ("derp/text", 0),
    ("derp/close_reason", 0),
    ("derp/json_numbers", 0),
    ("derp/errors", 0),
    ("derp/keys", 0),
    ("derp/map", 0),
    ("derp/protocol", 1),
    ("derp/admission", 1),
    ("derp/relay", 1),
    ("derp/netcheck", 1),
    ("derp/config", 2),
    ("derp/log", 2),
    ("derp/metrics", 2),
    ("derp/transport", 2),
    ("derp/server", 3),
    ("derp/client", 3),
    ("derp/cli_output", 4),
    ("derp/cli_run", 4),
    ("derp/cli_map", 4),
    ("derp/cli_admission", 4),
    ("derp/cli_drain", 4),
    ("derp/cli_invite", 4),
    ("derp/cli_ledger", 4),
    ("derp/cli_netcheck", 4),
    ("derp/cli_ping", 4),
    ("derp/cli_probe", 4),
    ("derp/cli", 4),
    ("derp/__main__", 4),
    ("tailnet", 0),
    ("tailnet/errors", 0),
    ("tailnet/types", 0),
    ("tailnet/go_json", 0),
    ("tailnet/refusals", 0),
    ("tailnet/tokens", 0),
    ("tailnet/sodium", 0),
    ("tailnet/signatures", 0),
    ("tailnet/rpc", 1),
    ("tailnet/coordinator", 1),
    ("tailnet/replica", 1),
    ("tailnet/netstack", 1),
    ("tailnet/proto", 1),
    ("tailnet/wireguard", 1),
    ("tailnet/paths", 1),
    ("tailnet/health", 1),
    ("tailnet/config", 2),
    ("tailnet/transport", 2),
    ("tailnet/store", 2),
    ("tailnet/bus", 2),
    ("tailnet/metrics", 2),
    ("tailnet/identity", 2),
    ("tailnet/auth", 2),
    ("tailnet/client", 3),
    ("tailnet/node", 3),
    ("tailnet/agent", 3),
    ("tailnet/services", 3),
    ("tailnet/api", 3),
    ("tailnet/server", 3),
    ("tailnet/cli", 4),
    ("tailnet/__main__", 4),
)
LAYERS = dict(ORDER)
PLACES = {room: place for place, (room, _) in enumerate(ORDER)}
# Files that import each other, also where only types are wanted.  Nothing new comes in here.
CIRCLES_LEFT: frozenset[frozenset[str]] = frozenset()
IMPURE = {"trio", "socket", "ssl", "time", "random", "secrets", "os", "logging", "threading", "prometheus_client"}
# Each third-party transport library stands behind one file per package, so that it can be exchanged there.
ONE_FILE = (
    "trio_websocket",
    "wsproto",
    "aioquic",
    "h11",
    "hypercorn",
    "acme",
    "httpx",
    "nacl",
    "opentelemetry",
    "asyncssh",
    "trio_asyncio",
    "coredis",
)
ONE_FILE_EXCEPT = {"nacl": {"derp/keys.py", "derp/protocol/handshake.py"}}
MAX_FILE_LINES = 700
MAX_FUNCTION_LINES = 80
UNWANTED_NAMES = {"manager", "handler", "helper", "utils", "common", "misc", "impl", "data", "info"}


@cache
def modules() -> tuple[tuple[str, ast.Module], ...]:
    """Every module of the product, parsed once for all the rules."""
    named = [
        (path.relative_to(ROOT).as_posix(), path)
        for path in all_python()
        if path.relative_to(ROOT).parts[0] in PACKAGES
    ]
    return tuple((name, ast.parse(path.read_text(), filename=name)) for name, path in named)


@cache
def all_python() -> tuple[Path, ...]:
    found = [path for folder in (*PACKAGES, "sim", "tests", "bench") for path in sorted((ROOT / folder).rglob("*.py"))]
    return tuple(path for path in found if not path.relative_to(ROOT).as_posix().startswith(GENERATED))


@cache
def walk(tree: ast.AST) -> tuple[ast.AST, ...]:
    """Every node, found once for all the rules: a million of them, and a dozen rules."""
    return tuple(ast.walk(tree))


def room(name: str) -> str:
    parts = name.removesuffix(".py").removesuffix("/__init__").split("/")
    return "/".join(parts[:2])


@cache
def imports(tree: ast.Module) -> tuple[tuple[str, int], ...]:
    return tuple(_imports(tree))


def _imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            module = node.module or ""
            yield module, node.lineno
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def order_problems(name: str, tree: ast.Module) -> list[str]:
    problems: list[str] = []
    mine = room(name)
    for imported, line in imports(tree):
        parts = imported.split(".")
        if parts[0] not in PACKAGES:
            continue
        if parts[0] == "tailnet" and mine.startswith("derp"):
            problems.append(f"{name}:{line}: derp stands alone, it never imports tailnet")
        target = "/".join(parts[:2])
        if target not in PLACES:  # a name imported from a package's top, not a room
            target = parts[0]
        if PLACES[target] > PLACES[mine]:
            problems.append(f"{name}:{line}: {mine} imports {imported}, which stands above it")
    return problems


def file_imports(trees: Mapping[str, ast.Module]) -> dict[str, set[str]]:
    """Which files a file imports, also for types alone: who has to be read together is the same either way."""
    files = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in trees}
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        found: set[str] = set()
        for node in walk(tree):
            if isinstance(node, ast.Import):
                found |= {files[alias.name] for alias in node.names if alias.name in files}
            elif isinstance(node, ast.ImportFrom):
                # `from a import b`: the file of a.b, or of a where b is a name in it.
                module = node.module or ""
                wanted = (f"{module}.{a.name}" if f"{module}.{a.name}" in files else module for a in node.names)
                found |= {files[each] for each in wanted if each in files}
        graph[name] = found
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[frozenset[str]]:
    """Groups of files of which each reaches each."""
    reached: dict[str, set[str]] = {}
    for name in graph:
        seen: set[str] = set()
        waiting = list(graph[name])
        while waiting:
            other = waiting.pop()
            if other not in seen:
                seen.add(other)
                waiting += graph.get(other, ())
        reached[name] = seen
    found = {frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]}
    return sorted(found, key=sorted)


def purity_problems(name: str, tree: ast.Module) -> list[str]:
    if LAYERS[room(name)] > 1:
        return []
    return [
        f"{name}:{line}: a core does no I/O, so it never imports {imported}"
        for imported, line in imports(tree)
        if imported.split(".")[0] in IMPURE
    ]


def test_every_room_is_on_a_layer() -> None:
    assert [name for name, _ in modules() if room(name) not in LAYERS] == []


def undeclared(named: Iterable[str], declared: Set[str]) -> set[str]:
    """Packages that are imported and that no requirement of pyproject.toml names."""
    owners = packages_distributions()
    return {
        package
        for package in named
        if package not in sys.stdlib_module_names
        and package not in PACKAGES
        and not declared & {canonical(owner) for owner in owners.get(package, [package])}
    }


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared() -> None:
    """What comes along with another dependency goes with it, one day."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # An extra is of use to whoever installs it; those of developers are not there when the product runs.
    requirements = [
        *project["dependencies"],
        *(each for name in extras if name not in ("dev", "build") for each in extras[name]),
    ]
    declared = {canonical(re.split(r"[^A-Za-z0-9._-]", each)[0]) for each in requirements}
    named = {imported.split(".")[0] for _, tree in modules() for imported, _ in imports(tree)}
    assert undeclared(named, declared) == set()
    assert undeclared(["os", "derp", "nacl", "wsproto"], declared) == {"wsproto"}


def test_the_api_reads_no_store() -> None:
    """Resources call services and answer with what those give; of the store they know the values alone."""
    for name, tree in modules():
        if name.startswith("tailnet/api/"):
            named = {imported for imported, _ in imports(tree) if imported.startswith("tailnet.store")}
            assert all(each.startswith("tailnet.store.rows") for each in named), f"{name} imports {named}"


def test_layers_rise_with_the_order() -> None:
    for package in PACKAGES:
        layers = [layer for name, layer in ORDER if name.split("/")[0] == package]
        assert layers == sorted(layers)


def test_imports_point_downwards() -> None:
    assert [problem for name, tree in modules() for problem in order_problems(name, tree)] == []


def test_no_files_import_each_other() -> None:
    assert [sorted(each) for each in circles(file_imports(dict(modules()))) if each not in CIRCLES_LEFT] == []


def test_cores_do_no_io() -> None:
    assert [problem for name, tree in modules() for problem in purity_problems(name, tree)] == []


def test_the_checks_can_fail() -> None:
    upward = ast.parse("from derp.server.server import x")
    assert order_problems("derp/relay/router.py", upward)
    assert order_problems("derp/cli.py", ast.parse("import tailnet.errors"))
    assert order_problems("tailnet/services/hub.py", ast.parse("from tailnet.api import app")), "of one layer"
    assert not order_problems("tailnet/api/app.py", ast.parse("from tailnet.services.hub import Hub"))
    assert purity_problems("derp/relay/router.py", ast.parse("from time import monotonic"))
    assert not purity_problems("derp/transport/tcp.py", ast.parse("import socket"))
    circle = {
        "derp/a.py": ast.parse("from derp import b"),
        "derp/b.py": ast.parse("if TYPE_CHECKING:\n    from derp.c import thing"),
        "derp/c.py": ast.parse("import derp.a"),
        "derp/d.py": ast.parse("from derp.a import x"),
        "derp/__init__.py": ast.parse("from derp.d import x"),
    }
    assert circles(file_imports(circle)) == [frozenset({"derp/a.py", "derp/b.py", "derp/c.py"})]


@pytest.mark.parametrize("library", ONE_FILE)
def test_transport_libraries_stand_behind_one_file(library: str) -> None:
    for package in PACKAGES:
        users = {
            name
            for name, tree in modules()
            if name.startswith(f"{package}/") and any(i.split(".")[0] == library for i, _ in imports(tree))
        }
        users -= ONE_FILE_EXCEPT.get(library, set())
        assert len(users) <= 1, f"{library} is imported by {sorted(users)}"


def test_files_and_functions_stay_small() -> None:
    problems: list[str] = []
    trees = dict(modules())
    for path in all_python():
        text = path.read_text()
        name = path.relative_to(ROOT).as_posix()
        if text.count("\n") > MAX_FILE_LINES:
            problems.append(f"{name} has {text.count(chr(10))} lines, limit {MAX_FILE_LINES}")
        for node in walk(trees[name]) if name in trees else ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    problems.append(f"{name}:{node.lineno} {node.name} has {length} lines, limit {MAX_FUNCTION_LINES}")
    assert problems == []


def test_module_docstrings_are_short_and_present() -> None:
    problems: list[str] = []
    for name, tree in modules():
        docstring = ast.get_docstring(tree)
        if not docstring:
            problems.append(f"{name} has no docstring")
        elif docstring.count("\n") >= 12 and name not in ("derp/errors.py", "tailnet/errors.py"):
            problems.append(f"{name} has a docstring of {docstring.count(chr(10)) + 1} lines, limit 12")
    assert problems == []


# A file that a docstring or a comment names, with its folder or without.
FILE_NAME = re.compile(r"(?<![\w./<*-])(?:[\w.-]+/)*[\w-]+\.(?:py|proto|md)\b")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Comments and docstrings of a file, with their first lines."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield node.body[0].lineno, docstring


def names_of_no_file(path: Path, text: str) -> list[str]:
    """Files that the prose of `path` names and that are not there: in its folder or in one above; those of tests also
    in the folders that they mirror."""
    here = path.relative_to(ROOT)
    folders = [ROOT / parent for parent in here.parents]
    if here.parts[0] == "tests":
        folders += [ROOT / parent for parent in here.relative_to("tests").parents]

    def is_there(name: str) -> bool:
        return any((folder / name).exists() for folder in folders)

    # Telling prose from code takes ten times as long as this look, which all but the files with odd names pass.
    if all(map(is_there, set(FILE_NAME.findall(text)))):
        return []
    return [
        f"{here}:{line} names {name}, and there is no such file"
        for line, words in prose(text)
        for name in FILE_NAME.findall(words)
        if not is_there(name)
    ]


def test_files_that_are_named_exist() -> None:
    assert [wrong for path in all_python() for wrong in names_of_no_file(path, path.read_text())] == []
    here = ROOT / "derp/server/door.py"
    assert not names_of_no_file(here, '"""See server/door.py, door.py and derp/server/door.py, *.py, x.python."""')
    assert names_of_no_file(here, "def f():\n    x = 1  # as in nowhere.py")
    assert names_of_no_file(here, 'class A:\n    """relay/door.py"""')


def unread_constants(trees: Iterable[tuple[str, ast.Module]]) -> set[str]:
    """Constants of modules that no module reads: a bound of that kind bounds nothing."""
    given: dict[str, str] = {}
    read: set[str] = set()
    for name, tree in trees:
        for statement in tree.body:
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            given |= {each.id: name for each in targets if isinstance(each, ast.Name) and each.id.isupper()}
        for node in walk(tree):
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {f"{place} {constant}" for constant, place in given.items() if constant not in read}


def test_constants_are_read() -> None:
    assert unread_constants(modules()) == set()
    tree = ast.parse("MAX_A: Final = 1\nMAX_B = 2\nprint(MAX_B)\nclass C:\n    MAX_C = 1")
    assert unread_constants([("a.py", tree)]) == {"a.py MAX_A"}


def test_unwanted_names() -> None:
    problems = [
        name for name, _ in modules() if set(Path(name).stem.split("_")) & UNWANTED_NAMES and "__init__" not in name
    ]
    assert problems == []


def test_every_module_has_its_test_file() -> None:
    missing = []
    for name, tree in modules():
        stem = Path(name).stem
        if stem.startswith("__") or "/migrations/" in name or len(tree.body) <= 1:
            continue
        expected = ROOT / "tests" / Path(name).parent / f"test_{stem}.py"
        if not expected.exists():
            missing.append(f"{name} wants {expected.relative_to(ROOT)}")
    assert missing == [], "\n".join(missing)


def own_exceptions() -> set[str]:
    """Names of the classes of this project: their texts are sentences that somebody wrote."""
    return {node.name for _, tree in modules() for node in walk(tree) if isinstance(node, ast.ClassDef)}


def bare_reasons(name: str, tree: ast.Module, own: set[str]) -> list[str]:
    """Where the exception of a library is put into a text as it is: empty, pages long, or with a password."""
    problems = []
    for handler in walk(tree):
        if not isinstance(handler, ast.ExceptHandler) or handler.name is None:
            continue
        kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        if all(ast.unparse(kind) in own for kind in kinds if kind is not None):
            continue
        caught = {handler.name, f"{handler.name}.strerror"}
        for node in (node for statement in handler.body for node in ast.walk(statement)):
            shown: list[ast.expr] = []
            if isinstance(node, ast.FormattedValue):
                shown = [node.value]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("str", "repr", "print", "_log.")):
                shown = list(node.args)
            for part in shown:
                either = part.values if isinstance(part, ast.BoolOp) else [part]
                if any(ast.unparse(one) in caught for one in either):
                    problems.append(f"{name}:{part.lineno}: {ast.unparse(part)} wants error_text()")
    return problems


def test_reasons_of_libraries_are_never_shown_bare() -> None:
    own = own_exceptions()
    assert [problem for name, tree in modules() for problem in bare_reasons(name, tree, own)] == []


@pytest.mark.parametrize(
    "shown", ['f"x: {error}"', 'f"{error.strerror or error}"', "str(error)", '_log.error("%s", error)', "print(error)"]
)
def test_a_bare_reason_is_found(shown: str) -> None:
    caught = f"try:\n    work()\nexcept KIND as error:\n    said = {shown}\n"
    assert bare_reasons("x", ast.parse(caught.replace("KIND", "(OSError, ConfigError)")), {"ConfigError"})
    assert not bare_reasons("x", ast.parse(caught.replace("KIND", "ConfigError")), {"ConfigError"})
    mended = f"try:\n    work()\nexcept OSError as error:\n    said = {shown.replace('error', 'error_text(error)')}\n"
    assert "str" in shown or "_log.error" in shown or not bare_reasons("x", ast.parse(mended), set())


def test_own_errors_have_a_text() -> None:
    own = own_exceptions()
    empty = [
        f"{name}:{node.lineno}"
        for name, tree in modules()
        for node in walk(tree)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and ast.unparse(node.exc.func) in own
        and (not (node.exc.args or node.exc.keywords) or ast.unparse((node.exc.args or [node.exc])[0]) == "''")
    ]
    assert empty == []


def test_derp_imports_alone() -> None:
    code = (
        "import sys; sys.modules['tailnet'] = None\n"
        "import pkgutil, importlib, derp\n"
        "for m in pkgutil.walk_packages(derp.__path__, 'derp.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
