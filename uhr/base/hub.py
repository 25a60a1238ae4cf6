"""The model hub: the only code that downloads, and only what a user named by its hub id."""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from uhr.base.console import warn
from uhr.base.errors import UserError, one_line
from uhr.base.files import disk_fault

_PICKLED = re.compile(r"(\w+_)?model(-\d+-of-\d+)?\.bin")
"""Names of pickled weights, as transformers, diffusers and open_clip write them."""

_MODEL_CONFIGS = ("config.json", "open_clip_config.json")
"""Names of the configuration beside a model's weights. Schedulers and tokenizers have other names."""

_SAFE = ("model.safetensors", "diffusion_pytorch_model.safetensors", "open_clip_model.safetensors")
"""Names that weights may have in their place."""

_pinned: dict[str, str] = {}
"""See `pin`."""


def pin(commits: Mapping[str, str]) -> None:
    """Use these commits of repositories, or of their revisions, in this process, by the names that
    `name_of` gives: a branch may move while a run uses it.

    What the hub's cache has of them is used without asking the hub.
    """
    _pinned.clear()
    _pinned.update(commits)


@contextlib.contextmanager
def pinned(commits: Mapping[str, str]) -> Generator[None]:
    """Use `commits`, as `pin` does, inside of the block."""
    before = dict(_pinned)
    pin(commits)
    try:
        yield
    finally:
        pin(before)


def name_of(repository: str, revision: str | None) -> str:
    """Return `org/name`, or `org/name@revision`."""
    return repository if revision is None else f"{repository}@{revision}"


def commit_in_cache(repository: str, revision: str | None) -> str | None:
    """Return the commit of a revision in the hub's cache; None if it is not there. Uses no network."""
    try:
        return snapshot(repository, revision, (), cached=True).name
    except UserError:
        return None


def snapshot(
    repository: str,
    revision: str | None,
    patterns: Sequence[str],
    *,
    cached: bool = False,
    into: Path | None = None,
) -> Path:
    """Download the files of a hub repository that match `patterns` into the hub's own cache.

    Args:
        repository: `org/name`.
        revision: a branch, tag or commit; None is the default branch.
        patterns: shell patterns of file names. Compiled weights are never downloaded, and pickled ones
            (`*.bin`) only for a model of which the repository has no safetensors, with a warning.
        cached: use what is in the cache already, without the network.
        into: a folder to download into, instead of the cache.

    Returns:
        The folder of the snapshot, named by its commit, or `into`.

    Raises:
        UserError: if the licence was not accepted, the hub cannot be reached or has no such repository, or
            the disk is full.
    """
    from huggingface_hub import snapshot_download

    commit = _pinned.get(name_of(repository, revision)) if into is None else None
    if commit is not None:
        revision = commit
        if not cached and (there := _in_cache(repository, commit, patterns)) is not None:
            return there
    name = name_of(repository, revision)
    with _hub_errors(repository, name, cached):
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=["*.bin", "*.pt", "*.msgpack", "*.onnx*"],
                local_files_only=cached,
                local_dir=into,
            )
        )
    pickles = [] if cached else _pickles(repository, revision, patterns, folder)
    if pickles:
        more = f" and {len(pickles) - 1} more" if len(pickles) > 1 else ""
        warn(f"'{name}' has no safetensors for {pickles[0]}{more}: the pickled weights are downloaded")
        with _hub_errors(repository, name, cached):
            snapshot_download(repository, revision=revision, allow_patterns=pickles, local_dir=into)
    return folder


def _in_cache(repository: str, commit: str, patterns: Sequence[str]) -> Path | None:
    """Return the folder of a commit in the hub's cache; None if files are lacking."""
    try:
        folder = snapshot(repository, commit, patterns, cached=True)
    except UserError:
        return None
    # a cache that an older version of the hub's library made does not say what it lacks
    named = [each for each in patterns if not set("*?[").intersection(each)]
    return folder if all((folder / each).is_file() for each in named) else None


def _pickles(repository: str, revision: str | None, patterns: Sequence[str], folder: Path) -> list[str]:
    """Return the pickled weights of models of which a repository has no others: those beside a configuration
    in the downloaded `folder` that has no safetensors, where `patterns` ask for weights.
    """
    from huggingface_hub import HfApi

    bare = {
        file.parent.relative_to(folder).as_posix()
        for config in _MODEL_CONFIGS
        for file in folder.rglob(config)
        if not list(file.parent.glob("*.safetensors"))
    }
    # to list the files takes a request, and half a minute without a network
    bare = {place for place in bare if any(_wanted(f"{place}/{name}", patterns) for name in _SAFE)}
    if not bare:
        return []
    try:
        names = HfApi().list_repo_files(repository, revision=revision)
    except _network_errors():
        # without a network the cache has what it has
        return []
    found = [each for each in names if _PICKLED.fullmatch(Path(each).name)]
    return [
        name
        for name in found
        if Path(name).parent.as_posix() in bare
        and _wanted(f"{name.removesuffix('bin')}safetensors", patterns)
    ]


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name.removeprefix("./"), each) for each in patterns)


def _network_errors() -> tuple[type[Exception], ...]:
    """What the hub's library raises if the hub cannot be reached or refuses."""
    from huggingface_hub.errors import HfHubHTTPError

    # its versions use requests, httpx or httpx2, whose errors it derives its own from; those of requests
    # are OSErrors
    return OSError, *(each for each in HfHubHTTPError.__bases__ if issubclass(each, Exception))


def described(repository: str, revision: str | None) -> tuple[str, str | None]:
    """Return the commit of a revision of a hub repository, and the licence that its card states, if any.

    Raises UserError as `snapshot` does.
    """
    from huggingface_hub import HfApi

    name = name_of(repository, revision)
    with _hub_errors(repository, name, False):
        info = HfApi().model_info(repository, revision=revision)
    card = info.card_data
    licence = None if card is None else card.get("license_name") or card.get("license")
    return str(info.sha), None if licence is None else str(licence)


@contextlib.contextmanager
def _hub_errors(repository: str, name: str, cached: bool) -> Generator[None]:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        page = f"https://huggingface.co/{repository}"
        raise UserError(
            f"the hub keeps '{repository}' behind a licence", f"accept it on {page}, then run `hf auth login`"
        ) from error
    except LocalEntryNotFoundError as error:
        what = f"'{name}' is neither a folder here nor in the hub's cache"
        if cached:
            raise UserError(what, f"if you want it from the hub, name it: --model {name}") from error
        raise UserError(f"{what}, and the hub cannot be reached", "check the path, or the network") from error
    except RevisionNotFoundError as error:
        what = f"the hub's '{repository}' has no revision {name.partition('@')[2]}"
        raise UserError(what, "name a branch, a tag or a commit of it") from error
    except (*_network_errors(), ValueError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
            # the hub answers this too if there is no such repository
            what = f"the hub refuses '{name}' (HTTP {error.response.status_code})"
            fix = "check the name; for a private repository run `hf auth login`, or set HF_TOKEN"
            raise UserError(what, fix) from error
        if (reason := disk_fault(error)) is not None:
            fix = "free space, or set HF_HOME to a folder of another disk"
            raise UserError(f"the hub's cache cannot take '{name}' ({reason})", fix) from error
        raise UserError(
            f"'{name}' is not a folder here, and cannot be downloaded from the hub ({one_line(error)})",
            "check the path, or the hub id and its revision",
        ) from error
