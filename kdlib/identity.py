"""What ran, identified by content: equal identities mean that the same thing would run again.

`identity` follows a value into the code, the numbers and the globals that it reaches. The user's
own functions and classes count by the instructions that run, so a comment, a moved line or a
notebook cell that is run once more changes nothing. Objects of installed libraries count by name
and version, those of this package by name alone: hash its code separately.

Doubt counts as a change: a compiled function, a matplotlib axes, an object that caches on itself,
another Python, or a script instead of a notebook may get a new identity. A run is then repeated,
never taken for another. Out of scope, hence invisible: library code patched at run time, files
and environment variables read by the code that runs, modules imported by a computed name,
annotations, `requires_grad`, and training or evaluation mode. Reading an identity imports the
user's modules that a function would import when it is called.
"""

from __future__ import annotations

import bisect
import builtins
import concurrent.futures
import copyreg
import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdlib import inputs

_KIT = __name__.partition(".")[0]
_READS = "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"
_SILENT = "NOP", "EXTENDED_ARG", "CACHE"  # follow the layout of the source, and do nothing
_LABELS = "__doc__", "__module__", "__firstlineno__", "__static_attributes__"
_NOISE = {*_LABELS, "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"}
_NOISE |= {"_abc_impl", "_backward_cls", "__builtins__", "__cached__", "__spec__", "__loader__"}
_NOISE |= {"__name__", "__file__", "__path__", "__package__"}  # where code comes from
_HIDING = eval, exec, globals, locals  # what they read stands in no instruction
_CALLED = 0x3AC  # flags of a code object: *args, **kwargs, generator, coroutine
_STATEFUL = "stateful"  # label of an object that, shared, differs from two equal ones
_HEAP = 1 << 9  # flag of a class that a class statement made, or a call of its metaclass
_INSIDE: dict[type, tuple[str, ...]] = {  # wrappers, and what of them counts
    functools.partial: ("func", "args", "keywords", "__dict__"),
    functools._lru_cache_wrapper: ("__wrapped__",),
    functools.cached_property: ("func",),
    types.MethodType: ("__func__", "__self__"),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
    types.GetSetDescriptorType: ("__qualname__",),
    RemovableHandle: (),  # the hook that it removes is found in its network
}
_Parts = Iterator[tuple[str, Any]]  # labels, which are also the steps of a path, with values


class Unidentifiable(ValueError):
    """A value whose identity cannot be read; the message holds the path to it and what to do."""


class _Code(NamedTuple):
    """A nested code object, with the names that it can read."""

    code: types.CodeType
    space: Mapping[str, Any]


def identity(value: Any, name: str = "value") -> str:
    """Name `value` by content (SHA-256, hex), alike in every process; `name` is for messages.

    Raises:
        Unidentifiable: it reaches a generator, an open file, a lock, an executor, a scripted
            module or a function that calls eval, exec, globals or locals.
    """
    return _Graph(value, name).digest().hex()


def digest(*parts: str | bytes | Tensor | np.ndarray) -> str:
    """SHA-256 (hex) of parts, framed by type, shape and length: ("ab", "c") is not ("a", "bc")."""
    for part in parts:
        if not isinstance(part, (str, bytes, Tensor, np.ndarray)):
            known = "strings, bytes, tensors and arrays"
            raise TypeError(f"digest takes {known}, got {inputs.describe(part)}: convert it")
    numbers = (Tensor, np.ndarray)
    found = (_numbers(part) if isinstance(part, numbers) else _plain(part) for part in parts)
    return hashlib.sha256(b"".join(_frame("", part or b"") for part in found)).hexdigest()


def _frame(label: str, content: bytes) -> bytes:
    """A label and a content with their lengths, so that no two such pairs look alike."""
    name = label.encode("utf-8", "surrogatepass")
    return b"%d %d %b%b" % (len(name), len(content), name, content)


