"""The base of every section of `params.yaml`: strict, frozen, without defaults."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, cast, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetPydanticSchema,
    field_validator,
)
from pydantic_core import CoreSchema, core_schema


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]  # of a file, in hexadecimal
MOST = 1_000_000_000  # of anything that is counted: steps, images, pixels, codes


class IsPath:
    """Marks a field that names a file or folder, which must be there."""


PathText = Annotated[str, Field(min_length=1), IsPath]  # "" would be a folder


class Config(BaseModel):
    """A section of `params.yaml`, or a part of one.

    Unknown keys, missing keys and values of another type are refused (`1` is a valid float; `'1'`,
    infinity and nan are not), and a config cannot be changed once it is made. Fields have no
    defaults, so `params.yaml` shows every value that shapes a result. No count is over `MOST`; what
    a machine's memory cannot hold is refused by `stages.memory`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _refuse_absurd(cls, value: object, info: Any) -> object:
        if isinstance(value, int) and abs(value) > MOST and info.field_name != "seed":
            raise ValueError(f"must be at most {MOST:,}")
        return value


def named_paths(config: Config, key: str) -> dict[str, str]:
    """Return the files and folders that a section names, by their keys in `params.yaml`.

    Args:
        config: The section, or a part of one.
        key: Its own key.
    """
    found: dict[str, str] = {}
    for name, field in type(config).model_fields.items():
        value: object = getattr(config, name)
        if isinstance(value, Config):
            found |= named_paths(value, f"{key}.{name}")
        kinds = [field, *get_args(field.annotation)]  # `PathText`, or `PathText | None`
        marks = [mark for kind in kinds for mark in getattr(kind, "metadata", ())]
        marks += [mark for kind in kinds for mark in getattr(kind, "__metadata__", ())]
        if isinstance(value, str) and IsPath in marks:
            found[f"{key}.{name}"] = value
    return found


C = TypeVar("C", bound=Config)


def cut_down(config: C, kind: type[C]) -> C:
    """Return a config as its base class, without the fields that the subclass adds."""
    values: dict[str, Any] = {name: getattr(config, name) for name in kind.model_fields}
    return kind(**values)


def choice(sections: Mapping[str, Any]) -> GetPydanticSchema:
    """Return a type by which pydantic reads one of several sections, told apart by `kind`.

    Args:
        sections: For each kind its config class, or a union of several with a discriminator.
    """

    def schema(_: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(section) for name, section in sections.items()}
        return core_schema.tagged_union_schema(choices, discriminator="kind")

    return GetPydanticSchema(schema)


def name_or_fields(value: object) -> str:
    """Return which member of a union a value is, as pydantic's discriminator.

    The members are a name and a mapping: `size: base`, or a size with all its numbers.
    """
    return "name" if isinstance(value, str) else "fields"


def kind(value: object) -> str | None:
    """Return which member of a union a value is, as pydantic's discriminator.

    The members are mappings with the key `kind` and plain names, such as `none`.
    """
    if isinstance(value, Mapping):
        return cast(Mapping[str, str | None], value).get("kind")
    return str(getattr(value, "kind", value))
