"""`kdlib.identity`: what must change an identity, what must not, and what has none.

A case is a source that binds `value`, and one edit of it. It runs as a notebook cell does.
"""

import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlib import models
from kdlib.identity import Unidentifiable, digest, identity

PREAMBLE = """
import abc, collections, concurrent.futures, dataclasses, enum, functools, random, threading
import types, typing, weakref
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
import kdlib.models
torch.manual_seed(0)
"""
NET = """
class Net(nn.Module):
    width = 4
    def __init__(self, p=0.1):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Dropout(p), nn.ReLU())
        self.register_buffer("scale", torch.tensor(2.0))
        self.factor = 3
    def forward(self, x):
        return self.body(x) * self.scale
torch.manual_seed(0)
value = Net()
"""
HOOK = NET + "def hook(module, args, out): return out * 2\nvalue.register_forward_hook(hook)\n"
CALLABLE = """
class Shift:
    step = 3
    def __init__(self, by): self.by = by
    def __call__(self, x): return self.move(x)
    def move(self, x): return x + self.by
value = Shift(1)
"""
FAMILY = """
class Meta(type):
    def __len__(cls): return 7
class Root(metaclass=Meta):
    def run(self): return 1
class Base(Root):
    pass
class Leaf(Base):
    @property
    def size(self): return 2
    @staticmethod
    def fixed(): return 3
    @classmethod
    def made(cls): return 4
    @functools.cached_property
    def kept(self): return 5
    @functools.lru_cache
    def cached(self): return 6
value = Leaf()
"""
DECORATED = """
def scaled(by):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(x): return by * function(x)
        return wrapper
    return decorate
@scaled(2)
def value(x): return x + 1
"""
WRAPPED = """
@torch.no_grad()
def value(x): return x + 1
"""
HELPERS = """
RATE = 0.1
def inner(x): return x * RATE
def outer(x): return inner(x) + 1
def value(x): return outer(x)
"""
MUTUAL = """
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n != 0 and even(n - 1)
value = even
"""
BRANCHES = """
def value(x):
    prepare()
    try:
        x = work(x)
    except ValueError:
        x = 0
    for i in range(3):
        if x > i: continue
        x += 1
    return x
"""
INDENTED = """
def value(x):
    if x:
        first()
    also()
    return one(x) + two(x) + three(x)
"""
NESTED = """
def value(x):
    class Local:
        def f(self): return 1
    def g(y): return y + 2
    return [z * 3 for z in g(x)], Local()
"""
REGISTERED = """
@functools.singledispatch
def value(x): return 1
@value.register
def _(x: int): return 2
"""
FUNCTION = """
class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 2
    @staticmethod
    def backward(ctx, g): return g * 2
def value(x): return Double.apply(x)
"""
RECORDS = """
@dataclasses.dataclass
class Options:
    lr: float = 0.1
    steps: list = dataclasses.field(default_factory=lambda: [1])
class Mode(enum.Enum):
    FAST = 1
class Pair(typing.NamedTuple):
    a: int
    b: int = 2
class Slots:
    __slots__ = ("x",)
slots = Slots()
slots.x = 5
value = [Options(), Mode.FAST, Pair(1), slots, dataclasses.make_dataclass("Made", [("z", int, 7)])]
"""
TIED = """
a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
b.weight = nn.Parameter(a.weight.detach().clone())
value = nn.Sequential(a, b)
"""
SHARED = """
one, two = np.random.RandomState(0), np.random.RandomState(0)
value = {"crop": one, "flip": two}
"""
SILENT = """
class Silent:
    def __init__(self, x): self.x = x
    def __repr__(self): return "Silent()"
value = {Silent(1): 1}
"""
STORED = """
import copyreg
class Stored: pass
def build(x): return x + 1
value = Stored()
copyreg.pickle(Stored, lambda one: (build, (1,), ({"a": 1}, {"b": 2})))
"""
BUILT = "import os\ndef value(x):\n    return F.relu(x) + os.path.getsize('a') + MISSING + len(x)\n"

