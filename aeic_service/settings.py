"""What both services' settings share: the environment, a TOML file, and unknown variables that stop the start."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

_FILE = "_FILE"
_MAX_SECRET = 1 << 20


class ServiceSettings(BaseSettings):
    """Settings from the arguments, then the environment, then the TOML file that ``PREFIX + CONFIG`` names (keys
    without the prefix, in lower case), then the defaults. An unknown key or an impossible value is an error.

    For a secret ``NAME``, the variable ``NAME_FILE`` names a file that holds it, as containers and systemd pass
    secrets. The file is read once, when the settings are read."""

    model_config = SettingsConfigDict(extra="forbid", env_ignore_empty=True)
    prefix: ClassVar[str]
    """Prefix of the service's environment variables; equal to ``env_prefix``."""
    may_be_empty: ClassVar[tuple[str, ...]] = ()
    """Settings for which an empty variable is a value. For the others, an empty variable is ignored."""

    allowed_hosts: str = Field(
        "",
        description="Host names that clients may use besides IP addresses and local names, separated by commas; `*`"
        " allows all.",
    )
    cors_origins: str = Field(
        "",
        description="Origins of web pages that may call the API, separated by commas; `*` allows all, empty only the"
        " service's own.",
    )
    max_connections: int = Field(
        1024, ge=1, le=100_000, description="HTTP connections at once; fewer if the limit on open files is low."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_format: Literal["json", "text"] = Field("json", description="Log lines on stderr as JSON or for people.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order above; ``.env`` is not read."""
        variable = cls.prefix + "CONFIG"
        config = os.environ.get(variable)
        files = _SecretFiles(settings_cls)
        if not config:
            return init_settings, _EmptyVariables(settings_cls), env_settings, files
        if not Path(config).is_file():
            raise FileNotFoundError(f"{variable} names {config}, which does not exist")
        return (
            init_settings,
            _EmptyVariables(settings_cls),
            env_settings,
            files,
            TomlConfigSettingsSource(settings_cls, config),
        )

    @classmethod
    def unknown_variables(cls, environment: Mapping[str, str]) -> list[str]:
        """Variables that look like this service's and are not: a misspelt one must not be ignored."""
        known = cls._variables()
        return sorted(name for name in environment if name.upper().startswith(cls.prefix) and name.upper() not in known)

    @classmethod
    def refuse_unknown(cls, environment: Mapping[str, str], docs: str) -> None:
        """``ValueError`` that names each unknown variable and the nearest known one; ``docs`` lists them all."""
        unknown = cls.unknown_variables(environment)
        if unknown:
            known = cls._variables()
            named = [
                name + "".join(f" (perhaps {one})" for one in difflib.get_close_matches(name.upper(), known, 1))
                for name in unknown
            ]
            raise ValueError(f"unknown setting {', '.join(named)}; {docs} lists those that exist")

    @classmethod
    def _variables(cls) -> set[str]:
        files = {cls.prefix + name.upper() + _FILE for name in cls.secrets()}
        return {cls.prefix + name.upper() for name in cls.model_fields} | {cls.prefix + "CONFIG"} | files

    @classmethod
    def secrets(cls) -> list[str]:
        """The names of the settings that are secrets."""
        return [
            name
            for name, field in cls.model_fields.items()
            if SecretStr in (field.annotation, *get_args(field.annotation))
        ]


class _SecretFiles(PydanticBaseSettingsSource):
    """Secrets read from the files that ``*_FILE`` variables name, without a trailing newline."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: :meth:`__call__` gives all at once."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        settings = self.settings_cls
        assert issubclass(settings, ServiceSettings)
        found = {}
        for name in settings.secrets():
            variable = settings.prefix + name.upper()
            path = os.environ.get(variable + _FILE)
            if not path:
                continue
            if variable in os.environ:
                raise ValueError(f"{variable} and {variable + _FILE} are both set: set one of them")
            try:
                with open(path, encoding="utf-8") as file:
                    text = file.read(_MAX_SECRET + 1)
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{variable + _FILE}: {path} cannot be read ({type(error).__name__})") from None
            if len(text) > _MAX_SECRET:
                raise ValueError(f"{variable + _FILE}: {path} has more than {_MAX_SECRET} characters")
            found[name] = text.rstrip("\r\n")
        return found


class _EmptyVariables(PydanticBaseSettingsSource):
    """The variables that are set and empty, of those that may be."""

    settings_cls: type[ServiceSettings]

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: `__call__` gives all values."""
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        prefix, names = self.settings_cls.prefix, self.settings_cls.may_be_empty
        found = {name.upper() for name, value in os.environ.items() if not value}
        return {name: "" for name in names if prefix + name.upper() in found}


def readable(error: Exception, prefix: str = "") -> str:
    """What is wrong with settings, in one line. Never the value: it may be a secret."""
    if isinstance(error, RecursionError):
        return "a value or the file is nested too deeply"
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(f"{_name(part['loc'], prefix)}: {part['msg']}" for part in error.errors(include_input=False))


def _name(location: tuple[int | str, ...], prefix: str) -> str:
    return prefix + ".".join(map(str, location)).upper() if location else "settings"
