"""The rules that keep the parts apart, checked from the code's own syntax trees.

A file may import only from floors below its own (and from its own part). An import counts wherever it stands: inside a
function, under TYPE_CHECKING, or as the literal name given to `import_module` and `run_module`.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("franca", "rasa")

# part -> floor; the longest matching name counts, and every __main__ stands above them all.
FLOORS = {
    "franca.models": 0,
    "franca.distributed": 0,
    "franca.data.masking": 0,
    "franca.metrics": 0,
    "franca.config": 0,
    "franca.files": 0,
    "franca.children": 0,
    "franca.openmp": 0,
    "franca.devices": 1,
    "franca.peaks": 1,
    "franca.objective": 1,
    "franca.hub": 1,
    "franca.flops": 2,
    "franca": 2,  # the package itself: only hands on what franca.hub offers
    "franca.data": 2,
    "franca.train": 3,
    "franca.train.command": 4,  # training with evaluation beside it
    "franca.eval": 3,
    "franca.launch": 4,
    "franca.publish": 4,
    "franca.reproduce": 4,
    "rasa": 4,
    "hubconf": 4,
}
TOP_FLOOR = 5
TORCH_ONLY = ("franca.models", "franca.distributed", "franca.data.masking", "franca.objective", "franca.hub", "hubconf")
OPTIONAL = {"franca.objective": ("triton",)}  # part -> what it uses where torch has brought it along
# part -> what it may use of torch.distributed; collectives themselves live in franca.distributed alone.
DISTRIBUTED = {
    "franca.distributed": ("torch.distributed",),
    "franca.train": ("torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.device_mesh"),
    "franca.publish": ("torch.distributed.checkpoint",),
}
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 80


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module in the project's packages."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    files += [path for path in [ROOT / "hubconf.py"] if path.exists()]
    return {module_name(path): path for path in files}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(module: str) -> set[str]:
    """Full names of everything that a module imports, as precise as the import statement is."""
    return set(_imports_of(tree(modules()[module]), module, is_package=modules()[module].name == "__init__.py"))


def _imports_of(parsed: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module if is_package else module.rpartition(".")[0]
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join((above if node.level else []) + ([node.module] if node.module else []))
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called_name(node) in ("import_module", "run_module", "__import__"):
            yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))


def _called_name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def part_of(name: str) -> str:
    """The part of the project that a module, or a name in it, belongs to."""
    parts = name.split(".")
    if "__main__" in parts:
        return ".".join(parts[: parts.index("__main__") + 1])
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    part = next(prefix for prefix in prefixes if prefix in FLOORS or prefix in modules())
    return next((prefix for prefix in prefixes if prefix in FLOORS and prefix != "franca"), part)


def floor_of(name: str) -> int:
    part = part_of(name)
    assert part in FLOORS or part.endswith("__main__"), f"{part} has no floor: give it one in FLOORS"
    return FLOORS.get(part, TOP_FLOOR)


def offences(module: str, imported: set[str]) -> list[str]:
    """The imports that break the floors, each with its reason."""
    floor = floor_of(module)
    own = {name for name in imported if name.split(".")[0] in (*PACKAGES, "hubconf")} - {"franca.__version__"}
    other = sorted(name for name in own if part_of(name) != part_of(module))
    return [
        f"{module} (floor {floor}) imports {name} (floor {floor_of(name)})" for name in other if floor_of(name) >= floor
    ]


@pytest.mark.parametrize("module", modules())
def test_imports_only_from_floors_below(module: str) -> None:
    assert offences(module, imports(module)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("franca.models.block", "from franca.objective import sinkhorn_assignments"),
        ("franca.objective.koleo", "from franca.hub.checkpoint import describe"),
        ("franca.objective.koleo", "from .. import data"),
        ("franca.objective.pretraining", "if TYPE_CHECKING:\n    from franca.data.batch import PretrainBatch"),
        ("franca.data.masking", "from franca.data import loader"),
        ("franca.train.trainer", "def hook():\n    import franca.eval.features"),
        ("franca.hub.checkpoint", "from franca import load_model"),
        ("franca.eval.features", "importlib.import_module('franca.train.config')"),
        ("franca.eval.features", "from rasa import RASAHead"),
        ("franca.train.trainer", "from franca.train.__main__ import main"),
    ],
)
def test_a_broken_floor_is_noticed(module: str, source: str) -> None:
    assert offences(module, set(_imports_of(ast.parse(source), module, is_package=False)))


@pytest.mark.parametrize("module", [name for name in modules() if part_of(name) in TORCH_ONLY])
def test_torch_is_the_only_third_party_import(module: str) -> None:
    allowed = {*sys.stdlib_module_names, *PACKAGES, "torch", *OPTIONAL.get(part_of(module), ())}
    assert {name for name in imports(module) if name.split(".")[0] not in allowed} == set()


def test_data_package_imports_nothing() -> None:
    """`franca.data.masking` stands on floor 0, and importing it runs `franca/data/__init__.py`."""
    assert imports("franca.data") == set()


def test_import_franca_is_light() -> None:
    program = "import sys; before = set(sys.modules); import franca; print(*sorted(set(sys.modules) - before))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {name.split(".")[0] for name in printed.stdout.split()}
    assert loaded - {*sys.stdlib_module_names, "franca"} == set()


@pytest.mark.parametrize("module", ["franca.models", "franca.hub", "franca.objective"])
def test_imports_where_torch_is_all_there_is(module: str) -> None:
    """Every other dependency, installed or not, refuses to be imported."""
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        others = ["torchvision", "omegaconf", "PIL", "rich", "sklearn", "skimage", "matplotlib", "xformers", "triton"]
        if name in others:
            raise ModuleNotFoundError(f"{{name}} is not there", name=name)
sys.meta_path.insert(0, Refuse())
import {module}
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("module", modules())
def test_collectives_live_in_one_module(module: str) -> None:
    attributes = {ast.unparse(node) for node in ast.walk(tree(modules()[module])) if isinstance(node, ast.Attribute)}
    used = {name for name in imports(module) | attributes if f"{name}.".startswith("torch.distributed.")}
    allowed = tuple(f"{name}." for name in DISTRIBUTED.get(part_of(module), ()))
    assert {name for name in used if not f"{name}.".startswith(allowed)} == set()


def sources() -> list[Path]:
    folders = [*PACKAGES, "scripts"]
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


every_source = pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))


def accelerators(parsed: ast.Module) -> list[str]:
    """Where code names an accelerator: `.cuda()`, `torch.cuda`, "cuda:0" and the like. The CPU is always there."""
    found = []
    for node in ast.walk(parsed):
        name = getattr(node, "attr", getattr(node, "value", "") if isinstance(node, ast.Constant) else "")
        if isinstance(name, str) and re.fullmatch(r"(cuda|mps|xpu|hip)(:\d+)?", name):
            found.append(f"line {node.lineno}: {name}")
    return found


@every_source
def test_no_device_is_built_in(path: Path) -> None:
    assert accelerators(tree(path)) == []


@pytest.mark.parametrize("source", ["x.cuda()", "x.to('cuda:1')", "torch.cuda.is_available()", "f(device='mps')"])
def test_a_device_that_is_built_in_is_noticed(source: str) -> None:
    assert accelerators(ast.parse(source))


def unsafe_calls(parsed: ast.Module) -> list[str]:
    """Calls that could run what a file or an argument holds: unpickling, evaluating text, a shell."""
    found = []
    for call in (node for node in ast.walk(parsed) if isinstance(node, ast.Call)):
        name, settings = ast.unparse(call.func), {ast.unparse(keyword) for keyword in call.keywords}
        if (
            (name == "torch.load" and "weights_only=True" not in settings)
            or (name == "np.load" and "allow_pickle=False" not in settings)
            or name in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "yaml.load")
            or "shell=True" in settings
        ):
            found.append(f"line {call.lineno}: {name}")
    return found


@every_source
def test_reading_a_file_runs_no_code_from_it(path: Path) -> None:
    assert unsafe_calls(tree(path)) == []


@pytest.mark.parametrize("source", ["torch.load(path)", "np.load(p)", "exec(text)", "subprocess.run(line, shell=True)"])
def test_an_unsafe_call_is_noticed(source: str) -> None:
    assert unsafe_calls(ast.parse(source))


@every_source
def test_files_and_functions_stay_readable(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{lines} lines: a file holds one idea"
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno}
    assert {name: length for name, length in long.items() if length > MAX_FUNCTION_LINES} == {}


def config_options(parsed: ast.Module) -> Iterator[tuple[ast.ClassDef, str]]:
    """The fields of every dataclass whose name ends in Config, each with its class."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
            fields = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
            yield from ((node, field.id) for field in fields if isinstance(field, ast.Name))