DIFFERENT = [  # what changes, source, what is replaced, by what
    ("order of a dictionary", "value = {'a': 1, 'b': 2}", "'a': 1, 'b': 2", "'b': 2, 'a': 1"),
    ("order of keywords", "value = functools.partial(print, sep='', end='')",
     "sep='', end=''", "end='', sep=''"),
    ("hidden by __reduce__", "class K:\n    def __init__(self, n=1):\n        self.n = n\n"
     "    def __reduce__(self):\n        return K, ()\nvalue = K(7)", "K(7)", "K(8)"),
    ("operator", HELPERS, "+ 1", "- 1"),
    ("constant", HELPERS, "+ 1", "+ 2"),
    ("type of a constant", HELPERS, "+ 1", "+ 1.0"),
    ("truth for one", HELPERS, "+ 1", "+ True"),
    ("bytes for a text", "def value(): return 'a'", "'a'", "b'a'"),
    ("sign of zero", "value = 0.0", "0.0", "-0.0"),
    ("called function", HELPERS, "inner(x) + 1", "abs(x) + 1"),
    ("library function", BUILT, "F.relu", "F.gelu"),
    ("name that becomes bound", BUILT, "import os", "import os\nMISSING = 1"),
    ("name that shadows a builtin", BUILT, "import os", "import os\nlen = sum"),
    ("global", HELPERS, "RATE = 0.1", "RATE = 0.2"),
    ("type of a global", HELPERS, "RATE = 0.1", "RATE = np.float32(0.1)"),
    ("global function of a helper", HELPERS, "x * RATE", "x / RATE"),
    ("default", "def value(x, k=1, *, m=2): pass", "k=1", "k=2"),
    ("keyword default", "def value(x, k=1, *, m=2): pass", "m=2", "m=3"),
    ("place of a default", "def value(x, k=1): pass", "x, k=1", "x=1, k=1"),
    ("keyword-only", "def value(x, k): pass", "x, k", "x, *, k"),
    ("positional-only", "def value(x, k): pass", "x, k", "x, /, k"),
    ("name of an argument", "def value(x): pass", "(x)", "(y)"),
    ("all arguments", "def value(*x): pass", "*x", "x"),
    ("all keywords", "def value(*x): pass", "*x", "**x"),
    ("generator function", "def value(): return (yield)", "return (yield)", "return 1"),
    ("coroutine function", "async def value(): pass", "async ", ""),
    ("closed-over value", DECORATED, "scaled(2)", "scaled(3)"),
    ("body under a decorator", DECORATED, "x + 1", "x + 2"),
    ("body of a decorator", DECORATED, "by * ", "by + "),
    ("body under torch's decorator", WRAPPED, "x + 1", "x + 2"),
    ("decorator of torch", WRAPPED, "no_grad", "enable_grad"),
    ("body under torch's wrapper", "value = torch.vmap(lambda x: x + 1)", "x + 1", "x + 2"),
    ("cached function", "@functools.cache\ndef value(x): return x", "return x", "return -x"),
    ("attribute of a function", "def value(): pass\nvalue.lr = 1", "lr = 1", "lr = 2"),
    ("recursion", "def value(n): return n and value(n - 1)", "n - 1", "n - 2"),
    ("mutual recursion", MUTUAL, "n != 0", "n != 1"),
    ("lambda", "value = lambda x: x + 1", "+ 1", "+ 2"),
    ("nested function", NESTED, "y + 2", "y + 3"),
    ("nested class", NESTED, "return 1", "return 2"),
    ("comprehension", NESTED, "z * 3", "z * 4"),
    ("set in a function", "def value(x): return x in {1, 2}", "{1, 2}", "{1, 3}"),
    ("range of a try", BRANCHES, "prepare()\n    try:\n", "try:\n        prepare()\n"),
    ("caught exception", BRANCHES, "ValueError", "KeyError"),
    ("kind of a jump", BRANCHES, "continue", "break"),
    ("target of a jump", INDENTED, "    also()", "        also()"),
    ("single dispatch", REGISTERED, "return 2", "return 3"),
    ("autograd function", FUNCTION, "g * 2", "g * 3"),
    ("partial argument", "value = functools.partial(print, 1, end='')", "1,", "2,"),
    ("partial keyword", "value = functools.partial(print, 1, end='')", "end=''", "end=' '"),
    ("name of a keyword", "value = functools.partial(print, 1, end='')", "end=", "sep="),
    ("partial function", HELPERS + "value = functools.partial(inner, 1)", "x * RATE", "x + RATE"),
    ("network's constructor", "value = functools.partial(kdlib.models.MLP, [8])", "MLP", "ConvNet"),
    ("object of a method", CALLABLE + "value = Shift(1).move", "Shift(1).move", "Shift(2).move"),
    ("method of an object", CALLABLE + "value = Shift(1).move", ".move", ".__call__"),
    ("object of a builtin", "value = [1].append", "[1]", "[2]"),
    ("attribute of a callable", CALLABLE, "Shift(1)", "Shift(2)"),
    ("method that a call uses", CALLABLE, "x + self.by", "x - self.by"),
    ("class attribute", CALLABLE, "step = 3", "step = 4"),
    ("name of a class", "class A: pass\nvalue = A", "A", "B"),
    ("base class's base", FAMILY, "return 1", "return 0"),
    ("property", FAMILY, "return 2", "return 0"),
    ("static method", FAMILY, "return 3", "return 0"),
    ("class method", FAMILY, "return 4", "return 0"),
    ("cached property", FAMILY, "return 5", "return 0"),
    ("cached method", FAMILY, "return 6", "return 0"),
    ("base", FAMILY, "Leaf(Base)", "Leaf(Root)"),
    ("metaclass", FAMILY, "class Root(metaclass=Meta):", "class Root:"),
    ("method of a metaclass", FAMILY, "return 7", "return 0"),
    ("default of a dataclass", RECORDS, "lr: float = 0.1", "lr: float = 0.2"),
    ("factory of a dataclass", RECORDS, "lambda: [1]", "lambda: [2]"),
    ("value of an enumeration", RECORDS, "FAST = 1", "FAST = 2"),
    ("named tuple", RECORDS, "Pair(1)", "Pair(3)"),
    ("default of a named tuple", RECORDS, "b: int = 2", "b: int = 3"),
    ("slot", RECORDS, "slots.x = 5", "slots.x = 6"),
    ("made dataclass", RECORDS, "int, 7", "int, 8"),
    ("set", "value = {'a', 'b'}", "'b'", "'c'"),
    ("set or frozen set", "value = {1}", "{1}", "frozenset({1})"),
    ("dictionary's value", "value = {'a': 1}", "1", "2"),
    ("dictionary's key", "value = {'1': 1}", "'1'", "1"),
    ("dictionary's tuple key", "value = {(1, Path('a')): 1}", "'a'", "'b'"),
    ("dictionary's silent key", SILENT, "Silent(1)", "Silent(2)"),
    ("order of a list", "value = [[1], [2]]", "[1], [2]", "[2], [1]"),
    ("order of an ordered dictionary", "value = collections.OrderedDict(a=1, b=2)",
     "a=1, b=2", "b=2, a=1"),
    ("factory of a dictionary", "value = collections.defaultdict(list)", "list", "set"),
    ("tuple or list", "value = (1, 2)", "(1, 2)", "[1, 2]"),
    ("nesting", "value = ((1, 2), 3)", "(1, 2), 3", "1, (2, 3)"),
    ("list that holds itself", "value = [1]\nvalue.append(value)", "[1]", "[2]"),
    ("far end of a ring", "a = [1]\na.append(a)\nvalue = ['x', ['y', ['z', a]]]", "[1]", "[2]"),
    ("ring of alike nodes", "a, b, c = [], [], [1]\na.append(b)\nb += [a]\nvalue = a",
     "b += [a]", "b += [c]"),
    ("lone surrogate", r"value = {'\udc80': 1}", "dc80", "dc81"),
    ("type of a number", "value = np.float32(0.1)", "np.float32(0.1)", "0.1"),
    ("truth or one", "value = True", "True", "1"),
    ("text or bytes", "value = 'a'", "'a'", "b'a'"),
    ("type of a tensor", "value = torch.zeros(2)", "2)", "2, dtype=torch.int32)"),
    ("shape of a tensor", "value = torch.zeros(2, 3)", "2, 3", "3, 2"),
    ("number in a tensor", "value = torch.tensor([1.0, 2.0])", "2.0", "2.5"),
    ("bfloat16", "value = torch.tensor([1.0], dtype=torch.bfloat16)", "1.0", "1.5"),
    ("sparse tensor", "value = torch.eye(2).to_sparse()", "eye(2)", "diag(torch.arange(2.0))"),
    ("type of an array", "value = np.zeros(2)", "2)", "2, dtype='i8')"),
    ("shape of an array", "value = np.zeros((2, 3))", "2, 3", "3, 2"),
    ("number in an array", "value = np.array([1.0, 2.0])", "2.0", "2.5"),
    ("array of objects", "value = np.array([1, None, 'a'])", "'a'", "'b'"),
    ("masked array", "value = np.ma.array([1, 2], mask=[0, 1])", "[0, 1]", "[1, 0]"),
    ("tensor or array", "value = torch.zeros(2).numpy()", ".numpy()", ""),
    ("torch's dtype", "value = torch.float32", "float32", "float16"),
    ("torch's device", "value = torch.device('cpu')", "cpu", "meta"),
    ("how an object is built", STORED, "x + 1", "x + 2"),
    ("what an object is built from", STORED, "(1,)", "(2,)"),
    ("what an object stores", STORED, '"a": 1', '"a": 2'),
    ("where an object stores it", STORED, '{"a": 1}, {"b": 2}', '{"b": 2}, {"a": 1}'),
    ("path", "value = Path('a')", "Path('a')", "Path('b')"),
    ("torch's generator", "value = torch.Generator().manual_seed(1)", "seed(1)", "seed(2)"),
    ("numpy's generator", "value = np.random.default_rng(1)", "rng(1)", "rng(2)"),
    ("Python's generator", "value = random.Random(1)", "Random(1)", "Random(2)"),
    ("one source of randomness, or two", SHARED, "'flip': two".replace("'", '"'), '"flip": one'),
    ("dropout", NET, "p=0.1", "p=0.2"),
    ("forward", NET, "* self.scale", "+ self.scale"),
    ("buffer", NET, "tensor(2.0)", "tensor(3.0)"),
    ("attribute of a network", NET, "factor = 3", "factor = 4"),
    ("class attribute of a network", NET, "width = 4", "width = 5"),
    ("weights", NET, "seed(0)", "seed(1)"),
    ("order of modules", NET, "nn.Dropout(p), nn.ReLU()", "nn.ReLU(), nn.Dropout(p)"),
    ("order of named modules", "value = nn.ModuleDict([['a', nn.ReLU()], ['b', nn.ReLU()]])",
     "[['a', nn.ReLU()], ['b', nn.ReLU()]]", "[['b', nn.ReLU()], ['a', nn.ReLU()]]"),
    ("type of a module", NET, "nn.ReLU()", "nn.GELU()"),
    ("forward hook", HOOK, "value.register_forward_hook(hook)", ""),
    ("body of a hook", HOOK, "out * 2", "out * 3"),
    ("user's dictionary of hooks", NET + "value._hooks_by = {1: 1, 'a': 2}", "'a'", "'b'"),
    ("kind of a hook", HOOK, "register_forward_hook", "register_full_backward_hook"),
    ("library network", "value = kdlib.models.MLP([8], num_classes=3)", "3", "4"),
    ("recurrent network", "value = nn.LSTM(2, 2)", "LSTM(2, 2)", "LSTM(2, 2, bias=False)"),
    ("tied weights", TIED, "nn.Parameter(a.weight.detach().clone())", "a.weight"),
    ("parametrized network", "value = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))",
     "weight_norm(nn.Linear(2, 2))", "weight_norm(nn.Linear(2, 2), dim=1)"),
]  # fmt: skip

