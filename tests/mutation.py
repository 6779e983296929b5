"""Break the state machine on purpose, one small change at a time, and see whether the tests notice: `make mutation`.

Each mutant changes one operator, comparison, constant or condition, or leaves one statement out. It is killed when a
test of tests/core fails, or when they do not end in time. What survives is printed: a test is missing there, or the
change makes no difference (KNOWN says why). In full it takes some 20 minutes on two cores.

A mutant is a forked process in which the mutated module is imported in place of the real one, so no file is changed.
"""

import argparse
import ast
import importlib.abc
import importlib.machinery
import os
import random
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import hypothesis.strategies
import msgspec
import pytest
import ulid

LOADED = (hypothesis, msgspec, ulid)  # once, before the processes part

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src" / "saga_core"
MODULES = ("machine", "moves", "shortcut", "operations", "draft", "graph")
TESTS = (
    "language",
    "machine",
    "graph",
    "plan",
    "codec",
    "history",
    "describe",
    "purity",
    "machine_properties",
)
OPTIONS = (
    *("-qq", "-W", "ignore", "--noconftest", "--assert=plain", "--hypothesis-seed=0"),
    *("-p", "_hypothesis_pytestplugin", "-p", "pytest_timeout", "-p", "anyio"),
    *("-p", "no:cacheprovider", "-p", "no:unraisableexception", "-p", "no:threadexception"),
)
SECONDS = 60  # of the processor, so that no mutant dies of a busy machine; the tests take about 15
MEMORY = 2 * 1024**3  # bytes; a change can make a loop endless, and a list with it
GOAL = 0.95

KNOWN: dict[str, str] = {
    "moves: record.state is STARTED and record.expires is not None and (record.expires <= draft.at) → "
    "record.expires is not None and record.expires <= draft.at": "only what is started has a time for all attempts",
    "moves: record.state is STARTED and record.expires is not None → record.expires is not None": "likewise",
    "draft: record.until is not None and record.until <= draft.at → record.until is not None": "it is looked at again",
    "operations: record.state is STARTED and record.waiting → record.waiting": "no compensation waits in these states",
    "moves: record.waiting and (not draft.suspended) and (record.until is not None) and (record.until <= draft.at) → "
    "not draft.suspended and record.until is not None and (record.until <= draft.at)": "what is out timed out before",
    "moves: draft.state is SAGA_STARTED and (not (draft.running or draft.ready)) → "
    "not (draft.running or draft.ready)": "no rule that is applied leaves a saga at rest",
    "moves: record.waiting and (not draft.suspended) and (record.until is not None) and (record.until <= draft.at) → "
    "record.waiting and (not draft.suspended) and (record.until <= draft.at)": "what waits does until some moment",
    "moves: error is None or not error.retryable → not error.retryable": "what is tried again has failed",
    "moves: 0 → 1 in if step.timeout is None and step.total_timeout is None and record.met == 0:": (
        "the record of a first attempt, which is at hand, is made anew"
    ),
    "draft: step.compensation or '' → step.compensation": "what has no compensation is not undone",
    "machine: saga.plan.options.start_at or inf → saga.plan.options.start_at": (
        "in a saga that is not suspended a step is only kept from its start by the saga's"
    ),
    "machine: return None → nothing in return None": "nothing in a saga at rest has a time",
    "machine: 0 → 1 in saga = Saga(plan, SAGA_STARTED, 0, blank, plan.created_at, ready=roots, wakes=never)": (
        "it becomes a draft, which has no revision"
    ),
    "moves: record.until is None or record.until > draft.at → record.until is None": "only what is due is looked at",
    "graph: 32 → 33 in CHUNK = 32": "how long the tuples of records are is a matter of speed",
    "graph: True → False in for position, (name, wanted) in enumerate(zip(names, depends_on, strict=True)):": (
        "the two are of one length"
    ),
    "graph: 128 → 129": "how many graphs are remembered is a matter of memory",
    "graph: True → False in for position, (name, waiting) in enumerate(zip(names, dependents, strict=True)):": (
        "the two are of one length"
    ),
    "moves: position == draft.plan.pivot and draft.state is SAGA_COMPENSATING → position == draft.plan.pivot": (
        "a saga whose pivot ends is started or compensating, and is started after it either way"
    ),
}
"""Why a surviving change makes no difference, by module and text of the change, and its line where that says little."""

