"""Read models from a directory or the hub: refused by configuration first, adapters merged, weights in safetensors."""

from __future__ import annotations

import functools
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers

from instructgpt.errors import InputError, one_line
from instructgpt.io import is_missing_path
from instructgpt.models.families import check_supported, text_config

ADAPTER_CONFIG = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_HUB_TIMEOUT_S = 10.0
"""Seconds the hub may take to answer before the download cache is used alone."""
_SAVED_DTYPE_KEY, _NOTICES_KEY = "_instructgpt_saved_dtype", "_instructgpt_notices"


def parse_named_models(models: Sequence[str]) -> dict[str, str]:
    """Return {name: source} of NAME=MODEL arguments. Raise InputError if two models have the same name."""
    sources: dict[str, str] = {}
    for argument in models:
        name, _, source = argument.rpartition("=")
        name = name or Path(source).name
        if name in sources:
            hint = f"name them: --model first={sources[name]} second={source}"
            raise InputError(f"--model: two models have the name '{name}'; {hint}")
        sources[name] = source
    return sources


@functools.cache
def _is_hub_reachable() -> bool:
    # once a process: without a network, transformers would retry every file for most of a minute
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
    except Exception:  # the HTTP client below decides which
        return False
    return True


def from_pretrained(auto_class: Any, source: Path | str, **kwargs: Any) -> Any:
    """Call `auto_class.from_pretrained` without remote code, and without a download where a local path is meant.

    Where the hub does not answer, a hub name is looked up in the download cache.

    Raises:
        InputError: there is no such model, or its files do not fit together.
    """
    path = Path(source)
    is_local = path.is_dir()
    if path.is_file():
        raise InputError(f"{source}: is a file, expected the directory of a model")
    if is_missing_path(source):
        raise InputError(f"{source}: no such directory")
    if is_local and not (path / "config.json").exists() and auto_class is not transformers.AutoTokenizer:
        raise InputError(f"{source}: not a model directory (no config.json); has the stage that makes it finished?")
    local_files_only = is_local or not _is_hub_reachable()
    name, revision = split_revision(source)
    if revision is not None:
        kwargs["revision"] = revision
    try:
        return auto_class.from_pretrained(name, local_files_only=local_files_only, trust_remote_code=False, **kwargs)
    except MemoryError:
        raise
    except Exception as error:  # the libraries below raise a dozen unrelated types
        if "ignore_mismatched_sizes" in str(error):
            reason = "shapes of the weights differ from config.json; the files belong to two models"
            raise InputError(f"{source}: {reason}") from error
        missing = "there is no such directory, and no model of that name can be loaded from the hub"
        missing += f" at the revision '{revision}'" if revision is not None else ""
        reason = "cannot be loaded" if is_local else missing
        reason += ", which does not answer" if local_files_only and not is_local else ""
        raise InputError(f"{source}: {reason} ({one_line(error, 300)})") from error


def split_revision(source: Path | str) -> tuple[str, str | None]:
    """Return the hub name and the branch, tag or commit of `owner/name@revision`; None for a path, or without one."""
    name, separator, revision = str(source).rpartition("@")
    if not separator or not name or not revision or Path(source).exists():
        return str(source), None
    return name, revision


def find_hub_commit(name: str, revision: str | None) -> str | None:
    """Return the commit of the hub that a name, once loaded, stands for; None for a local directory."""
    if Path(name).exists():
        return None
    cached_path = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(cached_path).parent.name if isinstance(cached_path, str) else None


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model's weights are: a directory or hub name, and that of an adapter on top of it, or None."""

    base: str
    adapter: str | None = None


