"""The files of a package -> one Python file with the same public names.

Every module of the package becomes a part of the file. Its text stays as it is, but for names that another part has too, which get the
part's name in front, and for its imports, which stand at the head of the file. A part that others ask by name (`runtime.mask`) is a
module object behind its text. What needs Triton is the body of a function, so that Triton is imported when a kernel is first called; the
names in it are the file's, since Triton looks them up there.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count
from textwrap import fill, indent

from seqc.diagnostics import InternalError
from seqc.emit.layer import GeneratedFile
from seqc.emit.names import Place, defined, module_names, renamed, spelled
from seqc.emit.write import GENERATED, MARK

LATE = "triton"  # a part that imports this is executed when one of its functions is first called
LATE_DOC = "What needs Triton, which is imported here: when one of these functions is first called. Their names are the file's."
ALL = "__all__"
WIDTH = 140
PARTS = '''"""The modules of the package, one after the other; here is how they find each other."""

from collections.abc import Callable
from functools import cache
from types import ModuleType


def namespace(name: str, **names: object) -> ModuleType:
    """A part of this file for those that ask it by name."""
    found = ModuleType(f"{__name__}.{name}")
    vars(found).update(names)
    return found
'''
LATER = '''def later(package: str, part: str, name: str) -> Callable[..., tuple[Tensor, ...]]:
    """A function of a part that is executed when the function is first called."""
    return partial(called, lambda: globals()[part](), name)'''


@dataclass(frozen=True)
class Thing:
    """What a name of a part means: a definition of a part, a part as a whole (without a name), or what is imported from outside."""

    home: str
    name: str = ""
    outside: bool = False


CACHE = Thing("functools", "cache", outside=True)


@dataclass(frozen=True)
class Part:
    """A module of the package. known: what its names mean. places: where it means them. late: executed when it is first asked for."""

    name: str
    text: str
    tree: ast.Module
    known: Mapping[str, Thing]
    places: tuple[Place, ...]
    late: bool

    @property
    def offered(self) -> tuple[str, ...]:
        """The names that it has for others."""
        for s in self.tree.body:
            if isinstance(s, ast.Assign) and _targets(s) == [ALL]:
                return tuple(ast.literal_eval(s.value))
        return tuple(n for n in defined(self.tree) if not n.startswith("_"))


def single_file(files: Iterable[GeneratedFile]) -> str:
    """The text of one file that offers what the package's `__init__` does. The same files make the same text."""
    texts = {f.name: f.text for f in files}
    parts = _ordered({name.removesuffix(".py"): t for name, t in _adapted(texts).items() if name.endswith(".py")})
    asked = {p.name: _asked(p.name, parts) for p in parts.values()}
    names = _named(parts, asked)
    head = _head(parts["__init__"].text)
    used = dict.fromkeys(p.known[x.name] for p in parts.values() for x in p.places if x.name in p.known)
    used |= {CACHE: None} if any(p.late for p in parts.values()) else {}
    begin = ["\n".join(head), "from __future__ import annotations", *_imports([t for t in used if not _is_late(t)], names)]
    sections = []
    for p in parts.values():
        body = _body(p, names, head)
        made = _call(names[Thing("parts", "namespace")], f'"{p.name}"', *(f"{n}={names[p.known[n]]}" for n in asked[p.name]))
        if p.late:
            body = _late(p, body, made, names, parts)
        elif asked[p.name]:
            body += f"\n\n\n{names[Thing(p.name)]} = {made}"
        sections.append(f"# {f'=== {p.name} '.ljust(117, '=')}\n\n{body}")
    return "\n\n".join([*begin, "\n\n\n".join(sections)]) + "\n"


# --- Parts -----------------------------------------------------------------------------------------------------------


def _adapted(texts: Mapping[str, str]) -> dict[str, str]:
    """The package's texts where they depend on being a package: the manifest beside it, what it imports later, and the names under which
    its operators are registered, which the package may have taken in the same process."""
    if '"""' in texts[MARK]:
        raise InternalError("the manifest cannot stand in a Python string")
    space = _statement(texts["ops.py"], "NAMESPACE")
    assert isinstance(space, ast.Assign)
    return {
        **texts,
        "parts.py": PARTS,
        "sequence.py": _replaced(texts["sequence.py"], "later", LATER),
        "ops.py": _replaced(texts["ops.py"], "NAMESPACE", f'NAMESPACE = "{ast.literal_eval(space.value)}_file"'),
        "__init__.py": _replaced(texts["__init__.py"], "MANIFEST", f'MANIFEST = json.loads(r"""{texts[MARK]}""")'),
    }