LONG = (
    "def value(x):\n    pass\n    if x: x = 1\n    return [\n"
    + "".join(f"{i}.5 + x,\n" for i in range(300))
    + "]\n"
)
COPY = HELPERS + "def use(f): return lambda x: f(x) + outer(x)\nvalue = use(outer)\n"
REMOVED = "nn.ReLU().register_forward_hook(print)\nvalue.register_forward_hook(hook)"
EQUAL = [  # what changes, source, what is replaced, by what
    ("nothing", HELPERS, "", ""),
    ("comment", HELPERS, "def outer", "# a comment\ndef outer"),
    ("comment inside", BRANCHES, "    try:", "    # a comment\n\n    try:"),
    ("moved lines", NET, "class Net", "\n\n\n\nclass Net"),
    ("layout", HELPERS, "inner(x) + 1", "(\n    inner(\n        x) + 1)"),
    ("docstring", BRANCHES, "    prepare()", "    'Text.'\n    prepare()"),
    ("docstring of a class", NET, "    width = 4", "    'Text.'\n    width = 4"),
    ("docstring of a nested class", NESTED, "class Local:", "class Local:\n        'Text.'"),
    ("docstring before many constants", LONG, "pass", "'Text.'"),
    ("annotation", HELPERS, "def inner(x)", "def inner(x: float) -> float"),
    ("annotation of a class", CALLABLE, "step = 3", "step = 3\n    kind: int"),
    ("unused global", HELPERS, "RATE = 0.1", "RATE = 0.1\nOTHER = 1"),
    ("unused function", HELPERS, "def outer", "def spare(): pass\ndef outer"),
    ("cell run again", FUNCTION, "def value", FUNCTION + "\ndef value"),
    ("helper defined again", COPY, "value = use", HELPERS[HELPERS.index("def inner") :]
     .replace("def value(x): return outer(x)", "") + "value = use"),
    ("order of a set", "value = {'a', 'b', 'c'}", "'a', 'b', 'c'", "'c', 'b', 'a'"),
    ("order of a set of objects", "value = {Path('a'), Path('b')}",
     "Path('a'), Path('b')", "Path('b'), Path('a')"),
    ("order of attributes", NET, "self.factor = 3", "self.factor = 3"),
    ("sharing of what cannot change", "value = [(1, print), (1, print)]",
     "[(1, print), (1, print)]", "[(1, print)] * 2"),
    ("gradient", "value = torch.ones(2)", "ones(2)", "ones(2, requires_grad=True)"),
    ("frozen network", NET, "value = Net()", "value = Net().requires_grad_(False)"),
    ("evaluation mode", NET, "value = Net()", "value = Net().eval()"),
    ("layout of a tensor", "value = torch.arange(6).reshape(2, 3)",
     "arange(6).reshape(2, 3)", "tensor([[0, 3], [1, 4], [2, 5]]).T"),
    ("channels last", "value = torch.arange(16.0).reshape(1, 2, 2, 4)",
     "2, 4)", "2, 4).to(memory_format=torch.channels_last)"),
    ("view of a larger tensor", "value = torch.arange(3)", "arange(3)", "arange(6)[:3]"),
    ("strided view", "value = torch.tensor([0, 2, 4])", "tensor([0, 2, 4])", "arange(6)[::2]"),
    ("one number of a strided view", "value = torch.tensor([3])", "tensor([3])", "arange(9)[3::6]"),
    ("pending conjugate", "value = torch.tensor([1 + 2j])", "([1 + 2j])", "([1 - 2j]).conj()"),
    ("pending sign", "value = torch.tensor([2.0])", "tensor([2.0])", "tensor([-2j]).conj().imag"),
    ("layout of an array", "value = np.arange(6).reshape(2, 3)",
     "arange(6).reshape(2, 3)", "array([[0, 3], [1, 4], [2, 5]]).T"),
    ("number of a hook", HOOK, "value.register_forward_hook(hook)", REMOVED),
    ("handle of a hook", HOOK + "value = [value, value.register_forward_hook(hook)]",
     "value.register_forward_hook(hook)\n", REMOVED + "\n"),
]  # fmt: skip