def find_model_files(source: Path | str) -> ModelFiles:
    """Return where the weights of a model are: adapters (by peft) name their base, or lie beside a whole model.

    Raises:
        InputError: the adapter's configuration names no base.
    """
    path = Path(source)
    config_path = path / ADAPTER_CONFIG
    if not path.is_dir():
        # a hub name: transformers looks for an adapter's configuration there, in the download cache if need be
        finder = transformers.utils.peft_utils.find_adapter_config_file
        name, revision = split_revision(source)
        try:
            adapter_path = finder(name, revision=revision, local_files_only=not _is_hub_reachable())
        except Exception:  # no such repository, a private one ...: loading the model says so
            adapter_path = None
        if adapter_path is None:
            return ModelFiles(str(source))
        config_path = Path(adapter_path)
    if not config_path.exists():
        return ModelFiles(str(source))
    if (config_path.parent / "config.json").exists():
        return ModelFiles(str(config_path.parent), str(source))
    try:
        adapter_config = json.loads(config_path.read_text(encoding="utf-8"))
        base = adapter_config["base_model_name_or_path"]
    except (KeyError, ValueError) as error:
        raise InputError(f"{config_path}: the adapter names no base model ({one_line(error, 100)})") from error
    if not base:
        raise InputError(f"{config_path}: the adapter names no base model; set base_model_name_or_path there")
    beside = config_path.parent / base
    if not Path(base).exists() and beside.is_dir():
        return ModelFiles(str(beside), str(source))
    revision = adapter_config.get("revision") if not Path(base).exists() else None
    return ModelFiles(f"{base}@{revision}" if revision else base, str(source))


@contextmanager
def _without_adapter(source: str) -> Iterator[str]:
    """Yield a model directory without its adapter files: transformers would put the adapter in, not merged."""
    path = Path(source)
    if not (path / ADAPTER_CONFIG).exists():
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        for file in path.iterdir():
            if not file.name.startswith("adapter_"):
                (Path(folder) / file.name).symlink_to(file.resolve())
        yield folder


def load_model_config(source: Path | str) -> Any:
    """Load the configuration of a model directory, adapter directory or hub name. Raises InputError where none is."""
    return from_pretrained(transformers.AutoConfig, find_model_files(source).base)


def load_hf_tokenizer(source: Path | str) -> Any:
    """Load the tokenizer of a model directory or hub name; an adapter's may be its base's.

    Raises:
        InputError: there is none.
    """
    files = find_model_files(source)
    for folder in (str(source), *([files.base] if files.adapter is not None else [])):
        path = Path(folder)
        if not path.is_dir() or any((path / name).exists() for name in _TOKENIZER_FILES):
            return from_pretrained(transformers.AutoTokenizer, folder)
    raise InputError(f"{source}: no tokenizer in this model directory; save one there with tokenizer.save_pretrained")


