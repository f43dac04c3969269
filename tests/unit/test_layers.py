"""Who may import whom, read from the import lines, so that drift is noticed the same day.

Python: `_native ← public modules ← demo ← cli`; torch and its family live in one engine, which is
imported only when that engine is asked for. Zig: build.zig holds the graph, and the table in
docs/architecture.md is the same.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "abi_train"
ZIG = ROOT / "zig" / "src"

TORCH_FAMILY = {
    "accelerate",
    "datasets",
    "huggingface_hub",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
}
TORCH_ENGINE = "engines.trl"
TORCH_HOME = "engines.trl.libraries"
TORCH_BETWEEN_PROCESSES = "engines.gloo"  # torch alone, and only where there are several
DATASETS_HOMES = {"data.sets.hub", "data.shards"}  # `datasets` alone, and only when it is used
HUB_HOMES = {"hub.client"}  # `huggingface_hub` alone, and only when it is used
TERMINAL = {"typer", "click", "rich"}
TERMINAL_HOMES = {"cli", "progress", "check.table", "evaluate.show"}


@dataclass(frozen=True)
class Import:
    """One import line. target: a module of the package without its prefix, or a foreign root."""

    module: str
    target: str
    ours: bool
    eager: bool
    line: int


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "abi_train"


@functools.cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name: str, path: Path) -> Iterator[Import]:
    known = modules()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only: set[ast.AST] = set()
    lazy: set[ast.AST] = set()
    for node in ast.walk(tree):
        inside = {child for child in ast.walk(node) if child is not node}
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            typing_only |= inside
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            lazy |= inside
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    package = "" if package == "abi_train" else package
    for node in ast.walk(tree):
        if node in typing_only or not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        eager = node not in lazy
        if isinstance(node, ast.Import):
            for item in node.names:
                ours = item.name.split(".")[0] == "abi_train"
                target = item.name.removeprefix("abi_train.") if ours else item.name.split(".")[0]
                yield Import(name, target, ours, eager, node.lineno)
            continue
        if node.level == 0:
            root = (node.module or "").split(".")[0]
            yield Import(name, root, root == "abi_train", eager, node.lineno)
            continue
        parts = package.split(".") if package else []
        parts = parts[: len(parts) - (node.level - 1)]
        base = ".".join([*parts, *([node.module] if node.module else [])])
        for item in node.names:
            child = f"{base}.{item.name}" if base else item.name
            target = child if child in known else base or "abi_train"
            yield Import(name, target, True, eager, node.lineno)


@functools.cache
def all_imports() -> list[Import]:
    return [line for name, path in modules().items() for line in imports_of(name, path)]


def storey(module: str) -> str:
    top = module.split(".")[0]
    return top if top in ("_native", "cli", "demo", "recipes", "errors") else "public"


#: A storey and those it may import, besides itself.
BELOW = {
    "errors": set[str](),
    "_native": {"errors"},
    "public": {"errors", "_native"},
    "recipes": {"errors", "_native", "public"},
    "demo": {"errors", "_native", "public"},
    "cli": {"errors", "_native", "public", "recipes", "demo"},
}


def test_the_package_has_imports_to_look_at() -> None:
    ours = [line for line in all_imports() if line.ours]
    assert len(ours) > 50
    assert {storey(line.module) for line in ours} >= {"_native", "public", "cli"}


def test_no_module_imports_a_storey_above_its_own() -> None:
    wrong = [
        f"{line.module}:{line.line} imports {line.target}"
        for line in all_imports()
        if line.ours
        and storey(line.target) != storey(line.module)
        and storey(line.target) not in BELOW[storey(line.module)]
    ]
    assert wrong == []


def at_home(module: str) -> bool:
    homes = (TORCH_HOME, TORCH_BETWEEN_PROCESSES)
    return module in homes or module.startswith(TORCH_HOME + ".")


def test_one_engine_alone_imports_torch_and_its_family() -> None:
    users = {line.module for line in all_imports() if not line.ours and line.target in TORCH_FAMILY}
    assert users
    assert {user for user in users if not at_home(user)} == DATASETS_HOMES | HUB_HOMES
    hub = [line for line in all_imports() if line.module in HUB_HOMES and not line.ours]
    taken = [line for line in hub if line.target in TORCH_FAMILY]
    assert {line.target for line in taken} == {"huggingface_hub"}
    assert not any(line.eager for line in taken)
    guests = [line for line in all_imports() if line.module in DATASETS_HOMES and not line.ours]
    taken = [line for line in guests if line.target in TORCH_FAMILY]
    assert {line.target for line in taken} == {"datasets"}
    assert not any(line.eager for line in taken)


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def test_its_package_is_imported_only_when_it_is_asked_for() -> None:
    users = [
        line
        for line in all_imports()
        if line.ours and inside(line.target, TORCH_ENGINE) and not inside(line.module, TORCH_ENGINE)
    ]
    assert users
    assert [f"{line.module}:{line.line}" for line in users if line.eager] == []


def test_cffi_is_known_to_the_mirror_alone() -> None:
    users = {line.module for line in all_imports() if not line.ours and line.target == "cffi"}
    assert users == {"_native.build", "_native.plain"}


def test_the_terminal_is_known_to_the_command_line_and_the_progress_bar_alone() -> None:
    wrong = {
        f"{line.module}:{line.line}"
        for line in all_imports()
        if not line.ours
        and line.target in TERMINAL
        and line.module.split(".")[0] not in TERMINAL_HOMES
        and line.module not in TERMINAL_HOMES
    }
    assert wrong == set()


def test_modules_that_are_imported_at_once_make_no_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for line in all_imports():
        if line.ours and line.eager and line.target != line.module:
            graph[line.module].add(line.target)
    path: list[str] = []
    done: set[str] = set()

    def visit(name: str) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in sorted(graph.get(name, ())):
            # A package that imports its own children does not make a circle with them.
            if not target.startswith(name + ".") and not name.startswith(target + "."):
                visit(target)
        path.pop()
        done.add(name)

    for name in sorted(graph):
        visit(name)


# ---- Zig ----


def zig_layers() -> dict[str, list[str]]:
    """The table of build.zig, in its order."""
    text = (ROOT / "build.zig").read_text(encoding="utf-8")
    table = re.search(r"const layers = \[_\]Layer\{(.*?)\n\};", text, re.DOTALL)
    assert table is not None
    found = re.findall(r'\.name = "(\w+)", \.may_import = &\.\{(.*?)\} \}', table.group(1))
    return {name: re.findall(r'"(\w+)"', imports) for name, imports in found}


def zig_imports(path: Path) -> list[str]:
    code = re.sub(r"//.*", "", path.read_text(encoding="utf-8"))
    return re.findall(r'@import\("([^"]+)"\)', code)


def test_a_layer_imports_only_layers_above_it_in_the_table() -> None:
    layers = zig_layers()
    names = list(layers)
    assert names[0] == "base" and len(names) >= 14
    for at, name in enumerate(names):
        assert set(layers[name]) <= set(names[:at]), name


def test_the_table_of_the_architecture_page_is_the_table_of_the_build() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE)
    written = {
        name: [] if cell.strip() == "–" else [word.strip() for word in cell.split(",")]
        for name, cell in rows
    }
    assert written == zig_layers()


def test_each_layer_is_a_folder_with_a_root_file() -> None:
    for name in zig_layers():
        assert (ZIG / name / f"{name}.zig").is_file()


@pytest.mark.parametrize("layer", [*zig_layers(), "cli", "c_api", "abi", "main"])
def test_zig_files_import_what_their_layer_may(layer: str) -> None:
    layers = zig_layers()
    allowed = {"std", "builtin", "config"}
    if layer in layers:
        allowed |= set(layers[layer])
    elif layer == "abi":
        allowed |= set(layers)
    else:
        allowed |= {"abi"}
    if layer == "kernels":
        allowed.add("kernel_options")
    if layer == "c_api":
        allowed.add("abi_h")
    files = sorted((ZIG / layer).rglob("*.zig")) + [p for p in [ZIG / f"{layer}.zig"] if p.exists()]
    assert files
    for path in files:
        for target in zig_imports(path):
            if target.endswith(".zig"):
                home = (path.parent / target).resolve()
                assert home.is_file(), f"{path}: {target}"
                inside = ZIG / layer if path.parent != ZIG else ZIG
                assert home.is_relative_to(inside), f"{path} reaches outside its layer: {target}"
            else:
                assert target in allowed, f"{path} imports {target}"
