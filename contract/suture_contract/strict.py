"""Numbers that people write into a file are numbers there: `port = "9108"` is a slip, not 9108."""

from __future__ import annotations

from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationInfo, field_validator

_NUMBERS = frozenset({int, float, bool})


class StrictNumbers(BaseModel):
    """A model whose fields of numbers, and of yes or no, take neither a text nor each other."""

    @field_validator("*", mode="before")
    @classmethod
    def _is_written_as_what_it_is(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation) - {type(None)}
        if not kinds or not kinds <= _NUMBERS:
            return value
        for item in _items(value):
            if isinstance(item, str):
                raise ValueError("true or false is wanted" if kinds == {bool} else "a number is wanted, without quotes")
            if isinstance(item, bool) and bool not in kinds:
                raise ValueError("a number is wanted, not true or false")
            if isinstance(item, int | float) and kinds == {bool} and not isinstance(item, bool):
                raise ValueError("true or false is wanted")
        return value


def _kinds(annotation: Any) -> frozenset[Any]:
    """Return the types at the ends of an annotation, such as int of `Annotated[tuple[int, ...], ...] | None`."""
    if hasattr(annotation, "__value__"):
        return _kinds(annotation.__value__)
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _kinds(arguments[0])
    if not arguments or get_origin(annotation) is dict:
        return frozenset({annotation})
    return frozenset().union(*(_kinds(argument) for argument in arguments if argument is not Ellipsis))


def _items(value: Any) -> list[Any]:
    return [item for entry in value for item in _items(entry)] if isinstance(value, list | tuple) else [value]


__all__ = ["StrictNumbers"]
