"""Named things that a config can choose: models, backbones, attention, losses, samplers, data."""

from collections.abc import Callable
from typing import TypeVar

from jaxattn.errors import unknown

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dict of named entries; looking up an unknown name raises an `InputError` with a suggestion.

    ::

        LOSSES: Registry[Callable] = Registry("loss.name")

        @LOSSES.register("focal")
        def focal_loss(...): ...
    """

    def __init__(self, field: str):
        """Makes an empty registry.

        Args:
            field: The config field that chooses an entry; errors name it.
        """
        super().__init__()
        self.field = field

    def register(self, name: str) -> Callable[[T], T]:
        """Decorates an entry, or is called with it: ``register("x")(entry)``.

        Raises:
            ValueError: The name is taken.
        """

        def add(entry: T) -> T:
            if name in self:
                raise ValueError(f"{self.field}: {name!r} is already registered")
            self[name] = entry
            return entry

        return add

    def __missing__(self, name: str) -> T:
        raise unknown(self.field, name, self)