def _statement(text: str, name: str) -> ast.stmt:
    """The one that binds a name of a module."""
    for s in ast.parse(text).body:
        if name in _targets(s):
            return s
    raise InternalError(f"the package has no `{name}`, without which it makes no single file")


def _targets(s: ast.stmt) -> list[str]:
    return list(defined(ast.Module([s], [])))


def _replaced(text: str, name: str, statement: str) -> str:
    lines, s = text.split("\n"), _statement(text, name)
    return "\n".join([*lines[: s.lineno - 1], statement, *lines[s.end_lineno :]])


def _ordered(texts: Mapping[str, str]) -> dict[str, Part]:
    """What `__init__` needs, each behind what it needs itself, and before `__init__` what is executed later."""
    trees = {name: ast.parse(text) for name, text in texts.items()}
    known, found = _known(trees), dict[str, Part]()
    late = {name for name, own in known.items() if any(_is_late(t) for t in own.values())}

    def add(name: str) -> None:
        for other in (o for s in _relative(trees[name]) for o in ([s.module] if s.module else [a.name for a in s.names])):
            if other not in found:
                add(other)
        text, tree = texts[name], trees[name]
        if any(isinstance(n, ast.Global) or (isinstance(n, ast.ImportFrom) and n.level and n not in tree.body) for n in ast.walk(tree)):
            raise InternalError(f"`{name}` makes no part of a single file: a function of it has names of the module")
        found[name] = Part(name, text, tree, known[name], tuple(module_names(text, tree)), name in late)

    add("parts")
    add("__init__")
    last = found.pop("__init__")
    for name in sorted(late - set(found)):
        if name not in found:
            add(name)
    return {**found, "__init__": last}


def _known(trees: Mapping[str, ast.Module]) -> dict[str, dict[str, Thing]]:
    """What the names of every module mean; of what another one has imported itself, what that is."""
    known: dict[str, dict[str, Thing]] = {}

    def meant(s: ast.ImportFrom, name: str) -> Thing:
        if not s.level:
            return Thing(s.module or "", name, outside=True)
        return of(s.module)[name] if s.module is not None else Thing(name)

    def of(module: str) -> dict[str, Thing]:
        if module not in known:
            known[module] = own = {n: Thing(module, n) for n in defined(trees[module])}
            for s in trees[module].body:
                if isinstance(s, ast.Import):
                    own |= {a.asname or a.name: Thing(a.name, outside=True) for a in s.names}
                    if any("." in name for name in own):
                        raise InternalError(f"`{module}` makes no part of a single file: `{s.names[0].name}` is imported without a name")
                elif isinstance(s, ast.ImportFrom) and s.module != "__future__":
                    own |= {a.asname or a.name: meant(s, a.name) for a in s.names}
        return known[module]

    return {module: of(module) for module in trees}


def _relative(tree: ast.Module) -> list[ast.ImportFrom]:
    return [s for s in tree.body if isinstance(s, ast.ImportFrom) and s.level]


def _is_late(t: Thing) -> bool:
    return t.outside and t.home.partition(".")[0] == LATE


def _asked(name: str, parts: Mapping[str, Part]) -> tuple[str, ...]:
    """What the others ask a part for by name: all that it offers, if one of them takes it as a whole."""
    found: dict[str, None] = {}
    for p in parts.values():
        for x in p.places:
            if p.known.get(x.name) == Thing(name):
                found |= dict.fromkeys((x.attribute,) if x.attribute is not None else parts[name].offered)
    if parts[name].late:
        found |= dict.fromkeys(parts[name].offered)
    return tuple(sorted(found))


# --- Names -----------------------------------------------------------------------------------------------------------


def _named(parts: Mapping[str, Part], asked: Mapping[str, tuple[str, ...]]) -> dict[Thing, str]:
    """A name of the file for everything: the public ones as they are, others too where no other part has them."""
    init = parts["__init__"]
    public = {init.known[n]: n for n in init.offered}
    aliases: dict[Thing, set[str]] = {}
    for p in parts.values():
        for name, thing in p.known.items():
            aliases.setdefault(thing, set()).add(name)
    spellings = {p.name: spelled(p.tree) for p in parts.values()}
    every = [name for p in parts.values() for name in defined(p.tree)]
    shared = {name for name in every if every.count(name) > 1} | set(dir(builtins)) | set(keyword.kwlist)
    names, taken = {**public, Thing("__init__", ALL): ALL}, set(public.values()) | {p.name for p in parts.values() if p.late}

    def give(thing: Thing, *wishes: str) -> None:
        others = {n for p in parts.values() if thing in p.known.values() for n in spellings[p.name]}
        for name in chain(wishes, (f"{wishes[-1]}_{i}" for i in count(2))):
            if name not in taken and (aliases.get(thing) == {name} or name not in others):
                names[thing] = name
                taken.add(name)
                return

    for thing in aliases:
        if thing.outside:
            give(thing, *sorted(aliases[thing]))
    for p in parts.values():
        if asked[p.name] and (whole := Thing(p.name)) in aliases:
            give(whole, *([min(aliases[whole])] if len(aliases[whole]) == 1 else []), p.name, f"{p.name}_part")
    for p in parts.values():
        for name in defined(p.tree):
            if (thing := Thing(p.name, name)) not in names and name != ALL:
                give(thing, *([] if p.late or name in shared else [name]), f"{p.name.strip('_')}_{name.strip('_')}")
    return names


