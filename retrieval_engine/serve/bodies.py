"""Bodies of requests into their models: JSON, or a form with files."""

import json
from typing import Any, TypeVar, get_origin

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from retrieval_engine.serve.refusals import Refused
from retrieval_engine.serve.schema import Body, MixPart

B = TypeVar("B", bound=Body)
_MOST_FILES, _MOST_FIELDS, _FIELD_BYTES = 64, 256, 1 << 20


async def read_body(request: Request, model: type[B]) -> tuple[B, list[str]]:
    """The body of a request.

    Returns:
        It, and the names of the files that came with a form, in their order.

    Raises:
        Refused: it is neither JSON nor a form, or not what the model says.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "application/json":
            return model.model_validate_json(await request.body()), []
        if kind == "multipart/form-data":
            values, names = await _form(request, model)
            return model.model_validate(values), names
    except ValidationError as error:
        raise Refused(422, "invalid", _line(error, model), hint="see /docs") from None
    raise Refused(
        415,
        "unsupported_type",
        f"the body is {kind[:80] or 'of no type'!r}; it must be application/json or "
        "multipart/form-data",
    )


async def _form(request: Request, model: type[Body]) -> tuple[dict[str, Any], list[str]]:
    try:
        form = await request.form(
            max_files=_MOST_FILES, max_fields=_MOST_FIELDS, max_part_size=_FIELD_BYTES
        )
    except HTTPException as error:
        raise Refused(400, "bad_form", str(error.detail)[:200]) from None
    except (KeyError, ValueError, LookupError) as error:  # of charsets and headers it cannot read
        raise Refused(400, "bad_form", "the form cannot be read") from error
    values: dict[str, Any] = {}
    names: list[str] = []
    async with _closing(form):
        for name in dict.fromkeys(key for key, _ in form.multi_items()):
            given: list[Any] = []
            for value in form.getlist(name):
                if isinstance(value, UploadFile):
                    given.append(await value.read())
                    names.append((value.filename or "")[:200])
                else:
                    given.append(value)
            values[name] = _value(name, given, model)
    return values, names


class _closing:
    """Closes a form's files at the end, which may lie on the disk."""

    def __init__(self, form: Any) -> None:
        self._form = form

    async def __aenter__(self) -> None:
        """Nothing."""

    async def __aexit__(self, *error: object) -> None:
        """Close them."""
        await self._form.close()


def _value(name: str, given: list[Any], model: type[Body]) -> Any:
    """What a form's field stands for: a list where the model has one; `mix` is JSON."""
    field = model.model_fields.get(name)
    if field is None or get_origin(field.annotation) is not list:
        if len(given) > 1:
            raise Refused(422, "invalid", f"`{name[:80]}` is there {len(given)} times")
        return given[0]
    if name != "mix":
        return given
    try:
        return [part for value in given for part in json.loads(value)]
    except (ValueError, TypeError, RecursionError) as error:
        raise Refused(422, "invalid", "`mix` is no JSON list") from error


def _line(error: ValidationError, model: type[Body]) -> str:
    """The first three faults, without the values that were sent."""
    said = []
    for fault in error.errors(include_input=False, include_url=False, include_context=False)[:3]:
        place = ".".join(str(part)[:80] for part in fault["loc"])
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            owner = (
                MixPart if len(fault["loc"]) > 1 else model
            )  # `mix` alone holds fields of its own
            known = ", ".join(f"`{name}`" for name in owner.model_fields)
            text = f"there is no such field; there are {known}"
        said.append(f"`{place}`: {text}" if place else text)
    return "; ".join(said)