def _numbers(value: Tensor | np.ndarray) -> bytes:
    """Type, shape and content of numbers, whatever the device and the memory layout."""
    if isinstance(value, Tensor):
        dense = value.detach() if value.layout == torch.strided else value.detach().to_dense()
        dense = dense.as_subclass(Tensor).cpu().resolve_conj().resolve_neg().contiguous()
        flat = dense.as_strided((dense.numel(),), (1,))  # also one number out of a strided view
        kind, raw = str(value.dtype), flat.view(torch.uint8).numpy()
    elif value.dtype.hasobject:
        raise TypeError("an array of Python objects has no content of its own: use a list")
    else:
        kind = str(value.dtype.descr)
        raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return f"{kind} {tuple(value.shape)} {hashlib.sha256(raw.data).hexdigest()}".encode()


def _plain(value: Any) -> bytes | None:
    """The content of a value with nothing to follow, tuples of such values included, else None."""
    kind = type(value)
    if kind is str:
        data = value.encode("utf-8", "surrogatepass")
    elif kind is bytes:
        data = value
    elif kind is int:
        data = b"%x" % value
    elif kind in (bool, float, complex, type(None), type(...), type(NotImplemented)):
        data = repr(value).encode()
    elif kind is tuple:
        parts = [_plain(part) for part in value]
        if None in parts:
            return None
        data = b"".join(_frame("", part) for part in parts if part is not None)
    else:
        return None
    name = kind.__name__.encode()
    return name + (b"=" + data if len(data) < 64 else b"#" + hashlib.sha256(data).digest())


@functools.cache
def _installed(top: str, file: str | None) -> bool:
    """Whether a top-level module with this file belongs to Python or to an installed package."""
    standard, places = top in sys.stdlib_module_names, Path(file or "").parents
    if {"site-packages", "dist-packages"} & {place.name for place in places}:
        return True
    return standard and (not (file or "").endswith(".py") or Path(os.__file__).parent in places)


def _library(module: str) -> bool:
    """Whether a module counts by name and version, because it is not the user's own."""
    top = module.partition(".")[0]
    if top in (_KIT, "__main__"):
        return top == _KIT
    found: Any = sys.modules.get(module)
    if getattr(found, "__file__", None) is None:
        found = sys.modules.get(top)
    if found is None:
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError):
            return False
        return spec is not None and _installed(top, spec.origin if spec.has_location else None)
    path = next(iter(getattr(found, "__path__", ())), None)  # of a package without a file
    return _installed(top, getattr(found, "__file__", None) or path)


@functools.cache
def _version(top: str) -> str:
    """The version of Python, or of what was installed under the name of a top-level module."""
    if top in sys.stdlib_module_names or top == _KIT:
        return "" if top == _KIT else sys.version.split()[0]
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        names = set(importlib.metadata.packages_distributions().get(top, ()))
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(names))


def _named(module: str, name: str) -> _Parts:
    """A library object: its place and the version of its library."""
    yield "library", (module, name, _version(module.partition(".")[0]))


def _found(value: Any, module: Any, name: Any) -> bool:
    """Whether a loaded library module holds `value` under a qualified name."""
    if not (isinstance(module, str) and isinstance(name, str) and _library(module)):
        return False
    held: Any = sys.modules.get(module)
    for part in name.split("."):
        held = getattr(held, part, None)
    return held is value