def reads(node: ast.AST, owner: ast.ClassDef, inside: str = "") -> Iterator[str]:
    """Names of the attributes that are read, but for those that the owner's __post_init__ only checks.

    Outside the owner `self.name` is another object's attribute and does not count, `self.config.name` does.
    """
    for child in ast.iter_child_nodes(node):
        if child is owner:
            yield from reads(child, owner, "owner")
        elif inside == "owner" and getattr(child, "name", "") == "__post_init__":
            continue
        else:
            if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Load):
                on_self = isinstance(child.value, ast.Name) and child.value.id == "self"
                if inside == "owner" or not on_self:
                    yield child.attr
            yield from reads(child, owner, inside)


def handed_over(node: ast.AST, scope: dict[str, str]) -> Iterator[str]:
    """Names of the classes whose instances are spread by `asdict(…)`: `self`, or a parameter with that annotation."""
    for child in ast.iter_child_nodes(node):
        inner = scope
        if isinstance(child, ast.ClassDef):
            inner = {"self": child.name}
        elif isinstance(child, ast.FunctionDef):
            annotated = [arg for arg in child.args.args if isinstance(arg.annotation, ast.Name)]
            inner = scope | {arg.arg: ast.unparse(arg.annotation) for arg in annotated if arg.annotation}
        elif isinstance(child, ast.Call) and _called_name(child) == "asdict":
            yield scope.get(ast.unparse(child.args[0]), "")
        yield from handed_over(child, inner)


