"""Which module may import which (docs/decisions/0001): tables, and a function per rule.

A rule takes the root of a tree and returns the violations that it found there, one line each.
"""

import ast
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

LINKED = ("curate", "manifests", "models", "train")
"""The packages at the top level of the repository that links in `uhr/` make importable as `uhr.<name>`."""

MAY_IMPORT = {
    "uhr.base": set(),
    "uhr.pixels": {"uhr.base"},
    "uhr.runtime": {"uhr.base"},
    "uhr.manifests": {"uhr.base", "uhr.pixels"},
    "uhr.models": {"uhr.base", "uhr.pixels"},
    "uhr.curate": {"uhr.base", "uhr.pixels", "uhr.runtime", "uhr.manifests", "uhr.models"},
    "uhr.train": {"uhr.base", "uhr.pixels", "uhr.runtime", "uhr.manifests", "uhr.models"},
}
"""What a package may import besides itself and `uhr`, which has the version."""

COMMANDS = ("uhr.__main__", "uhr.cli", "uhr.demo", "uhr.doctor", "uhr.fetch", "uhr.lora", "uhr.sample")
"""These may import everything, and nothing else may import them."""

LADDERS = {
    "uhr.models": "llm ops files specs surgery adapters attention vae families loading scores metrics "
    "publish samplers generate estimate zoo show cli",
    "uhr.train": "timesteps optimisers objectives trainable recipes encode data run generate evaluate "
    "foreign cli",
    # the texts for a row's faults and the stages' base classes are below the stages; an explanation of a row
    # needs no run
    "uhr.curate": "measures faults stage frame patch_frame rules sidecars sources config stages "
    "schema_doc planning explain run in_store estimate show cli",
}
"""The modules and packages directly inside a package, lowest first: each may import only those before it."""

ONLY = {
    "uhr.models.scores": ("uhr.base", "uhr.pixels", "uhr.models.ops", "uhr.models.loading", "uhr.models.llm"),
    "uhr.models.metrics": (
        *("uhr.base", "uhr.pixels", "uhr.models.ops", "uhr.models.loading", "uhr.models.llm"),
        "uhr.models.scores",
    ),
}
"""What a package may import besides itself where that is less than everything below it."""

REGISTRIES = (
    "uhr.curate.stages",
    "uhr.manifests.sources",
    "uhr.models.metrics.registry",
    "uhr.models.samplers",
    "uhr.models.specs.flux1",
    "uhr.models.specs.flux2",
    "uhr.models.surgery.base",
    "uhr.train.objectives",
    "uhr.train.recipes",
)
"""Modules whose strings ("uhr.package.module:Class") may name what is above them: it is imported only when
somebody asks for it by name."""

TORCH = {"torch", "diffusers"}

HEAVY = TORCH | {
    *(
        "PIL",
        "accelerate",
        "bitsandbytes",
        "boto3",
        "cv2",
        "datasets",
        "gguf",
        "numba",
        "open_clip",
        "pandas",
    ),
    *("peft", "polars", "pyiqa", "pywt", "ray", "s3fs", "skimage", "torchao", "torchvision", "transformers"),
    *("ultralytics",),
}

HEAVY_AT_MODULE_LEVEL = {
    "uhr.models.adapters": {"torch"},
    "uhr.models.attention": TORCH,
    "uhr.models.estimate": {"torch"},
    "uhr.models.generate": {"torch"},
    "uhr.models.loading.stream": {"torch"},
    "uhr.models.ops": {"torch"},
    "uhr.models.samplers": TORCH,
    "uhr.models.vae": {"torch"},
    "uhr.train.optimisers.prodigy": {"torch"},
    "uhr.train.run": {"torch"},
}
"""Heavy packages that the modules of a package may import at module level; all others import them only inside
functions, so that a command that needs no model starts at once and works without the extra. What a function
imports that is called at module level is not seen here: a process that starts the command shows it."""

NOT_AT_START = HEAVY | {"duckdb", "numpy", "pyarrow"}


@dataclass(frozen=True)
class Import:
    """One name that a module imports, written `module.name` for `from module import name`."""

    name: str
    line: int
    at_start: bool = False
    """Whether it runs when the module is imported."""

    by_string: bool = False
    """Whether it is a string, "uhr.package.module" with or without ":Class", that something imports later."""


