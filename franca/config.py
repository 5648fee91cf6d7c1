"""Configurations of commands: typed defaults <- YAML file <- ``key=value`` on the command line."""

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

Schema = TypeVar("Schema")
BOOLEAN, INTEGER, FLOAT, TIMESTAMP = (f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp"))
# what OmegaConf says -> what to give
WANTED = {
    "converted to Integer": "a whole number",
    "converted to Float": "a number",
    "not a ListConfig": "a list, such as [a, b]",
    "'None' for field of type 'str'": 'text, or "" for an empty one',
}


class ConfigError(ValueError):
    """A configuration that can't be run; the message names the key, its value and what to do."""


def read_config(
    schema: type[Schema],
    file: str | Path | None = None,
    overrides: list[str] | None = None,
    preset: Mapping[str, Any] | None = None,
) -> Schema:
    """Typed defaults of the dataclass ``schema`` <- ``preset`` <- ``file`` (YAML) <- ``overrides`` (``key=value``).

    Raises:
        ConfigError: unknown key (the nearest one is named), wrong type, value out of range, missing file.
    """
    merged = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(dict(preset or {})))
    if file is not None:
        with _errors_from(str(file)):
            merged = OmegaConf.merge(merged, read_yaml(Path(file)))
    with _errors_from("command line"):
        merged = OmegaConf.merge(merged, _read_overrides(schema, overrides or []))
    with _errors_from("configuration"):
        config = OmegaConf.to_object(merged)
    assert isinstance(config, schema)
    return config


def dump_config(config: Any) -> str:
    """The resolved configuration as YAML; ``read_config`` of a file that holds it gives it back."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


@contextmanager
def _errors_from(source: str) -> Iterator[None]:
    """Whatever is wrong becomes a ConfigError that says where it came from."""
    try:
        yield
    except ConfigError:
        raise
    except OmegaConfBaseException as error:
        key = f" (key {error.full_key})" if error.full_key else ""
        said = str(error).splitlines()[0]
        wanted = next((f"; give {what}" for words, what in WANTED.items() if words in said), "")
        raise ConfigError(f"{source}{key}: {said}{wanted}") from None
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: can't be read as YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # from a __post_init__: names the key itself
        raise ConfigError(str(error)) from None


def read_yaml(path: Path) -> DictConfig:
    """The keys and values of a file, whatever they configure. Raises ConfigError."""
    if not path.is_file():
        beside = [str(path.parent / other.name) for other in path.parent.glob("*.yaml")]
        nearest = difflib.get_close_matches(str(path), beside, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ConfigError(f"config file {str(path)!r} does not exist{hint}; the shipped ones lie in configs/")
    with _errors_from(str(path)):
        content = _Loader(path.read_text(encoding="utf-8")).get_single_data()
    if not isinstance(content, dict | None):
        kind = "a list" if isinstance(content, list) else repr(content)
        raise ConfigError(f"config file {str(path)!r} holds {kind}; expected keys such as 'steps: 1000'")
    return OmegaConf.create(content or {})


def _read_overrides(schema: type, overrides: list[str]) -> DictConfig:
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise ConfigError(f"command line: {override!r} is not of the form key=value")
    read = OmegaConf.create({})
    for key, text in (override.split("=", 1) for override in overrides):
        OmegaConf.update(read, key, _read_value(key, text, _type_of(schema, key)))
    return read


def _read_value(key: str, text: str, kind: Any) -> Any:
    """What ``key=text`` gives: text itself where the option is one, unless it is quoted or null; else what YAML reads.

    Raises ConfigError where text is empty; in quotes it may be.
    """
    if kind is str and not text.strip():
        raise ConfigError(f"command line: {key}={text} says nothing; give text, or '{key}=\"\"' for an empty one")
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    as_it_is = kind in (str, str | None) and not quoted and text not in ("", "~", "null")
    return text if as_it_is else _Loader(text).get_single_data()


def _type_of(schema: Any, key: str) -> Any:
    """The type of the option that a dotted key names; None where there is no such key."""
    for name in key.split("."):
        if get_origin(schema) is dict:
            schema = get_args(schema)[1]
        else:
            schema = get_type_hints(schema).get(name) if is_dataclass(schema) else None
    return schema


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are booleans, only decimals are numbers, and no key stands twice in a mapping.

    on, off, yes and no stay words, for they name choices (an option that is a boolean takes them too); so do dates.
    1e-3 is a number; 1:30, 1_000, 007 and 0x10 are words (an option that is a number takes the second and third too).
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (BOOLEAN, INTEGER, FLOAT, TIMESTAMP)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As SafeLoader does. Raises YAMLError for a key that stands twice."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"found duplicate key {key}", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(BOOLEAN, re.compile("(true|false)$", re.IGNORECASE), list("tTfF"))
_Loader.add_implicit_resolver(INTEGER, re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    FLOAT,
    re.compile(r"[-+]?(([0-9]+\.[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|[0-9]+e[-+]?[0-9]+|\.inf)$|\.nan$", re.IGNORECASE),
    list("-+.0123456789"),
)