REFUSED = [  # what is refused, source, the path, the reason
    ("generator", "g = (i for i in [1])\ndef value(): return g", "value > global g",
     "cannot pickle generator: make it inside the function"),
    ("generator in a closure", "def make(g): return lambda: g\nvalue = make(iter((i for i in [])))",
     "value > closure g", "cannot pickle generator"),
    ("generator as a default", "def value(y, x=(i for i in [])): pass", "value > default x",
     "cannot pickle generator"),
    ("open file", "value = {'log': open('/dev/null')}", "value > key 'log'",
     "cannot pickle TextIOWrapper"),
    ("lock", "class A: pass\nvalue = [A()]\nvalue[0].lock = threading.Lock()",
     "value > item 0 > attribute lock", "cannot pickle lock"),
    ("lock of a network", NET + "value.lock = threading.RLock()", "value > attribute lock",
     "cannot pickle RLock"),
    ("threads", "value = functools.partial(print, concurrent.futures.ThreadPoolExecutor(1))",
     "value > args > item 0", "cannot pickle ThreadPoolExecutor: start it inside"),
    ("processes", "pool = concurrent.futures.ProcessPoolExecutor(1)\nvalue = lambda: pool",
     "value > global pool", "cannot pickle ProcessPoolExecutor: start it inside"),
    ("scripted module", "value = nn.Sequential(torch.jit.script(nn.ReLU()))",
     "value > attribute 0", "a scripted module hides its code"),
    ("scripted function", "f = torch.jit.trace(lambda x: x, torch.ones(1))\nvalue = lambda: f",
     "value > global f", "a scripted module hides its code"),
    ("eval", "def value(): return eval('1')", "value > global eval", "cannot follow what eval"),
    ("exec", "def f(): exec('1')\ndef value(): return f()", "value > global f > global exec",
     "cannot follow what exec"),
    ("globals", "value = lambda: [globals() for i in [1]]", "value > <listcomp> ",
     "global globals: cannot follow what globals"),
    ("locals", "class A:\n    def f(self): return locals()\nvalue = A()",
     "value > class > attribute f > global locals", "cannot follow what locals"),
    ("eval by another name", "run = eval\ndef value(): return run", "value > global run",
     "cannot follow what eval"),
    ("weak reference", "class A: pass\na = A()\nvalue = [weakref.ref(a)]", "value > item 0",
     "cannot pickle ReferenceType"),
    ("tensor without numbers", "value = {1: torch.zeros(2, device='meta')}", "value > key 1",
     "cannot pickle Tensor"),
    ("uninitialized network", "value = nn.LazyLinear(2)", "value > attribute weight",
     "cannot pickle UninitializedParameter"),
    ("error of the user's", "class A:\n    def __getstate__(self): raise KeyError('no')\n"
     "value = [A()]", "value > item 0", "cannot pickle A ('no')"),
]  # fmt: skip

