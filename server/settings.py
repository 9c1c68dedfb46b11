"""Settings: each one an environment variable, checked once at the start."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

__all__ = ["PREFIX", "Settings", "SettingsError", "as_key"]

PREFIX = "V1T_"
# Variables of the client and of training, which may be set in the same shell.
_OF_OTHERS = frozenset({"V1T_URL", "V1T_API_KEY", "V1T_HOME", "V1T_CACHE"})
_SECRET = frozenset({"api_keys", "admin_keys"})
_GRPC_ADDRESS = re.compile(r"unix:/.+|(\[[0-9a-fA-F:.]+\]|[0-9.]+):[0-9]{1,5}")
DEFAULT_BUNDLES = Path(__file__).resolve().parent.parent / "exported_models"


class SettingsError(ValueError):
    """An invalid environment variable; the message names it."""


def as_key(key: Any) -> Any:
    """Checks that an API key is long enough and fits into a header. The error does not repeat the key."""
    if isinstance(key, str) and (len(key) < 16 or not all("!" <= letter <= "~" for letter in key)):
        raise ValueError(
            "a key is 16 or more printable ASCII characters without spaces; `openssl rand -hex 24` makes one"
        )
    return key


Key = Annotated[SecretStr, BeforeValidator(as_key)]


class Settings(BaseModel):
    """What an operator can set; the environment variable of `max_batch` is V1T_MAX_BATCH, for example."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundles: tuple[Path, ...] = Field(
        default=(DEFAULT_BUNDLES,),
        min_length=1,
        description="bundles, or folders of bundles, separated by the path separator",
    )
    provider: Literal["auto", "cpu", "cuda", "openvino"] = Field(default="auto", description="where the graphs run")
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = Field(
        default="fp32",
        description="precision of the cores: tf32 on a GPU, fp16 if the bundle has such cores, bf16 in OpenVINO",
    )
    cuda_graphs: bool = Field(
        default=False,
        description="on a GPU, record each core once per batch size: faster for lone images, slower for many",
    )
    max_loaded: int | None = Field(
        default=None, ge=1, description="bundles kept in memory; others are loaded on their next request; empty: all"
    )
    watch: float | None = Field(
        default=None, ge=0.1, le=86_400, description="seconds between checks for changed bundles; empty: never"
    )
    load_timeout: float = Field(
        default=120.0,
        gt=0,
        le=86_400,
        description="seconds that one bundle may take to load and run once; a slower one is refused",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="threads of one graph on the CPU; empty: one per core that the server may use",
    )
    max_batch: int = Field(default=8, ge=1, le=4096, description="images in one run of the engine")
    max_queue: int = Field(default=2048, ge=1, description="images that may wait; more are refused with 429")
    max_images: int = Field(default=512, ge=1, description="images in one request")
    max_body: int = Field(default=64 * 1024**2, ge=1024, description="bytes of one request")
    max_pixels: int = Field(default=4096 * 4096, ge=1, description="pixels of one image file, before it is resized")
    max_maps: int = Field(
        default=64 * 1024**2,
        ge=1,
        description="elements of receptive fields that are mapped at the same time, 8 bytes each",
    )
    memory: int | None = Field(
        default=None,
        ge=16 * 1024**2,
        description="bytes for all requests being received, parsed or answered; empty: half of the container's memory, "
        "or a quarter of the machine's",
    )
    timeout: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="seconds to a reply's first byte; a request's X-Request-Timeout may ask for less",
    )
    run_timeout: float = Field(
        default=120.0,
        gt=0,
        le=86_400,
        description="seconds that one run of the engine may take; a longer one counts as hung",
    )
    drain: float = Field(
        default=20.0, ge=0, le=25, description="seconds that requests in flight get when the server stops"
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, description="concurrent requests per key, or per address without keys; empty: unlimited"
    )
    api_keys: tuple[Key, ...] = Field(default=(), description="API keys, separated by commas; never printed")
    api_keys_file: Path | None = Field(
        default=None, description="file of more API keys, one per line; read again when it changes"
    )
    admin_keys: tuple[Key, ...] = Field(
        default=(), description="keys for /admin, separated by commas; without any there is no /admin"
    )
    admin_keys_file: Path | None = Field(
        default=None, description="file of more admin keys; read again when it changes"
    )
    allow_anonymous: bool = Field(default=False, description="serve other machines without keys")
    public_url: str | None = Field(
        default=None,
        description="URL under which a proxy serves this server, with its path prefix; empty: as each request says",
    )
    hosts: tuple[str, ...] = Field(
        default=(),
        description="host names that a server without keys answers to, beside localhost, addresses and this machine's "
        "name; separated by commas; *: any",
    )
    cors_origins: tuple[str, ...] = Field(
        default=(),
        description="origins of web pages that may ask this server from a browser, separated by commas; *: any",
    )
    grpc: tuple[str, ...] = Field(
        default=(),
        description="where the gRPC service listens, such as 127.0.0.1:3001 or unix:/run/v1t.sock, separated by "
        "commas; needs `server/requirements-grpc.txt`; empty: nowhere",
    )
    log: Literal["text", "json"] = Field(default="text", description="format of the log")
    access_log: bool = Field(default=False, description="write a log line per request")
    tracing: bool = Field(default=False, description="write OpenTelemetry spans, as BentoML's configuration says")

    @field_validator("bundles", mode="before")
    @classmethod
    def _split(cls, bundles: Any) -> Any:
        if isinstance(bundles, str):
            return tuple(Path(part).expanduser() for part in bundles.split(os.pathsep) if part.strip())
        return bundles

    @field_validator("api_keys", "admin_keys", "hosts", "cors_origins", "grpc", mode="before")
    @classmethod
    def _split_list(cls, values: Any) -> Any:
        return (
            tuple(value.strip() for value in values.split(",") if value.strip()) if isinstance(values, str) else values
        )

    @field_validator("public_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise ValueError("expected a URL such as https://lab.example.org/twins")
        return url.rstrip("/")

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            if origin != "*" and origin != f"{parts.scheme}://{parts.netloc}":
                raise ValueError(
                    f"{origin!r} is not an origin, such as https://lab.example.org or http://localhost:8888"
                )
        return origins

    @field_validator("grpc")
    @classmethod
    def _are_addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            if not _GRPC_ADDRESS.fullmatch(address):
                raise ValueError(f"{address!r} is not an address, such as 127.0.0.1:3001 or unix:/run/v1t.sock")
        return addresses

    @model_validator(mode="after")
    def _queue_holds_a_request(self) -> Self:
        if self.max_images > self.max_queue:
            raise ValueError(
                f"{PREFIX}MAX_IMAGES is {self.max_images}, more than {PREFIX}MAX_QUEUE, {self.max_queue}: "
                "the largest request must fit an empty queue"
            )
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Reads V1T_...; an empty variable counts as not set.

        Raises:
            SettingsError: names each variable that is wrong, with its value and what was expected, and each that
                resembles a setting but is none.
        """
        if misspelt := cls.unknown(environment, resembling=True):
            raise SettingsError(
                "\n".join(f"{variable} is not a setting; did you mean {meant}?" for variable, meant in misspelt.items())
            )
        named = {f"{PREFIX}{name.upper()}": name for name in cls.model_fields}
        given = {name: environment[variable] for variable, name in named.items() if environment.get(variable)}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            lines = []
            for problem in error.errors():
                if not problem["loc"]:
                    lines.append(problem["msg"].removeprefix("Value error, "))
                    continue
                variable = f"{PREFIX}{str(problem['loc'][0]).upper()}"
                value = "wrong" if problem["loc"][0] in _SECRET else repr(environment.get(variable, ""))
                lines.append(f"{variable} is {value}: {problem['msg'].removeprefix('Value error, ')}")
            raise SettingsError("\n".join(lines)) from None

    @classmethod
    def unknown(cls, environment: Mapping[str, str] = os.environ, *, resembling: bool) -> dict[str, str]:
        """V1T_ variables that neither the server nor the other programs of this project read.

        Args:
            resembling: those that resemble a setting of the server, or those that do not.

        Returns:
            The setting that each resembles, or "".
        """
        settings = [f"{PREFIX}{name.upper()}" for name in cls.model_fields]
        strange = sorted(
            name for name in environment if name.upper().startswith(PREFIX) and name not in (*settings, *_OF_OTHERS)
        )
        close = {name: difflib.get_close_matches(name.upper(), settings, n=1, cutoff=0.8) for name in strange}
        return {name: (matches or [""])[0] for name, matches in close.items() if bool(matches) is resembling}

    def describe(self) -> str:
        """One line for the log, without keys."""
        shown = {name: getattr(self, name) for name in type(self).model_fields}
        shown["bundles"] = os.pathsep.join(map(str, self.bundles))
        shown |= {name: ",".join(getattr(self, name)) for name in ("hosts", "cors_origins", "grpc")}
        shown |= {name: f"({len(getattr(self, name))} hidden)" for name in _SECRET}
        return " ".join(f"{PREFIX}{name.upper()}={'' if value is None else value}" for name, value in shown.items())