def load_model(
    auto_class: Any,
    source: Path | str,
    *,
    check: bool = True,
    reward: bool = False,
    changes: dict[str, Any] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Load a model in float32 on the CPU, adapters merged, if its configuration is supported.

    Args:
        auto_class: a class of transformers with `from_pretrained`.
        source: the directory of a model or of an adapter, or a hub name.
        check: whether it is to write text, or be trained to score it, which not every family can.
        reward: whether it is to be a reward or value model.
        changes: values of the configuration to set.

    Returns:
        The model, and transformers' report of missing and unexpected weights.

    Raises:
        InputError: there is no such model, its family is refused, or its files do not fit together.
    """
    files = find_model_files(source)
    config = from_pretrained(transformers.AutoConfig, files.base)
    if check:
        check_supported(config, source, reward=reward)
    if auto_class is transformers.AutoModelForSequenceClassification and (labels := count_adapter_labels(files)):
        config.num_labels = labels  # its base, a language model, says nothing of them
    saved = getattr(text_config(config), "dtype", None) or getattr(config, "dtype", None)
    for part in {id(part): part for part in (config, text_config(config))}.values():
        part.update(changes or {})
    with _without_adapter(files.base) as folder:
        model, loading_info = from_pretrained(
            auto_class, folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
    name, revision = split_revision(files.base)
    model.name_or_path = model.config.name_or_path = name
    if commit := find_hub_commit(name, revision):
        pinned = "" if revision == commit else f"; {name}@{commit} is always this one"
        add_notice(model, f"{files.base} is commit {commit} of the hub{pinned}")
    set_saved_dtype(model, saved)
    if files.adapter is not None:
        model = _merge_adapter(model, files, loading_info)
    return model, loading_info


def count_adapter_labels(files: ModelFiles) -> int | None:
    """Return the number of labels of the classifier's head that an adapter holds; None where it holds none."""
    if files.adapter is None:
        return None
    import peft  # takes seconds

    adapter, revision = split_revision(files.adapter)
    try:
        weights = peft.utils.load_peft_weights(adapter, device="cpu", revision=revision)
    except Exception:  # reading it for its weights says what is wrong
        return None
    heads = (tensor for name, tensor in weights.items() if name.endswith(("score.weight", "classifier.weight")))
    return next((len(head) for head in heads), None)


def _merge_adapter(model: Any, files: ModelFiles, loading_info: dict[str, Any]) -> Any:
    import peft  # takes seconds

    assert files.adapter is not None

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapter, revision = split_revision(files.adapter)
            config = peft.PeftConfig.from_pretrained(adapter, revision=revision)
            if config.is_prompt_learning:
                kind = str(config.peft_type.value)
                raise InputError(f"{files.adapter}: an adapter of the type {kind} cannot be merged into weights")
            if config.task_type == "CAUSAL_LM" and not model.can_generate():
                config.task_type = None  # a reward model starts from it: its class has no method to generate
            adapted = peft.PeftModel.from_pretrained(model, adapter, config=config, revision=revision)
            in_files = set(peft.utils.load_peft_weights(adapter, device="cpu", revision=revision))
            in_model = set(peft.get_peft_model_state_dict(adapted))
            trained = {name.rpartition("modules_to_save.default.")[2] for name, _ in adapted.named_parameters()}
            merged = adapted.merge_and_unload() if in_files == in_model else None
    except InputError:
        raise
    except Exception as error:  # peft raises what torch, safetensors and the hub raise
        raise InputError(f"{files.adapter}: the adapter does not fit {files.base} ({one_line(error, 200)})") from error
    if merged is None:  # peft itself would leave the others out, or random
        unmatched = ", ".join(sorted(in_files ^ in_model)[:3])
        raise InputError(f"{files.adapter}: the adapter does not fit {files.base}: weights of {unmatched}")
    loading_info["missing_keys"] = {
        key for key in loading_info["missing_keys"] if key.rpartition(".")[2] not in trained or "score" not in key
    }
    merged.requires_grad_(True)  # peft has frozen all weights
    add_notice(merged, f"the adapter in {files.adapter} is merged into the weights of {files.base}")
    return merged


def set_saved_dtype(model: Any, dtype: Any) -> None:
    """Set the type that a model's weights are saved in; without one it is float32."""
    dtype = getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    object.__setattr__(_plain_model(model), _SAVED_DTYPE_KEY, dtype or torch.float32)


def _plain_model(model: Any) -> Any:
    """Return the model below adapters, or below a view without them."""
    model = getattr(model, "peft_model", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def saved_dtype(model: Any) -> torch.dtype:
    """Return the type that a model's weights are saved in: that of the files it came from."""
    base_model = _plain_model(model)
    dtype: torch.dtype = vars(base_model).get(_SAVED_DTYPE_KEY, torch.float32)
    return dtype


@torch.no_grad()
def round_to_saved_dtype(model: Any) -> None:
    """Round weights to the type that they are saved in, so that what is measured now holds for the saved model.

    Adapters and the weights below them stay as they are: they are merged, then rounded, when they are saved.
    """
    dtype = saved_dtype(model)
    if dtype == torch.float32 or _plain_model(model) is not model:
        return
    for parameter in model.parameters():
        parameter.copy_(parameter.to(dtype).to(parameter.dtype))


def add_notice(model: Any, text: str) -> None:
    """Keep a sentence to be printed when the model is reported (see `model_notices`)."""
    object.__setattr__(_plain_model(model), _NOTICES_KEY, (*model_notices(model), text))


def model_notices(model: Any) -> tuple[str, ...]:
    """Return what loading has decided or left out."""
    base_model = _plain_model(model)
    notices: tuple[str, ...] = vars(base_model).get(_NOTICES_KEY, ())
    return notices