def parameters(parsed: ast.Module) -> set[str]:
    return {node.arg for node in ast.walk(parsed) if isinstance(node, ast.arg)}


def unread(trees: list[ast.Module]) -> list[str]:
    """Options that nothing reads: neither as an attribute, nor as the keyword argument that `asdict` makes of them."""
    options = [option for parsed in trees for option in config_options(parsed)]
    attributes = {id(owner): {name for parsed in trees for name in reads(parsed, owner)} for owner, _ in options}
    spread = {name for parsed in trees for name in handed_over(parsed, {})}
    arguments = set().union(*map(parameters, trees))
    return [
        f"{owner.name}.{field}"
        for owner, field in options
        if field not in attributes[id(owner)] and not (owner.name in spread and field in arguments)
    ]


def test_every_option_is_read() -> None:
    trees = [tree(path) for path in modules().values()]
    assert any(True for parsed in trees for _ in config_options(parsed)), "no config class was found"
    assert unread(trees) == []


def test_an_unread_option_is_noticed() -> None:
    source = """
class LoaderConfig:
    workers: int = 0
    depth: int = 2
    seed: int = 0
    def __post_init__(self):
        if self.depth < 1: raise ValueError
class Loader:
    def __init__(self, config):
        self.workers, self.seed = config.workers, 0
    def draw(self):
        return self.seed
class HeadConfig:
    layers: int = 3
    colour: str = "blue"
def build(head: HeadConfig):
    return Head(**asdict(head))
class Head:
    def __init__(self, layers): ...
"""
    assert unread([ast.parse(source)]) == ["LoaderConfig.depth", "LoaderConfig.seed", "HeadConfig.colour"]