class _Graph:
    """All that a value reaches: a node an object, with labelled references in no order.

    A node is named by its contents and the names of the nodes that it refers to, never by where
    or when it was met: an old and a new copy of a function are one, and a set has no order.
    """

    def __init__(self, value: Any, name: str):
        self.objects = [value]  # by node; keeps them alive, so that an id stays unique
        self.origin = [(0, name)]  # by node: found in which, by which label
        self.number = {id(value): 0}
        self.contents: list[list[bytes]] = []
        self.references: list[list[tuple[str, int]]] = []
        uses, stateful = [0], []
        for node, found in enumerate(self.objects):  # grows meanwhile
            self.contents.append([_frame(type(found).__qualname__, b"")])
            self.references.append([])
            try:
                for label, part in _parts(found):
                    plain = _plain(part)
                    if label == _STATEFUL:
                        stateful.append(node)
                    elif plain is not None:
                        self.contents[node].append(_frame(label, plain))
                    else:
                        there = self.number.setdefault(id(part), len(self.objects))
                        if there == len(self.objects):
                            self.objects.append(part)
                            self.origin.append((node, label))
                            uses.append(0)
                        uses[there] += 1
                        self.references[node].append((label, there))
            except Exception as error:  # user code runs here: anything may be raised
                raise Unidentifiable(f"{self.path(node)}: {_reason(found, error)}") from error
        for node in stateful:  # a tied weight is not two equal weights
            self.contents[node].append(_frame(_STATEFUL, b"%d" % uses[node]))

    def path(self, node: int) -> str:
        """The labels that lead to a node."""
        labels = [self.origin[node][1]]
        while node:
            node = self.origin[node][0]
            labels.append(self.origin[node][1])
        return " > ".join(reversed(labels))

    def digest(self) -> bytes:
        """Name the first node so that two graphs share the name if they unfold alike.

        What reaches no cycle is named from the leaves up. The other nodes start alike and are
        renamed by what they refer to, until a round tells no more of them apart. All names enter
        the result, because one name has seen only as far as there were rounds.
        """
        names = [b""] * len(self.objects)
        waiting, before = set(range(len(names))), 0

        def name(node: int) -> bytes:
            references = (_frame(label, names[there]) for label, there in self.references[node])
            return hashlib.sha256(b"".join(sorted([*self.contents[node], *references]))).digest()

        while len(waiting) != before:
            before = len(waiting)
            for node in sorted(waiting, reverse=True):  # most references point forwards
                if waiting.isdisjoint(there for _, there in self.references[node]):
                    names[node] = name(node)
                    waiting.remove(node)
        told, before = 0, -1
        while told != before:
            fresh = {node: name(node) for node in waiting}
            for node, renamed in fresh.items():
                names[node] = renamed
            told, before = len(set(fresh.values())), told
        return hashlib.sha256(b"".join([names[0], *sorted(set(names))])).digest()


def _reason(value: Any, error: Exception) -> str:
    """Why a value has no identity, and what to do."""
    if isinstance(error, Unidentifiable):
        return str(error)
    detail = "" if str(error).startswith("cannot pickle") else f" ({error})"
    advice = "make it inside the function that uses it, or pass the values that it is made from"
    return f"cannot pickle {type(value).__name__}{detail}: {advice}"