ids = [case[0] for case in DIFFERENT], [case[0] for case in EQUAL], [case[0] for case in REFUSED]
pytestmark = pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated


def run(source, space=None):
    """What a notebook cell binds to `value`."""
    space = {"__name__": "cells"} if space is None else space
    exec(PREAMBLE + source, space)
    return space["value"]


def edit(source, old, new):
    assert old in source
    return source.replace(old, new)


@pytest.mark.parametrize(("_", "source", "old", "new"), DIFFERENT, ids=ids[0])
def test_a_change_changes_the_identity(_, source, old, new):
    before = identity(run(source))
    assert before == identity(run(source)), "the case itself is not stable"
    assert before != identity(run(edit(source, old, new)))


@pytest.mark.parametrize(("_", "source", "old", "new"), EQUAL, ids=ids[1])
def test_what_runs_alike_is_identified_alike(_, source, old, new):
    assert identity(run(source)) == identity(run(edit(source, old, new)))


@pytest.mark.parametrize(("_", "source", "path", "reason"), REFUSED, ids=ids[2])
def test_what_cannot_be_identified_is_refused_with_its_path(_, source, path, reason):
    with pytest.raises(Unidentifiable) as caught:
        identity(run(source), "value")
    assert str(caught.value).startswith(path)
    assert reason in str(caught.value)
    assert len(str(caught.value).rpartition(": ")[2].split()) > 3, "no advice"


