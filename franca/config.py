"""Configurations of commands: typed defaults <- YAML file <- ``key=value`` on the command line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

Schema = TypeVar("Schema")
YAML_WORDS = ("on", "off", "yes", "no")  # which YAML takes for true and false, in any case
NUMBERS = {"Integer": "a whole number", "Float": "a number"}  # as OmegaConf calls them -> in words


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
            merged = OmegaConf.merge(merged, _read_yaml(Path(file)))
    with _errors_from("command line"):
        merged = OmegaConf.merge(merged, _read_overrides(overrides or []))
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
        wanted = next((f"; give {what}" for kind, what in NUMBERS.items() if said.endswith(f"converted to {kind}")), "")
        raise ConfigError(f"{source}{key}: {said}{wanted}") from None
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source}: can't be read as YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # from a __post_init__: names the key itself
        raise ConfigError(str(error)) from None


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(f"config file {str(path)!r} does not exist; the shipped ones lie in configs/")
    content = OmegaConf.load(path)
    if not isinstance(content, DictConfig):
        raise ConfigError(f"config file {str(path)!r} holds a list; expected keys such as 'steps: 1000'")
    return content


def _read_overrides(overrides: list[str]) -> DictConfig:
    for override in overrides:
        if "=" not in override or override.startswith("-"):
            raise ConfigError(f"command line: {override!r} is not of the form key=value")
    read = OmegaConf.from_dotlist(overrides)
    for key, text in (override.split("=", 1) for override in overrides):
        if text.lower() in YAML_WORDS:  # may be the name of a choice; an option that is a bool takes the word as well
            OmegaConf.update(read, key, text)
    return read