@dataclass(frozen=True)
class Edge:
    """One module of ours that another one imports."""

    source: str
    target: str
    found: Import

    def __str__(self) -> str:
        return f"{self.source}:{self.found.line} imports {self.target}"


@functools.cache
def modules(root: Path) -> dict[str, Path]:
    """Every module of `uhr` by its name. The links are not followed: the packages are read where they are."""
    found = {}
    for folder, prefix in [*((root / name, ("uhr", name)) for name in LINKED), (root / "uhr", ("uhr",))]:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if folder.name == "uhr" and parts[0] in LINKED:
                continue
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((*prefix, *parts))] = path
    return found


@functools.cache
def imports_of(path: Path, module: str = "") -> list[Import]:
    """What a file imports; what only a type checker sees (`if TYPE_CHECKING`) is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    constants = {"__name__": module}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            constants |= {
                target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)
            }
    return list(_walk([tree], package, constants, at_start=True))


def _walk(
    nodes: Iterable[ast.AST], package: str, constants: Mapping[str, object], at_start: bool
) -> Iterator[Import]:
    for node in nodes:
        children: Iterable[ast.AST] = ast.iter_child_nodes(node)
        inside = at_start and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_start) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from (Import(f"{start}.{alias.name}", node.lineno, at_start) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            if node.args and (name := _text(node.args[0], constants)) is not None:
                yield Import(name, node.lineno, at_start)
                children = ()
        elif isinstance(node, ast.Constant | ast.JoinedStr):
            text = _text(node, constants)
            if text is not None and text.startswith("uhr.") and all(map(str.isidentifier, _parts(text))):
                yield Import(text.partition(":")[0], node.lineno, at_start, by_string=True)
            children = ()
        elif isinstance(node, ast.If) and _only_for_type_checkers(node):
            children = node.orelse
        yield from _walk(children, package, constants, inside)


def _only_for_type_checkers(node: ast.If) -> bool:
    return "TYPE_CHECKING" in (getattr(node.test, "id", None), getattr(node.test, "attr", None))


def _called(node: ast.Call) -> str:
    """The last name of what is called."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def _text(node: ast.AST, constants: Mapping[str, object]) -> str | None:
    """The value of a string, and of an f-string of constants at module level; None where it is not known."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.FormattedValue):
        value = constants.get(node.value.id) if isinstance(node.value, ast.Name) else None
        return value if isinstance(value, str) else None
    if isinstance(node, ast.JoinedStr):
        parts = [_text(part, constants) for part in node.values]
        return None if None in parts else "".join(map(str, parts))
    return None


def _parts(name: str) -> list[str]:
    return name.replace(":", ".", 1).split(".")


@functools.cache
def edges(root: Path) -> list[Edge]:
    """Which module of ours imports which. A package that is imported on the way to its module is no edge."""
    ours = modules(root)
    found = []
    for source, path in ours.items():
        for each in imports_of(path, source):
            target = longest(each.name, ours)
            if target not in (None, source) and not (each.by_string and target == "uhr"):
                found.append(Edge(source, target, each))
    return found


def longest(name: str, packages: Iterable[str]) -> str | None:
    """The longest of some dotted names that contains a name."""
    return max((each for each in packages if f"{name}.".startswith(f"{each}.")), key=len, default=None)


def wrong_directions(root: Path) -> list[str]:
    """Imports from one package into another that it may not import."""
    units = [*MAY_IMPORT, *COMMANDS]
    found = [
        f"{module} belongs to no package of MAY_IMPORT"
        for module in modules(root)
        if longest(module, units) is None and module != "uhr"
    ]
    for edge in edges(root):
        source, target = longest(edge.source, units), longest(edge.target, units)
        if source in COMMANDS or target in (None, source) or target in MAY_IMPORT.get(str(source), ()):
            continue
        found.append(str(edge))
    return list(dict.fromkeys(found))


def bare_names(root: Path) -> list[str]:
    """Imports of the four packages by their names at the top level, which half of all repositories have."""
    files = [
        path for folder in (*LINKED, "uhr", "tests", "benchmarks") for path in (root / folder).rglob("*.py")
    ]
    names = {path: module for module, path in modules(root).items()}
    return [
        f"{path.relative_to(root)}:{each.line} imports {each.name}"
        for path in files
        for each in imports_of(path, names.get(path, ""))
        if each.name.split(".")[0] in LINKED and not each.by_string
    ]


def heavy_at_module_level(root: Path) -> list[str]:
    """Heavy packages that a module imports when it is imported, and may not."""
    found = []
    for module, path in modules(root).items():
        may = HEAVY_AT_MODULE_LEVEL.get(str(longest(module, HEAVY_AT_MODULE_LEVEL)), set())
        found += [
            f"{module}:{each.line} imports {each.name}"
            for each in imports_of(path, module)
            if each.at_start and each.name.split(".")[0] in HEAVY - may
        ]
    return found


def heavy_at_start(root: Path) -> list[str]:
    """Heavy packages that any of the modules imports that are imported when the command starts."""
    ours, links, seen, left = modules(root), edges(root), set(), ["uhr.cli"]
    while left:
        module = left.pop()
        # importing a module imports the packages that it is in
        parents = {module.rsplit(".", count)[0] for count in range(module.count(".") + 1)} & ours.keys()
        for each in parents - seen:
            seen.add(each)
            left += [
                e.target for e in links if e.source == each and e.found.at_start and not e.found.by_string
            ]
    return [
        f"{module}:{each.line} imports {each.name}"
        for module in sorted(seen)
        for each in imports_of(ours[module], module)
        if each.at_start and each.name.split(".")[0] in NOT_AT_START
    ]


def wrong_rungs(root: Path) -> list[str]:
    """Imports inside a package of LADDERS of something that is above the importing module."""
    found = []
    for package, names in LADDERS.items():
        rungs = {f"{package}.{name}": height for height, name in enumerate(names.split())}
        inside = [module for module in modules(root) if module.startswith(f"{package}.")]
        found += [f"{module} has no place in LADDERS" for module in inside if longest(module, rungs) is None]
        for edge in _counted(root):
            # the package's own __init__ is below everything, and so imports nothing of it
            source = rungs.get(str(longest(edge.source, rungs)), -1)
            target = rungs.get(str(longest(edge.target, rungs)), -1)
            if edge.source.startswith(package) and source < target:
                found.append(str(edge))
        for source, allowed in ONLY.items():
            if source.startswith(f"{package}."):
                found += [
                    str(edge)
                    for edge in _counted(root)
                    if longest(edge.source, [source]) and longest(edge.target, [source, *allowed]) is None
                ]
    return list(dict.fromkeys(found))


def module_cycles(root: Path) -> list[str]:
    """Modules that import each other in a circle."""
    graph: dict[str, set[str]] = {}
    for edge in _counted(root):
        graph.setdefault(edge.source, set()).add(edge.target)
    return cycles(graph)


def package_cycles(root: Path) -> list[str]:
    """Packages whose modules import each other's in a circle. A package and one inside it are not two."""
    ours = modules(root)
    graph: dict[str, set[str]] = {}
    for edge in _counted(root):
        source, target = (
            name if ours[name].name == "__init__.py" else name.rpartition(".")[0]
            for name in (edge.source, edge.target)
        )
        if not (f"{source}.".startswith(f"{target}.") or f"{target}.".startswith(f"{source}.")):
            graph.setdefault(source, set()).add(target)
    return cycles(graph)


def _counted(root: Path) -> list[Edge]:
    """All edges but those that registries have as strings."""
    return [edge for edge in edges(root) if not (edge.found.by_string and edge.source in REGISTRIES)]


def cycles(graph: Mapping[str, set[str]]) -> list[str]:
    """The groups of nodes of which each can be reached from each."""
    reached: dict[str, set[str]] = {}
    for node in graph:
        left = list(graph[node])
        reached[node] = set()
        while left:
            if (each := left.pop()) not in reached[node]:
                reached[node].add(each)
                left += graph.get(each, ())
    groups = {frozenset(m for m in reached[n] if n in reached.get(m, ())) for n in graph if n in reached[n]}
    return sorted(" and ".join(sorted(group)) for group in groups)


Rule = Callable[[Path], list[str]]

RULES: tuple[Rule, ...] = (
    wrong_directions,
    bare_names,
    heavy_at_module_level,
    heavy_at_start,
    wrong_rungs,
    module_cycles,
    package_cycles,
)
