"""Mutants of a module: one operator, comparison, number, truth value or loop changed, by Cosmic Ray's operators."""

import ast
import bisect
import itertools
import random
from collections import defaultdict
from dataclasses import dataclass

UNUSED = ("VariableReplacer", "VariableInserter", "RemoveDecorator")  # the first two need names
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow")
LOGICAL = ("Is", "IsNot")  # `==` for `is` is no fault


@dataclass(frozen=True)
class Mutant:
    """A module's source with one change; ``line`` counts from 1, ``before`` and ``after`` are that line."""

    line: int
    before: str
    after: str
    source: str

    @property
    def words(self) -> str:
        """The change in one line, without where it is."""
        return f"{self.before}  ->  {self.after}"


def drawn(source: str, count: int, random_numbers: random.Random) -> list[Mutant]:
    """Return at most ``count`` mutants of different lines; each line, place in it and change is equally likely."""
    lines = _changes(source)
    chosen = sorted(random_numbers.sample(sorted(lines), min(count, len(lines))))
    places = [random_numbers.choice(list(lines[line].values())) for line in chosen]
    mutants = [_mutant(source, line, *random_numbers.choice(changes)) for line, changes in zip(chosen, places)]
    return [mutant for mutant in mutants if _is_python(mutant.source)]


def _changes(source: str) -> dict[int, dict[int, list]]:
    """Return for each line and column that may be changed the operators and their occurrences."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    spans, nodes, lines = _Spans(source), list(ast_nodes(get_ast(source))), defaultdict(lambda: defaultdict(list))
    for name in filter(_sensible, operator_names()):
        operator, counter = get_operator(name)(), itertools.count()
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                occurrence = next(counter)
                if start in spans:
                    lines[start[0]][start[1]].append((operator, occurrence))
    return lines


def _sensible(name: str) -> bool:
    """Return whether an operator makes faults that someone might write."""
    kind, _, change = name.removeprefix("core/").partition("Operator_")
    before, _, after = change.partition("_")
    if kind == "ReplaceBinary":
        return (before in ARITHMETIC) == (after in ARITHMETIC)
    if kind == "ReplaceComparison":
        return (before in LOGICAL) == (after in LOGICAL)
    return kind not in UNUSED


def _mutant(source: str, line: int, operator, occurrence: int) -> Mutant:
    from cosmic_ray.mutating import mutate_code

    after = mutate_code(source, operator, occurrence)
    return Mutant(line, *(text.splitlines()[line - 1].strip() for text in (source, after)), after)


def _is_python(source: str) -> bool:
    """Return whether a source can be read: an operator may be the bare star of a signature."""
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


class _Spans:
    """The places of a source that run and are neither annotation, message, text nor import."""

    def __init__(self, source: str):
        self._lines = source.splitlines()
        self._left_out: list[tuple] = []
        self._visit(ast.parse(source))
        self._left_out.sort()

    def __contains__(self, place: tuple[int, int]) -> bool:
        index = bisect.bisect_right(self._left_out, (place, (10**9, 0)))
        return all(not start <= place < end for start, end in self._left_out[:index])

    def _visit(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if not isinstance(child, ast.AST):
                    continue
                unread = isinstance(child, (ast.Raise, ast.JoinedStr, ast.Import)) or _never_runs(child)
                if name in ("annotation", "returns") or unread:
                    self._left_out.append((self._place(child, ""), self._place(child, "end_")))
                else:
                    self._visit(child)

    def _place(self, node: ast.AST, end: str) -> tuple[int, int]:
        """Return a place in characters: that of ast is in bytes."""
        line, column = getattr(node, f"{end}lineno"), getattr(node, f"{end}col_offset")
        return line, len(self._lines[line - 1].encode()[:column].decode())


def _never_runs(node: ast.AST) -> bool:
    """Return whether a node is read by type checkers alone: an overload, or imports for them."""
    if isinstance(node, ast.If):
        return getattr(node.test, "id", "") == "TYPE_CHECKING"
    return any(getattr(each, "id", "") == "overload" for each in getattr(node, "decorator_list", ()))
