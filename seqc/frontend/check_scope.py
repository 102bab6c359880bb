"""What is known at a line of a spec: names and what they stand for, sizes, and the parts of the Model made so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from seqc.frontend import ast
from seqc.frontend.check_functions import BUILT_IN_NAMES
from seqc.frontend.check_problems import Problems, Refused
from seqc.frontend.check_values import Value
from seqc.ir import model, ops
from seqc.ir.expr import Expr, walk
from seqc.source import Source, Span

PYTHON_RESERVED = frozenset(
    [
        "False",
        "None",
        "True",
        "and",
        "as",
        "assert",
        "async",
        "await",
        "break",
        "class",
        "continue",
        "def",
        "del",
        "elif",
        "else",
        "except",
        "finally",
        "for",
        "from",
        "global",
        "if",
        "import",
        "in",
        "is",
        "lambda",
        "nonlocal",
        "not",
        "or",
        "pass",
        "raise",
        "return",
        "try",
        "while",
        "with",
        "yield",
    ]
)
RESERVED = PYTHON_RESERVED | frozenset(
    ["form", "backend", "check", "state", "cu_seqlens", "initial_state", "output_final_state", "return_info", "Layer", "reference"]
)
# Modules that generated kernels call by these names: no input, param or state may hide them.
OF_KERNELS = {"torch": "PyTorch", "runtime": "the package's own runtime", "math": "Python's mathematics"}

# Names that no layer may have, and why. A layer's name is that of its folder, of its op and of what `module.py` imports.
_A_FILE = "a file of every generated package has this name"
_AN_IMPORT = "generated files import this name"
_EXPORTED = "every generated package has a value of this name"
_A_CALL = "generated files call this"
NOT_FOR_LAYERS = {
    "reference": _A_FILE, "runtime": _A_FILE, "sequence": _A_FILE, "operators": _A_FILE, "ops": _A_FILE, "module": _A_FILE,
    "chunkwise": _A_FILE, "recurrent": _A_FILE,
    "json": _AN_IMPORT, "torch": _AN_IMPORT, "nn": _AN_IMPORT, "F": _AN_IMPORT, "Tensor": _AN_IMPORT, "Path": _AN_IMPORT,
    "math": _AN_IMPORT, "Kernels": _AN_IMPORT, "Operator": _AN_IMPORT, "Value": _AN_IMPORT, "Signature": _AN_IMPORT,
    "State": _EXPORTED, "NAMESPACE": _EXPORTED, "CHUNK_SIZE": _EXPORTED, "DOMAINS": _EXPORTED, "FORMS": _EXPORTED,
    "MANIFEST": _EXPORTED, "REFUSED": _EXPORTED, "Layer": _EXPORTED, "signature": _EXPORTED, "initial_states": _EXPORTED,
    "super": _A_CALL, "range": _A_CALL,
}  # fmt: skip
COARSE = {"layer": 0, "group": 1, "head": 2, "sequence": 2}


Definitions = dict[tuple[str, str], ast.Definition]


@dataclass(frozen=True)
class Entity:
    """What a name stands for.

    kind: size, input, param, let, state, memory, index, value (a formal or a local name of a definition), output, broken
    (its declaration was refused). `tensors` are the state tensors of a state or memory, or the one that a formal holds.
    `lengths` are, for each growing axis of the value, how often it had grown when the value was made.
    """

    kind: str
    name: str
    span: Span | None
    value: Value | None = None
    tensors: tuple[str, ...] = ()
    deep: ast.DeepMemory | None = None
    lengths: tuple[tuple[str, int], ...] = ()
    mutable: bool = False
    inside: tuple[str, ...] = ()  # the axes that the tensor of a formal has inside its definition


@dataclass(frozen=True)
class Link:
    """How a memory is read: a retention's `link`, with the arguments of the layer's `retain` line."""

    definition: ast.Definition
    source: Source
    method: ast.Method


@dataclass
class Build:
    """The check of one layer: what it has found and made. Filled from top to bottom, once."""

    problems: Problems
    source: Source
    beside: Path | None
    homes: dict[str, Definitions]  # the definitions of each text, by its name
    sizes: dict[str, ast.Size | None]
    values: dict[str, Fraction | None]
    static: set[str] = field(default_factory=set)
    inputs: list[model.Input] = field(default_factory=list)
    params: list[model.Param] = field(default_factory=list)
    states: dict[str, model.State] = field(default_factory=dict)
    owned: dict[str, model.State] = field(default_factory=dict)  # the algorithms' states
    owners: dict[tuple[int, str, str], str] = field(default_factory=dict)  # the line, tensor and name of an algorithm's state -> the state
    hidden: dict[str, model.Hidden] = field(default_factory=dict)
    hidden_keys: dict[tuple[str, int, str, int, int], tuple[Expr, str]] = field(default_factory=dict)
    steps: list[model.Step] = field(default_factory=list)
    texts: dict[str, model.Text] = field(default_factory=dict)
    scopes: dict[str, model.Scope] = field(default_factory=dict)  # of every leaf
    varying: set[str] = field(default_factory=set)  # leaves that differ from token to token
    fixed: dict[Expr, Expr] = field(default_factory=dict)  # lets that do not vary, by their leaf
    links: dict[str, Link] = field(default_factory=dict)
    growing: dict[str, Span] = field(default_factory=dict)
    grown: dict[str, list[Span]] = field(default_factory=dict)
    line: int = 0  # counts the steps that change a state
    fresh: dict[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    library: Definitions = field(default_factory=dict)  # found beside the spec or in the shipped library
    slopes: list[tuple[Expr, Expr]] = field(default_factory=list)  # leaves that stand for a slope in the objective at hand

    @contextmanager
    def identity(self, base: str) -> Iterator[str]:
        """An axis that no text can name, for as long as it is needed."""
        count = self.fresh.get(base, 0) + 1
        self.fresh[base] = count
        try:
            yield base + "~" * count
        finally:
            self.fresh[base] = count - 1

    def scope_of(self, *exprs: Expr) -> tuple[model.Scope, str | None]:
        """The finest scope among the leaves, and a leaf that has it."""
        finest: model.Scope = "layer"
        who: str | None = None
        for node in walk(*exprs):
            if node.op.name == "var":
                scope = self.scopes.get(node.name, "head" if node.name == "head" else "layer")
                if COARSE[scope] > COARSE[finest]:
                    finest, who = ("head" if scope == "sequence" else scope), node.name
        return finest, who

    def varies(self, expr: Expr) -> str | None:
        """A leaf that differs from token to token, if there is one."""
        return next((n.name for n in walk(expr) if n.op.name == "var" and n.name in self.varying), None)


@dataclass
class Env:
    """Where an expression stands: the names and axes that it sees, and how it reads the memory."""

    build: Build
    names: dict[str, Entity]
    axes: dict[str, str]
    place: str  # `layer x`, `function f`: for messages
    home: str = ""  # the text that this stands in
    objective: bool = False
    reads: Mapping[str, Expr] = field(default_factory=dict)  # tensors that stand for a leaf: inside an objective
    within: tuple[tuple[str, str], ...] = ()  # the definitions around this one
    layer: bool = True
    draws: list[model.Draw] | None = None
    draw_axes: tuple[str, ...] = ()
    binders: Mapping[str, str] = field(default_factory=dict)  # declared axis -> the mapped axis of its index
    draw_name: str = ""
    suffix: str = ""  # of names declared in an unrolled loop

    def inner(self, **changes: object) -> Env:
        return replace(self, **changes)  # type: ignore[arg-type]


def known_names(env: Env) -> dict[str, Span | None]:
    """Every name that an expression could mean, with its place."""
    known: dict[str, Span | None] = {e.name: e.span for e in env.names.values() if e.kind != "broken"}
    if env.layer:
        known |= {name: (size.name.span if size else None) for name, size in env.build.sizes.items()}
    known |= {name: d.name.span for (_, name), d in env.build.homes.get(env.home, {}).items()}
    return known | {name: None for name in BUILT_IN_NAMES if name not in known}


def unknown_name(env: Env, name: str, span: Span, what: str = "nothing", known: Mapping[str, Span | None] | None = None) -> Refused:
    secondary, helps = env.build.problems.misspelt(name, {**(known or {}), **known_names(env)})
    return env.build.problems.refuse(
        "unknown-name", f"{what} is named `{name}`", span, f"not declared in {env.place}", secondary=secondary, helps=helps
    )


def declare(env: Env, name: ast.Name, entity: Entity) -> None:
    """Enters a name, or refuses one that is reserved, built in or taken."""
    refuse_name(env, name)
    env.names[name.id] = entity


def refuse_name(env: Env, name: ast.Name) -> None:
    """Raises if a name cannot be declared here."""
    problems = env.build.problems
    if name.id in RESERVED:
        why = "reserved by Python" if name.id in PYTHON_RESERVED else "an argument or a name of the generated module"
        raise problems.refuse("reserved-name", f"`{name.id}` cannot be declared", name.span, why)
    if name.id in BUILT_IN_NAMES:
        raise problems.refuse("redefines-builtin", f"`{name.id}` is built in, and nothing may redefine it", name.span)
    earlier = env.names.get(name.id)
    if earlier is None and env.layer and name.id in env.build.sizes:
        size = env.build.sizes[name.id]
        raise problems.refuse(
            "declared-twice",
            f"`{name.id}` is declared twice",
            name.span,
            "",
            secondary=[(size.name.span if size else None, "a size of the layer")],
        )
    if earlier is not None and earlier.kind != "broken":
        raise problems.refuse("declared-twice", f"`{name.id}` is declared twice", name.span, "", secondary=[(earlier.span, "first here")])


def refuse_tensor_name(env: Env, name: ast.Name) -> None:
    """Raises if a name cannot be that of an input, a param or a state: generated kernels have these as arguments."""
    refuse_name(env, name)
    if (module := OF_KERNELS.get(name.id)) is not None:
        why = f"generated kernels call {module} by this name"
        raise env.build.problems.refuse("reserved-name", f"`{name.id}` cannot be declared", name.span, why)


def broken(env: Env, name: ast.Name) -> None:
    """Enters a name whose declaration was refused: its uses say nothing more."""
    if name.id not in env.names:
        env.names[name.id] = Entity("broken", name.id, name.span)


def current(env: Env, state: str) -> Expr:
    """A state tensor's leaf: its stored value at this line."""
    s = env.build.states.get(state) or env.build.owned[state]
    return ops.var(state, s.axes, s.dtype)