def test_the_path_starts_with_the_given_name():
    with pytest.raises(Unidentifiable, match=r"^student > global g: cannot pickle generator: make"):
        identity(run("g = (i for i in [])\ndef value(): return g"), "student")


def all_identities(shift=""):
    """The identity of every case, by its name; `shift` stands before the source."""
    cases = [*DIFFERENT, *EQUAL]
    return {f"{case[0]} {n}": identity(run(shift + case[1])) for n, case in enumerate(cases)}


def test_two_other_processes_with_other_hash_seeds_and_lines_agree(root):
    def start(seed, shift):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        command = [sys.executable, "-W", "ignore", __file__, shift]
        return subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)

    children = [start("1", ""), start("271", "# moved\n\n'text'\n\n")]
    for child in children:
        output, _ = child.communicate(timeout=120)
        assert child.returncode == 0
        assert json.loads(output) == all_identities()


@pytest.mark.parametrize("source", [HELPERS, DECORATED, CALLABLE, NET, HOOK, RECORDS, MUTUAL])
def test_a_copy_sent_to_a_worker_is_identified_alike(source):
    value = run(source)
    assert identity(cloudpickle.loads(cloudpickle.dumps(value))) == identity(value)


def test_a_cell_run_again_over_what_an_older_one_made():
    space = {"__name__": "cells"}
    first = identity(run(NET + "value = [Net, value]", space))
    assert first == identity(run(NET.replace("value = Net()", "value = [Net, value[1]]"), space))
    assert type(space["value"][1]) is not space["Net"], "an old network beside a new class"


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """The identity of `value` in main_.py or pack_/main.py, imported from files written afresh."""
    folders = iter(range(100))

    def forget():
        for name in list(sys.modules):
            if name.partition(".")[0] in {"main_", "helper_", "pack_"}:
                del sys.modules[name]

    def load(sources):
        forget()
        folder = tmp_path / str(next(folders))
        for name, source in sources.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(source)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(folder)
            module = importlib.import_module("main_" if "main_.py" in sources else "pack_.main")
            return identity(module.value)

    yield load
    forget()


