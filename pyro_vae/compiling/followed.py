"""The graphs of a program that may change between calls: one for each signature and each state of the program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyro_vae.compiling.checked import EVERY_OF_SMALL
from pyro_vae.compiling.constants import Changes, Patience, WatchedConstants, in_words
from pyro_vae.compiling.loss import STORE
from pyro_vae.compiling.private import stored_parameters
from pyro_vae.compiling.untraceable import IN_PLACE, NOT_AS_NOW, OR_EAGERLY, StaleGraph, Untraceable
from pyro_vae.errors import warn
from pyro_vae.printing import listed


@dataclass
class TracedState:
    """The numbers and flags of a program, by name, and the graphs traced while it held them."""

    values: dict[str, Any]
    graphs: dict[Any, Any] = field(default_factory=dict)


class FollowedGraphs:
    """Graphs looked up by a key, and by the numbers and flags that the program holds.

    Args:
        roots: all objects that the program refers to, by name.
        most: the largest number of keys.
        instead: what to do where nothing can be compiled, for messages.

    >>> from types import SimpleNamespace
    >>> graphs = FollowedGraphs({}, 1, "run eagerly")
    >>> graphs.follow()
    >>> first = SimpleNamespace(is_stale=lambda: False)
    >>> graphs.get("key", lambda: first) is graphs.get("key", lambda: None)
    True
    """

    def __init__(self, roots: Mapping[str, Any], most: int, instead: str):
        self.watched, self.patience = WatchedConstants(roots), Patience()
        self.most, self.instead = most, instead
        self.doubted = False  # whether a graph was found not to be the program's any more
        self._begin()

    def _begin(self) -> None:
        self.state = TracedState(self.watched.values)
        self.states = [self.state]

    def settle(self) -> None:
        """Take what an eager step changed, such as parameters that it made, as part of a state without graphs."""
        if not self.state.graphs:
            self.watched.look()
            self.state.values = self.watched.values

    def doubt(self, found: str) -> None:
        """Discard all graphs, as one of them differs from the program, and warn; ``found`` says how it differs.

        Raises ``Untraceable`` the second time.
        """
        self._begin()
        unwatched = self.watched.unwatched()[:3]
        reason = NOT_AS_NOW.format(found, f", maybe within {listed(unwatched)}" if unwatched else "")
        if self.doubted:
            raise Untraceable(f"{reason}. As this is the second time, it is not compiled again; {self.instead}")
        self.doubted = True
        warn(
            f"{reason}. It is compiled anew; up to {EVERY_OF_SMALL} results since that change may be those of the old "
            f"value. To be sure, {IN_PLACE}; or {self.instead}",
            StaleGraph,
        )

    def follow(self) -> None:
        """Switch to the graphs of the program's present values. Raises ``Untraceable`` if they change too often."""
        changes = self.changes_of_store() or self.watched.changes()
        if changes:
            self._switch(changes)
        else:
            self.patience.used()

    def changes_of_store(self) -> Changes:
        """Return what changed because Pyro's store was cleared or replaced, and watch the present one."""
        known = self.watched.roots.get(STORE)
        if known is None or known is stored_parameters():
            return {}
        before = self.watched.values
        self.watched.roots = {**self.watched.roots, STORE: stored_parameters()}
        self.watched.look()
        return self.watched.since(before)

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the graph of this key; it is made if it is new or stale. Raises ``Untraceable`` beyond the limit."""
        known = self.state.graphs.get(key)
        if known is not None and known.is_stale():
            self._again("the values of a tensor decide what the program does")
            del self.state.graphs[key]
        if key not in self.state.graphs:
            if len(self.state.graphs) >= self.most:
                raise Untraceable(
                    f"{self.most} graphs were compiled for different arguments, and these would need another one: "
                    f"{key}. Give numbers that change as tensors, cut or pad tensors to a few shapes, or {self.instead}"
                )
            try:
                self.state.graphs[key] = make()
            except Untraceable as error:
                raise Untraceable(str(error).replace(OR_EAGERLY, f"or {self.instead}")) from error.__cause__
            self.state.values = self.watched.values
        return self.state.graphs[key]

    def _switch(self, changes: Changes) -> None:
        """Take the graphs for the present values; the program may have had them before, as for a mode."""
        known = [state for state in self.states if not self.watched.since(state.values)]
        if not known:
            self.states.append(TracedState(self.watched.values))
        self.state = known[0] if known else self.states[-1]
        if not known:
            self._again(in_words(changes))

    def _again(self, what: str) -> None:
        """Count a change. Raises ``Untraceable`` if it is one too many."""
        if self.patience.ends():
            raise Untraceable(
                f"{what}: it changes from call to call, and would have to be traced anew each time; {IN_PLACE}, or "
                f"{self.instead}"
            )