# --- Texts -----------------------------------------------------------------------------------------------------------


def _head(text: str) -> list[str]:
    """The comment with which a text begins."""
    lines = text.split("\n")
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def _imports(things: list[Thing], names: Mapping[Thing, str]) -> list[str]:
    """Import statements: of the standard library, and of what else there is."""

    def called(t: Thing, name: str) -> str:
        return name if names[t] == name else f"{name} as {names[t]}"

    blocks = []
    for standard in (True, False):
        few = sorted((t for t in things if t.outside and (t.home.partition(".")[0] in sys.stdlib_module_names) == standard), key=str)
        lines = [f"import {called(t, t.home)}" for t in few if not t.name]
        for home in dict.fromkeys(t.home for t in few if t.name):
            lines.append(f"from {home} import {', '.join(called(t, t.name) for t in few if t.home == home and t.name)}")
        blocks += ["\n".join(lines)] if lines else []
    return blocks


def _body(p: Part, names: Mapping[Thing, str], head: list[str]) -> str:
    """A part's text under the file's names, without its imports and what the head of the file says."""
    meant = [x for x in p.places if p.known.get(x.name) in names]
    lines = renamed(p.text, meant, lambda name: names[p.known[name]]).split("\n")
    own = _head(p.text)
    said = [line for line in own if line not in head and not line.startswith(GENERATED)]
    lines[: len(own)] = [*_stripped(said), *[""] * (len(own) - len(_stripped(said)))]
    for s in p.tree.body:
        where = slice(s.lineno - 1, s.end_lineno)
        if isinstance(s, ast.Expr) and s is p.tree.body[0] and (doc := ast.get_docstring(p.tree)) is not None:
            lines[where] = [*(f"# {line}".rstrip() for line in doc.split("\n")), *[""] * (len(lines[where]) - len(doc.split("\n")))]
        elif isinstance(s, (ast.Import, ast.ImportFrom)) or (_targets(s) == [ALL] and p.name != "__init__"):
            lines[where] = [""] * len(lines[where])
    return _spaced(lines, 1 if p.late else 2)


def _stripped(lines: list[str]) -> list[str]:
    """Without bare comment signs at both ends."""
    while lines and lines[0].strip("# ") == "":
        lines = lines[1:]
    while lines and lines[-1].strip("# ") == "":
        lines = lines[:-1]
    return lines


def _spaced(lines: Iterable[str], most: int) -> str:
    """With so many empty lines in a row at most."""
    out: list[str] = []
    for line in lines:
        if line or any(out[-most:]):
            out.append(line)
    return "\n".join(out).strip("\n")


def _late(p: Part, body: str, made: str, names: Mapping[Thing, str], parts: Mapping[str, Part]) -> str:
    """The part as a function that is executed once, its names as names of the file."""
    used = dict.fromkeys(p.known[x.name] for x in p.places if x.name in p.known)
    outside = [t for t in used if _is_late(t)]
    others = [t for t in used if not t.outside and not t.name and parts[t.home].late]
    own = [Thing(p.name, n) for n in defined(p.tree) if n != ALL]
    lines = [
        f'"""{LATE_DOC}"""',
        *_global([names[t] for t in (*outside, *others, *own)]),
        *"\n".join(_imports(outside, names)).split("\n"),
        *(["", *(f"{names[t]} = {t.home}()" for t in others)] if others else []),
    ]
    text = "\n".join(lines) + f"\n\n{body}\n\nreturn {made}"
    return f"@{names[CACHE]}\ndef {p.name}():\n{indent(text, '    ')}"


def _call(function: str, *arguments: str) -> str:
    """A call, in one line or with a line for each argument."""
    line = f"{function}({', '.join(arguments)})"
    return line if len(line) < WIDTH - 30 else "\n".join([f"{function}(", *(f"    {a}," for a in arguments), ")"])


def _global(names: list[str]) -> Iterator[str]:
    """Statements that say so, in lines of some length."""
    for line in fill(", ".join(names), WIDTH - 16, break_long_words=False).split("\n"):
        yield f"global {line.rstrip(',')}"