HELPER = "RATE = 2\ndef used(x):\n    return x * RATE\ndef spare(x):\n    return x\n"
IMPORTS = {
    "from": "from helper_ import used\ndef value(x): return used(x)",
    "attribute": "import helper_\ndef value(x): return helper_.used(x)",
    "import in another cell": "exec('import helper_', globals())\n"
    "def value(x): return helper_.used(x)",
    "renamed": "import helper_ as h\ndef value(x): return h.used(x)",
    "as a value": "import helper_\ndef value(x): return getattr(helper_, 'used')(x)",
    "inside": "def value(x):\n    import helper_\n    return helper_.used(x)",
    "from inside": "def value(x):\n    from helper_ import used\n    return used(x)",
    "after many names": "import helper_\ndef value(x):\n    if x: "
    + "; ".join(f"a{n}" for n in range(300))
    + "\n    return helper_.used(x)",
    "import after many names": "def value(x):\n    if x: "
    + "; ".join(f"a{n}" for n in range(300))
    + "\n    from helper_ import used\n    return used(x)",
    "base": "import helper_\nclass value:\n    run = staticmethod(helper_.used)",
}


@pytest.mark.parametrize("main", IMPORTS.values(), ids=IMPORTS)
def test_a_users_module_counts_by_what_is_read_of_it(modules, main):
    def found(helper, moved=""):
        return modules({"main_.py": moved + main, "helper_.py": helper})

    first = found(HELPER)
    assert first == found("'Text.'\n# moved\n" + HELPER, "# moved\n\n")
    assert first != found(HELPER.replace("RATE = 2", "RATE = 3"))
    assert first != found(HELPER.replace("x * RATE", "x + RATE"))
    whole = "getattr" in main or "    import helper_" in main
    assert (first != found(HELPER.replace("return x\n", "return -x\n"))) == whole


PACKAGE = {
    "relative": "from .helper import used\ndef value(x): return used(x)",
    "relative inside": "def value(x):\n    from .helper import used\n    return used(x)",
    "submodule inside": "def value(x):\n    from . import helper\n    return helper.used(x)",
    "attributes": "import pack_.helper\ndef value(x): return pack_.helper.used(x)",
    "attributes inside": "def value(x):\n    import pack_.helper\n    return pack_.helper.used(x)",
    "renamed inside": "def value(x):\n    import pack_.helper as h\n    return h.used(x)",
}


@pytest.mark.parametrize("main", PACKAGE.values(), ids=PACKAGE)
def test_a_users_package_is_followed(modules, main):
    def found(helper):
        return modules({"pack_/__init__.py": "", "pack_/main.py": main, "pack_/helper.py": helper})

    first = found(HELPER)
    assert first == found("# moved\n" + HELPER)
    assert first != found(HELPER.replace("RATE = 2", "RATE = 3"))


def test_importing_a_submodule_reads_its_package(modules):
    main = "def value(x):\n    import pack_.helper\n    return pack_.RATE"

    def found(rate):
        return modules({"pack_/__init__.py": rate, "pack_/main.py": main, "pack_/helper.py": ""})

    assert found("RATE = 1") == found("RATE = 1  # moved") != found("RATE = 2")


def test_a_module_that_is_not_there_is_no_error_until_it_is(modules):
    main = (
        "def value(x):\n    try:\n        import helper_\n    except ImportError:\n        return x"
    )
    first = modules({"main_.py": main})
    assert first == modules({"main_.py": main})
    assert first != modules({"main_.py": main, "helper_.py": HELPER})


def test_a_users_file_that_hides_a_standard_module_is_the_users(modules, monkeypatch):
    def found(number):
        monkeypatch.delitem(sys.modules, "this", raising=False)
        main = "import this\ndef value(): return this.f()"
        return modules({"main_.py": main, "this.py": f"def f(): return {number}"})

    assert found(1) == found(1) != found(2)
    del sys.modules["this"]