def _parts(value: Any) -> _Parts:
    """What an object consists of; a label appears in the path of an error message."""
    if isinstance(value, types.FunctionType):
        yield from _function(value)
    elif isinstance(value, _Code):
        yield from _code(*value)
    elif isinstance(value, type):
        yield from _class(value)
    elif isinstance(value, types.ModuleType):
        user = not _library(value.__name__)
        yield from _entries("attribute", vars(value)) if user else _named(value.__name__, "")
    elif isinstance(value, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise Unidentifiable("a scripted module hides its code: pass what it was made from")
    elif isinstance(value, concurrent.futures.Executor):
        kind = type(value).__name__
        raise Unidentifiable(f"cannot pickle {kind}: start it inside the function that uses it")
    elif any(value is one for one in _HIDING):
        raise Unidentifiable(f"cannot follow what {value.__name__} reads: write the code out")
    elif type(value) in (list, tuple):
        yield from ((f"item {place}", item) for place, item in enumerate(value))
    elif type(value) in (dict, types.MappingProxyType):
        yield "order", tuple(key if _plain(key) is not None else None for key in value)
        yield from _entries("key", value)
    elif (plain := _plain(value)) is not None:
        yield "content", plain
    else:
        yield "class", type(value)
        yield from _instance(value)


def _instance(value: Any) -> _Parts:
    """An object that is neither code nor a container: by what counts of it, or by its pickle."""
    wrapper = next((kind for kind in _INSIDE if isinstance(value, kind)), None)
    if wrapper is not None:
        yield from ((name, getattr(value, name)) for name in _INSIDE[wrapper])
    elif isinstance(value, (set, frozenset)):
        yield from (("element", item) for item in value)
        yield from _entries("attribute", getattr(value, "__dict__", {}))
    elif isinstance(value, nn.Module):
        yield from _network(value)
    elif isinstance(value, torch.Generator):
        yield _STATEFUL, None
        yield "generator", (value.device.type, _numbers(value.get_state()))
    elif type(value) is np.ndarray and value.dtype.hasobject:
        yield "items", (value.shape, value.tolist())
    elif isinstance(value, Tensor) or type(value) is np.ndarray:
        yield _STATEFUL, None
        yield "numbers", _numbers(value)
        yield from _entries("attribute", getattr(value, "__dict__", {}))
    else:
        yield from _pickled(value)


def _pickled(value: Any) -> _Parts:
    """Any other object: a name in a library, or what pickle would store, or its refusal."""
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    name = getattr(value, "__qualname__", name)
    if _found(value, module, name):
        yield from _named(str(module), str(name))
        return
    reduce = copyreg.dispatch_table.get(type(value))
    form = reduce(value) if reduce else value.__reduce_ex__(4)
    if isinstance(form, str):  # a name in the module of the object
        form = str, (module, form)
    make, args, state, items, pairs = (*form, None, None, None)[:5]
    yield "constructor", "eval" if make is eval else make  # functions bound by pybind11
    yield from ((f"argument {place}", arg) for place, arg in enumerate(args))
    yield from ((f"item {place}", item) for place, item in enumerate(items or ()))
    if isinstance(value, OrderedDict):
        yield from ((f"entry {place}", pair) for place, pair in enumerate(pairs or ()))
    else:
        yield from _entries("key", dict(pairs or ()))
    if state is None:  # what a `__reduce__` of its own leaves out
        yield from _entries("attribute", getattr(value, "__dict__", {}))
    else:
        yield _STATEFUL, None
        for place, part in enumerate(state if type(state) is tuple else (state,)):
            kind = f"slot {place}" if place else "attribute"  # the second part holds __slots__
            yield from _entries(kind, part) if type(part) is dict else [(f"state {place}", part)]


def _entries(kind: str, mapping: Mapping[Any, Any]) -> _Parts:
    """Keys with their values, whatever their order, but for what says where code comes from."""
    for key, value in mapping.items():
        if type(key) is str and kind != "key":
            if key not in _NOISE:
                yield f"{kind} {key}", value
        elif kind == "key" and _plain(key) is not None:
            yield f"key {key!r}", value
        else:
            yield f"{kind} {type(key).__name__}", (key, value)


def _network(network: nn.Module) -> _Parts:
    """Parameters, buffers and modules in order, hooks and attributes; not the training mode."""
    yield _STATEFUL, None
    for key, value in vars(network).items():
        if key in ("_parameters", "_buffers", "_modules"):
            yield key, tuple(value)
            yield from _entries("attribute", value)
        elif "_hooks" in key and isinstance(value, dict) and all(type(k) is int for k in value):
            if value:  # the number of a hook says when it was registered
                yield key, tuple(value.values())
        elif key not in ("training", "_flat_weight_refs"):  # an LSTM's weak references
            yield f"attribute {key}", value


def _class(kind: type) -> _Parts:
    """A class: qualified name, bases and contents; a library's by name and version."""
    if _found(kind, kind.__module__, kind.__qualname__) or not kind.__flags__ & _HEAP:
        yield from _named(kind.__module__, kind.__qualname__)
        return
    yield "class", kind.__qualname__
    yield "metaclass", type(kind)
    yield from ((f"base {place} {b.__name__}", b) for place, b in enumerate(kind.__bases__))
    yield from _entries("attribute", vars(kind))


def _function(function: types.FunctionType) -> _Parts:
    """Code with the globals that it reads, defaults, closed-over values and attributes.

    The code of a library counts by name; a function that its module does not hold was made by a
    call, so that its defaults and closed-over values count too.
    """
    code, space = function.__code__, function.__globals__
    module, name = str(space.get("__name__", "")), code.co_qualname
    registry = getattr(function, "registry", None)
    made = code.co_filename.startswith("<") and not code.co_filename.startswith("<frozen")
    if _library(module) and not made and "<lambda>" not in name:
        yield from _named(module, name)
        if _found(function, module, name):
            return
        if type(registry) is types.MappingProxyType:  # functools.singledispatch, and its cache
            yield "registry", registry
            return
    else:
        yield from _code(code, space)
        yield from _entries("attribute", vars(function))
    names = code.co_varnames[: code.co_argcount]
    defaults = dict(zip(reversed(names), reversed(function.__defaults__ or ()), strict=False))
    yield from _entries("default", defaults | (function.__kwdefaults__ or {}))
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"closure {name}", cell.cell_contents
        except ValueError:
            yield "unbound closure", name


def _code(code: types.CodeType, space: Mapping[str, Any]) -> _Parts:
    """The instructions that run, without lines, files and docstrings, and what they read."""
    bytecode: Any = dis.Bytecode(code)
    ops = [op for op in bytecode if op.opname not in _SILENT]
    labels = {n for n, op in enumerate(ops) if op.opname == "STORE_NAME" and op.argval in _LABELS}
    ops = [op for n, op in enumerate(ops) if n not in labels and n + 1 not in labels]
    place = functools.partial(bisect.bisect_left, [op.offset for op in ops])
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    yield "signature", (code.co_name, code.co_varnames, *counts, code.co_flags & _CALLED)
    for entry in bytecode.exception_entries:
        yield "except", (place(entry.start), place(entry.end), place(entry.target), entry.depth)
    text = []
    for at, op in enumerate(ops):
        operand = op.argval if isinstance(op.argval, str) else op.arg
        if op.opcode in dis.hasconst:
            operand, constant = "", code.co_consts[op.arg]
            nested = isinstance(constant, types.CodeType)
            label = f"{constant.co_name} {at}" if nested else f"constant {at}"
            yield label, _Code(constant, space) if nested else constant
        elif op.opcode in dis.hasjrel or op.opcode in dis.hasjabs:
            operand = place(op.argval)
        elif op.opname in _READS:
            yield _read(op.argval, ops[at + 1 :], space)
        elif op.opname == "IMPORT_NAME":
            yield from _imported(op.argval, ops[at - 2].argval, ops[at - 1].argval, space)
        text.append(f"{op.opname} {operand}")
    yield "instructions", "\n".join(text)


def _read(name: str, ops: Iterable[dis.Instruction], space: Mapping[str, Any]) -> tuple[str, Any]:
    """A global, or `usermodule.attr` where the next instructions ask a user's module for it."""
    known = space.get("__builtins__", builtins)
    known = vars(known) if isinstance(known, types.ModuleType) else known
    if name not in space and name not in known:
        return "unbound global", name
    value = space[name] if name in space else known[name]
    for op in ops:
        module = isinstance(value, types.ModuleType) and not _library(value.__name__)
        asked = op.opname in ("LOAD_ATTR", "LOAD_METHOD")
        if not (module and asked and hasattr(value, op.argval)):
            break
        name, value = f"{name}.{op.argval}", getattr(value, op.argval)
    return f"global {name}", value


def _imported(
    name: str, level: int, wanted: tuple[str, ...] | None, space: Mapping[str, Any]
) -> _Parts:
    """What an import statement reads from a user's module: the wanted names, or all of it."""
    try:
        package = space.get("__package__") or ""
        full = importlib.util.resolve_name("." * level + name, package) if level else name
        if _library(full):
            yield from _named(full, "")
            return
        module = importlib.import_module(full)
    except ImportError:  # an optional dependency, or the function fails when it is called
        yield "missing import", name
        return
    for one in wanted or ():
        if not hasattr(module, one) and importlib.util.find_spec(f"{full}.{one}"):
            importlib.import_module(f"{full}.{one}")
        yield f"import {full}.{one}", getattr(module, one, None)
    if not wanted:
        top = full.partition(".")[0]  # `import a.b` binds a, which holds b
        yield f"import {top}", sys.modules[top]