PAIRS = [
    *((ast.Eq, ast.NotEq), (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    *((ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.FloorDiv), (ast.BitOr, ast.BitAnd)),
    *((ast.LShift, ast.RShift), (ast.Mod, ast.Mult), (ast.BitXor, ast.BitOr)),
]
SWAPS: dict[type[ast.AST], type[ast.AST]] = {**dict(PAIRS), **{other: one for one, other in PAIRS[:-2]}}


class Mutant(NamedTuple):
    """One change: the line, the text there before and after it, its number in its module and the whole line."""

    module: str
    number: int
    line: int
    before: str
    after: str
    source: str

    @property
    def known(self) -> bool:
        """Whether it makes no difference; what is but a constant is known together with its line."""
        change = f"{self.module}: {self.before} → {self.after}"
        return change in KNOWN or f"{change} in {self.source}" in KNOWN

    def __str__(self) -> str:
        return f"{self.module}.py:{self.line}: {self.before}  →  {self.after}"


class Mutator(ast.NodeTransformer):
    """Go through a module in a fixed order, note every change that could be made, and make the wanted one."""

    def __init__(self, module: str, source: str, wanted: int | None = None) -> None:
        self.module, self.lines, self.wanted = module, source.splitlines(), wanted
        self.found: list[Mutant] = []

    def offer(self, node: ast.AST, changed: ast.AST, shown: ast.AST | None = None) -> ast.AST:
        before = ast.unparse(shown or node).split("\n")[0]
        after = "nothing" if isinstance(changed, ast.Pass) else ast.unparse(changed).split("\n")[0]
        number, line = len(self.found), node.lineno  # type: ignore[attr-defined]
        source = self.lines[line - 1].strip()
        self.found.append(Mutant(self.module, number, line, before, after, source))
        return ast.copy_location(changed, node) if number == self.wanted else node

    # Expressions

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        for place, operator in enumerate(node.ops):
            if type(operator) in SWAPS:
                ops = [*node.ops[:place], SWAPS[type(operator)](), *node.ops[place + 1 :]]
                node = self.offer(node, ast.Compare(node.left, ops, node.comparators))  # type: ignore[assignment]
        for place, value in enumerate(node.comparators):
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                others = [*node.comparators[:place], ast.Constant("another"), *node.comparators[place + 1 :]]
                node = self.offer(node, ast.Compare(node.left, node.ops, others))  # type: ignore[assignment]
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        changed = self.offer(node, ast.BoolOp(SWAPS[type(node.op)](), node.values))  # type: ignore[arg-type]
        if changed is not node:
            return changed
        for place in range(len(node.values)):
            rest = node.values[:place] + node.values[place + 1 :]
            changed = self.offer(node, rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest))
            if changed is not node:
                return changed
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return self.offer(node, ast.BinOp(node.left, SWAPS[type(node.op)](), node.right))  # type: ignore[arg-type]

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.operand, ast.Constant):
            return node
        self.generic_visit(node)
        return self.offer(node, node.operand)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool):
            return self.offer(node, ast.Constant(not node.value))
        if isinstance(node.value, int):
            return self.offer(node, ast.Constant(node.value + 1))
        return node

    # Statements

    def visit_If(self, node: ast.If | ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return self.offer(node, type(node)(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse))  # type: ignore

    visit_IfExp = visit_If

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant):
            return node
        return self._without(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        attribute = all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
        return self._without(node) if attribute else self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        swapped = ast.AugAssign(node.target, SWAPS[type(node.op)](), node.value)  # type: ignore[arg-type]
        changed = self.offer(node, swapped)
        return self.offer(node, ast.Pass()) if changed is node else changed

    def visit_Return(self, node: ast.Return) -> ast.AST:
        self.generic_visit(node)
        value = node.value.value if isinstance(node.value, ast.Constant) else node.value
        if value is False:
            return node  # None is as good
        return self.offer(node, ast.Pass() if value is None else ast.Return(ast.Constant(None)))

    def visit_Continue(self, node: ast.Continue) -> ast.AST:
        return self.offer(node, ast.Pass())

    def _without(self, node: ast.Expr | ast.Assign) -> ast.AST:
        self.generic_visit(node)
        return self.offer(node, ast.Pass())

    # Left as they are

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        last = node.body[-1]
        implied = (
            isinstance(last, ast.Return) and isinstance(last.value, ast.Constant) and last.value.value is None
        )
        node.body = [self.visit(statement) for statement in (node.body[:-1] if implied else node.body)]
        node.body += [last] if implied else []
        return node

    visit_ClassDef = visit_FunctionDef

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None and not isinstance(node.value, ast.Constant):
            node.value = self.visit(node.value)
        return node

    def leave(self, node: ast.AST) -> ast.AST:
        return node

    # What type checkers and people read is not what the machine does.
    visit_Assert = visit_ImportFrom = visit_JoinedStr = leave


def mutants(module: str) -> list[Mutant]:
    source = (SOURCE / f"{module}.py").read_text()
    mutator = Mutator(module, source)
    mutator.visit(ast.parse(source))
    return mutator.found


class Instead(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import a mutant in place of its module."""

    def __init__(self, mutant: Mutant) -> None:
        path = SOURCE / f"{mutant.module}.py"
        source = path.read_text()
        tree = Mutator(mutant.module, source, mutant.number).visit(ast.parse(source))
        self.name = f"saga_core.{mutant.module}"
        self.code = compile(ast.fix_missing_locations(tree), path, "exec")

    def find_spec(self, name: str, *_: object) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name == self.name else None

    def exec_module(self, module: ModuleType) -> None:
        exec(self.code, module.__dict__)


class Verdict:
    """A plugin of pytest that ends the process when a test has failed: nothing more is to be learnt from it."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(f"{report.nodeid} fails:\n{report.longreprtext}", flush=True)
            os._exit(1)


def fork_tests(mutant: Mutant | None) -> int:
    """Run the tests in a process of their own, which ends with 0 when all pass, and return its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        if mutant is not None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            sys.meta_path.insert(0, Instead(mutant))
        sys.path.insert(0, str(SOURCE.parent))
        # Of plugins that pytest finds by itself it loads whole distributions its own way, ours too, and no mutant.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        # Nobody reads how a test failed, so nothing is rewritten to tell it, and no failing example is made smaller.
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutants", database=None, phases=phases)
        hypothesis.settings.load_profile("mutants")
        failed = pytest.main(
            [*OPTIONS, *(str(HERE / "core" / f"test_{name}.py") for name in TESTS)], [Verdict()]
        )
        os._exit(1 if failed else 0)
    except BaseException as error:
        print(f"{error!r}", flush=True)
        os._exit(1)


def survivors(chosen: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, bool]]:
    """Try mutants side by side; yield each as it ends, with whether it survived."""
    todo = chosen[::-1]
    running: dict[int, Mutant] = {}
    while todo or running:
        while todo and len(running) < jobs:
            mutant = todo.pop()
            running[fork_tests(mutant)] = mutant
        pid, status = os.wait()
        yield running.pop(pid), status == 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", default=MODULES, metavar="module")
    parser.add_argument("--sample", type=int, help="try so many mutants, chosen by chance")
    parser.add_argument("--seed", type=int, default=0, help="another chance")
    parser.add_argument("--at", type=int, help="only those of one line")
    parser.add_argument("--jobs", type=int, default=2, help="so many processes")
    given = parser.parse_args()
    chosen = [mutant for module in given.modules for mutant in mutants(module)]
    if given.at is not None:
        chosen = [mutant for mutant in chosen if mutant.line == given.at]
    random.Random(given.seed).shuffle(chosen)
    chosen = chosen[: given.sample]
    if os.waitpid(fork_tests(None), 0)[1]:
        print("The tests fail without any mutation; mend that first.")
        return 2
    left, known, began = [], 0, time.monotonic()
    for done, (mutant, survived) in enumerate(survivors(chosen, given.jobs), 1):
        if survived and mutant.known:
            known += 1
        elif survived:
            left.append(mutant)
            print(f"survived: {mutant}", flush=True)
        if done % 50 == 0:
            print(f"{done} of {len(chosen)} in {time.monotonic() - began:.0f} s", flush=True)
    killed = len(chosen) - known - len(left)
    score = killed / max(len(chosen) - known, 1)
    print(
        f"{len(chosen)} mutants: {killed} killed, {len(left)} survived ({score:.1%}), {known} make no difference"
    )
    return 0 if score >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