def test_an_installed_library_counts_by_version_and_this_package_by_name(monkeypatch):
    from kdlib import identity as module

    values = [F.linear, F.relu, torch.relu, nn.Linear, F, np.add, np.random.default_rng]
    before, own = [identity(value) for value in values], identity(models.ResNet)
    real = module._version
    monkeypatch.setattr(module, "_version", lambda t: "0" if t in ("torch", "numpy") else real(t))
    for value, old in zip(values, before, strict=True):
        assert identity(value) != old
    monkeypatch.undo()
    assert [identity(value) for value in values] == before
    assert identity(models.ResNet) == own
    assert torch.__version__.startswith(module._version("torch") or "none")
    assert module._version("kdlib") == ""


def test_library_code_counts_by_name_unless_a_call_made_it(monkeypatch):
    def made(source, file):
        module = types.ModuleType("kdlib.made_")
        monkeypatch.setitem(sys.modules, "kdlib.made_", module)
        exec(compile(source, file, "exec"), vars(module))
        return identity(module.value)

    assert made("def value(): return 1", "made_.py") == made("def value(): return 2", "made_.py")
    assert made("def value(): return 1", "<made>") != made("def value(): return 2", "<made>")
    assert made("value = lambda: 1", "made_.py") != made("value = lambda: 2", "made_.py")
    held = "import threading\ndef value(x=threading.Lock()): pass"
    assert made(held, "made_.py") == made("def value(): pass", "made_.py")
    closed = "def make(x):\n    def inner(): return x\n    return inner\nvalue = make(1)"
    assert made(closed, "made_.py") == made("#\n" + closed, "made_.py")
    assert made(closed, "made_.py") != made(closed.replace("(1)", "(2)"), "made_.py")


def test_a_chain_too_deep_for_recursion_is_identified():
    def chain(end):
        for _ in range(3000):
            end = [end]
        return end

    assert identity(chain(print)) == identity(chain(print)) != identity(chain(len))


def test_identity_leaves_randomness_and_mode_alone():
    network = run(NET)
    state, modes = torch.get_rng_state(), [m.training for m in network.modules()]
    identity(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in network.modules()] == modes


def test_digest_frames_its_parts():
    a, x = torch.arange(6), torch.arange(6.0)
    found = [
        digest(),
        digest(""),
        digest("", ""),
        digest("ab", "c"),
        digest("a", "bc"),
        digest("abc"),
        digest("astr=b"),
        digest("a", "b"),
        digest(b"abc"),
        digest("x" * 100),
        digest("x" * 101),
        digest(a),
        digest(a.numpy()),
        digest(a.int()),
        digest(x),
        digest(x.reshape(2, 3)),
        digest(x.reshape(3, 2)),
        digest(x[:3], x[3:]),
        digest(x[:2], x[2:]),
        digest(x.bfloat16()),
        digest(x.bfloat16() + 1),
        digest(torch.tensor(1.0)),
        digest(torch.tensor([1.0])),
        digest(torch.zeros(0, 2)),
        digest(torch.zeros(2, 0)),
        digest(torch.zeros(2, dtype=torch.bool)),
        digest(torch.zeros(2, dtype=torch.complex64)),
    ]
    assert len(set(found)) == len(found)
    assert all(len(one) == 64 and int(one, 16) >= 0 for one in found)


def test_digest_reads_content_and_not_layout():
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert digest(x) == digest(x.transpose(0, 2).contiguous().transpose(0, 2))
    assert digest(x) == digest(nn.Parameter(x)) == digest(torch.cat([x, x])[2:])
    assert digest(x.numpy()) == digest(np.asfortranarray(x.numpy()))
    assert digest(x) != digest(x + 1)


@pytest.mark.parametrize("part", [1, None, [torch.zeros(2)], ("a",)])
def test_digest_refuses_what_has_no_bytes(part):
    with pytest.raises(TypeError, match="digest takes strings, bytes, tensors and arrays, got"):
        digest("a", part)


def test_digest_refuses_an_array_of_objects():
    with pytest.raises(TypeError, match="use a list"):
        digest(np.array([None, "a"]))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    print(json.dumps(all_identities(sys.argv[1])))
