"""Every setting, from ``CLIPSERVE_*``. The only reader of the environment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.cores import available_cores
from models.runtimes import Provider, RuntimeName, RuntimeOptions, RuntimePrecision, Switch
from service.keys import Key, parse_admin_key, parse_entries, read_entries
from service.schemas import MAX_ITEMS, MAX_LABELS
from service.urls import is_host_pattern

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")
_REDIS = ("redis://", "rediss://", "unix://")


class Settings(BaseSettings):
    """Each field is read from ``CLIPSERVE_`` and its name in capitals; a wrong value stops the start."""

    model_config = SettingsConfigDict(env_prefix="CLIPSERVE_", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(
        1,
        ge=1,
        le=256,
        description="Processes that share the port, each with its own copy of the models unless one has them"
        " for all.",
    )
    shared_engine: bool = Field(
        False,
        description="One more process runs the models, in batches of what all WORKERS decode; Linux only.",
    )

    home: Path = Field(Path("~/.clipserve"), description="Where models and classifiers are kept.")
    models_dir: Path | None = Field(None, description="Folder of models; default: HOME/models.")
    classifiers_dir: Path | None = Field(
        None, description="Folder of named classifiers; default: HOME/classifiers."
    )
    cache_dir: Path | None = Field(
        None, description="Compiled graphs and what was found out about this machine; default: HOME/cache."
    )
    template_sets_dir: Path | None = Field(None, description="Folder of further template sets (JSON).")

    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("shapes",),
        description="Models loaded before readiness, separated by commas; the first is the default.",
    )
    runtime: RuntimeName = Field("auto", description="What runs the graphs.")
    runtime_precision: RuntimePrecision = Field(
        "auto", description="What the runtime computes in; auto: bf16 where it is faster and near enough."
    )
    provider: Provider = Field("auto", description="Execution provider; what is asked for is what runs.")
    inference_threads: int = Field(0, ge=0, le=1024, description="Threads of a graph; 0: one a core.")
    decode_threads: int = Field(0, ge=0, le=1024, description="Threads that decode pictures; 0: one a core.")
    devices: Annotated[tuple[NonNegativeInt, ...], NoDecode] = Field(
        (0,), min_length=1, description="GPUs by number, separated by commas; each has an engine of its own."
    )
    gpu_memory_limit: int = Field(0, ge=0, description="Bytes of GPU memory a session may take; 0: no limit.")
    batch_buckets: Switch = Field(
        "auto", description="Pad batches to 1, 2, 4, … up to MAX_BATCH, each warmed; auto: on GPUs."
    )
    cuda_graphs: bool = Field(False, description="Record the kernels of each batch bucket; CUDA only.")

    max_batch: int = Field(32, ge=1, le=4096, description="Items in one batch; a runtime may prefer fewer.")
    max_queue: int = Field(1024, ge=1, description="Items admitted at once; above it requests get 429.")
    request_timeout: float = Field(30.0, gt=0, description="Seconds until a request is answered with 504.")
    stall_timeout: float = Field(
        60.0, gt=0, description="Seconds a batch may run before the engine counts as dead."
    )

    admin_key: SecretStr | None = Field(
        None, min_length=16, description="Key for loading and unloading models; without it nobody can."
    )
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="NAME:SHA256 of each API key (clipserve keys new); without any, no key is needed."
    )
    api_keys_file: Path | None = Field(
        None, description="File of further API keys, NAME:SHA256 a line; read again when it changes."
    )
    rate_limit: float = Field(0.0, ge=0, description="Items a second of one API key; 0: no limit.")
    rate_burst: int = Field(
        0, ge=0, description="Items an API key may send at once after a pause; 0: those of one second."
    )
    metrics_access: Literal["open", "key"] = Field(
        "open", description="Whether /metrics takes an API key, where there are any."
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="A port for /metrics alone, without a key; default: PORT."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins whose web pages may ask, such as https://a.com, or *; default: none."
    )

    playground: bool = Field(True, description="Serve the playground, a page to try the server, at /.")

    drain_seconds: float = Field(
        3.0, ge=0, description="Seconds between SIGTERM, when readiness turns 503, and closing the port."
    )

    urls: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Fetch pictures by address: off, on, or only from hosts such as a.com,*.b.com.",
    )
    url_ports: Annotated[tuple[int, ...], NoDecode] = Field(
        (80, 443), description="TCP ports that pictures may be fetched from."
    )
    url_connect_timeout: float = Field(3.0, gt=0, description="Seconds to connect for a picture.")
    url_read_timeout: float = Field(5.0, gt=0, description="Seconds between two pieces of a fetched picture.")
    url_timeout: float = Field(10.0, gt=0, description="Seconds for one fetched picture, with redirects.")
    url_concurrency: int = Field(16, ge=1, le=256, description="Pictures fetched at once.")

    max_body_bytes: int = Field(32 * 2**20, ge=1, description="Bytes of a request body.")
    max_image_bytes: int = Field(16 * 2**20, ge=1, description="Bytes of one picture file.")
    max_pixels: int = Field(50_000_000, ge=1, description="Width times height of one picture.")
    max_items: int = Field(
        128, ge=1, le=MAX_ITEMS, description="Pictures and texts in one request; MAX_QUEUE bounds them too."
    )
    max_labels: int = Field(10_000, ge=1, le=MAX_LABELS, description="Labels in one request.")
    max_classifier_labels: int = Field(
        100_000, ge=1, le=MAX_LABELS, description="Labels of a named classifier."
    )
    max_predictions: int = Field(
        250_000, ge=1, description="Predictions in one answer: pictures times labels, or times top_k."
    )
    max_prompts: int = Field(100_000, ge=1, description="Prompts that one request may need for its labels.")
    max_text_length: int = Field(4096, ge=1, description="Characters of one text, label or prompt.")
    exif_orientation: bool = Field(True, description="Turn pictures upright as their EXIF data says.")
    fast_decode: bool = Field(
        False, description="Decode large JPEGs at a fraction of their size: quicker, and not quite exact."
    )

    default_template_set: str = Field("photo", description="Template set of requests that name none.")
    class_cache_bytes: int = Field(64 * 2**20, ge=0, description="Bytes of cached class embeddings.")
    matrix_cache_bytes: int = Field(64 * 2**20, ge=0, description="Bytes of cached class matrices.")
    background_prompts: int = Field(
        256,
        ge=0,
        description="A classifier that needs more new prompts than this is built in the background.",
    )

    state_url: SecretStr | None = Field(
        None,
        description="Redis that servers share classifiers through: redis://, rediss:// or unix://;"
        " default: CLASSIFIERS_DIR.",
    )
    state_prefix: str = Field(
        "clipserve", min_length=1, max_length=64, description="First part of every key in Redis."
    )
    state_embeddings_ttl: int = Field(
        86_400, ge=0, description="Seconds that class embeddings are shared in Redis; 0: not at all."
    )
    declared_classifiers_dir: Path | None = Field(
        None, description="Folder of classifiers (JSON) that are built before readiness."
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_format: Literal["json", "text"] = Field("json", description="One JSON object a line, or plain text.")
    access_log: bool = Field(True, description="Log a line a request.")

    @field_validator("models", "devices", "url_ports", "api_keys", "cors_origins", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return _split(value)
        return value

    @field_validator("urls", mode="before")
    @classmethod
    def _hosts(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        hosts = _split(value.lower())
        if hosts in {("off",), ("on",)}:
            return ("*",) if hosts == ("on",) else ()
        if not hosts or not all(is_host_pattern(host) for host in hosts):
            raise ValueError("must be off, on, or host names such as example.com,*.example.com")
        return hosts

    @field_validator("url_ports")
    @classmethod
    def _are_ports(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or not all(1 <= port <= 65535 for port in value):
            raise ValueError("must be ports from 1 to 65535, separated by commas")
        return value

    @field_validator("shared_engine")
    @classmethod
    def _has_unnamed_memory(cls, value: bool) -> bool:
        if value and not hasattr(os, "memfd_create"):
            raise ValueError("needs Linux: memory is shared without a name there")
        return value

    @field_validator("admin_key")
    @classmethod
    def _is_admin_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None:
            if info.data.get("workers", 1) > 1:
                raise ValueError("needs WORKERS to be 1: a model would be loaded in one of several processes")
            if info.data.get("shared_engine"):
                raise ValueError("needs SHARED_ENGINE to be off: its models are those of the start")
            parse_admin_key(value.get_secret_value())
        return value

    @field_validator("api_keys")
    @classmethod
    def _are_keys(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_entries(value)
        return value

    @field_validator("api_keys_file")
    @classmethod
    def _has_keys(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None:
            return None
        value = value.expanduser()
        parse_entries([*info.data.get("api_keys", ()), *read_entries(value)])
        return value

    @field_validator("rate_limit", "metrics_access")
    @classmethod
    def _needs_keys(cls, value: float | str, info: ValidationInfo) -> float | str:
        if value not in {0.0, "open"} and not (info.data.get("api_keys") or info.data.get("api_keys_file")):
            raise ValueError("needs API keys; without them nobody can be told apart")
        return value

    @field_validator("metrics_port")
    @classmethod
    def _is_open(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("metrics_access") == "key":
            raise ValueError("takes no keys; leave METRICS_ACCESS at open, and keep clients off this port")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in value):
            raise ValueError("must be origins such as https://example.com, or *")
        return value

    @field_validator("models")
    @classmethod
    def _at_least_one(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must name at least one model")
        return value

    @field_validator("state_url")
    @classmethod
    def _is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(_REDIS):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return value

    @field_validator(
        "home", "models_dir", "classifiers_dir", "cache_dir", "template_sets_dir", "declared_classifiers_dir"
    )
    @classmethod
    def _expand(cls, value: Path | None) -> Path | None:
        return value.expanduser() if value is not None else None

    def read_keys(self) -> tuple[Key, ...]:
        """Every API key, from the variable and from the file."""
        further = read_entries(self.api_keys_file) if self.api_keys_file else []
        return parse_entries([*self.api_keys, *further])

    def read_admin_key(self) -> Key | None:
        """The admin key, if there is one."""
        return None if self.admin_key is None else parse_admin_key(self.admin_key.get_secret_value())

    @property
    def item_limit(self) -> int:
        """Items in one request; one of more than the queue takes would be told to try again for ever."""
        return min(self.max_items, self.max_queue)

    @property
    def template_set_folders(self) -> tuple[Path, ...]:
        """Where template sets are looked for, apart from those that come along."""
        return () if self.template_sets_dir is None else (self.template_sets_dir,)

    @property
    def models_folder(self) -> Path:
        """Where models are looked for, apart from the embedded one."""
        return self.models_dir or self.home.expanduser() / "models"

    @property
    def cache_folder(self) -> Path:
        """Where what can be computed anew is kept."""
        return self.cache_dir or self.home.expanduser() / "cache"

    def of_one_worker(self) -> Settings:
        """The same, with a share of the cores where the number of threads is left open."""
        share = max(1, available_cores() // self.workers)
        update = {"decode_threads": self.decode_threads or share}
        if not self.shared_engine:
            update["inference_threads"] = self.inference_threads or share
        return self.model_copy(update=update)

    def runtime_options(self) -> RuntimeOptions:
        """How graphs are to be run."""
        return RuntimeOptions(
            runtime=self.runtime,
            precision=self.runtime_precision,
            provider=self.provider,
            threads=self.inference_threads,
            devices=self.devices,
            gpu_memory_limit=self.gpu_memory_limit,
            max_batch=self.max_batch,
            buckets=self.batch_buckets,
            cuda_graphs=self.cuda_graphs,
            cache_dir=self.cache_folder,
        )

    @property
    def classifiers_folder(self) -> Path:
        """Where named classifiers are kept."""
        return self.classifiers_dir or self.home.expanduser() / "classifiers"


def unknown_variables() -> dict[str, str | None]:
    """Variables that look like settings and are none, each with the setting that was perhaps meant."""
    from difflib import get_close_matches

    prefix = str(Settings.model_config["env_prefix"])
    known = {f"{prefix}{name.upper()}" for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(prefix) and name not in known)
    return {name: next(iter(get_close_matches(name, known, 1, 0.8)), None) for name in unknown}


def otel_variables() -> dict[str, str]:
    """OpenTelemetry's own variables: those who set them set the same for every program they run."""
    return {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}


def _split(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())
