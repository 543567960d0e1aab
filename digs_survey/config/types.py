"""The kinds of numbers that configurations hold, and the base of their sections."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

__all__ = ["Count", "Fraction", "Interval", "Positive", "Section", "Share"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Interval = tuple[Positive, Positive]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """Frozen, and closed to keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)

    added: ClassVar[frozenset[str]] = frozenset()
    """Keys that a later version added. They are written only where they differ from their default, so that the same
    settings give the same stage key, recipe and card as before."""

    @model_serializer(mode="wrap")
    def _without_added_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = handler(self)
        for name in self.added & written.keys():
            if getattr(self, name) == type(self).model_fields[name].get_default():
                del written[name]
        return written
