"""Models of the Hugging Face hub, fetched and uploaded by its library `huggingface_hub` (the extra
`hub`).

Files that were fetched before are used again, without a network.
"""

import re
from pathlib import Path
from typing import Any

from gpt2.weights.tensors import PICKLES, SAFETENSORS, has_weights

NAMES = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DESCRIPTION = [
    "config.json",
    *("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("encoder.json", "vocab.bpe"),
]
_PATIENCE = 5.0  # seconds for the hub to answer; a download itself may take any time


def repository_of(name: str) -> str | None:
    """Map the name of a model to the hub's owner/name; None if it cannot be one."""
    return NAMES.get(name) or (name if REPOSITORY.fullmatch(name) else None)


def fetch_description(repository: str) -> tuple[Path, str]:
    """Fetch a model's config.json and tokenizer.

    Returns:
        The folder with the files, and their repository and revision in words.

    Raises:
        ValueError: no such model; no network, and it was not fetched before; or no library.
    """
    hub = _import_hub(f"{repository} is fetched from", _advice(repository))
    unreachable = ""
    try:
        hub.HfApi().model_info(repository, timeout=_PATIENCE)
    except hub.errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"the Hugging Face hub has no public model {repository}: check the name, or give a "
            "folder with config.json and weights"
        ) from error
    # Any of several libraries may fail here; there may still be a copy.
    except Exception as error:
        unreachable = f"asking the hub failed: {type(error).__name__}"
    folder = _snapshot(hub, repository, _DESCRIPTION, "main", unreachable)
    note = f", fetched before ({unreachable})" if unreachable else ""
    return folder, f"{repository} at revision {folder.name[:8]}{note}"


def fetch_weights(repository: str, folder: Path) -> None:
    """Fetch a model's weights into the folder that `fetch_description` gave.

    Raises:
        ValueError: the hub did not give them.
    """
    hub = _import_hub(f"{repository} is fetched from", _advice(repository))
    for names in (SAFETENSORS, PICKLES):
        stem, _, kind = names[0].rpartition(".")
        _snapshot(hub, repository, [*names, f"{stem}-*.{kind}"], folder.name)
        if has_weights(folder, names):
            return


def _snapshot(
    hub: Any, repository: str, files: list[str], revision: str, unreachable: str = ""
) -> Path:
    try:
        folder = hub.snapshot_download(
            repository, revision=revision, allow_patterns=files, local_files_only=bool(unreachable)
        )
    # Any of several libraries may fail here; whichever it is, the advice is the same.
    except Exception as error:
        reason = unreachable or str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{repository} cannot be fetched from the Hugging Face hub ({reason}). "
            f"{_advice(repository)}"
        ) from error
    return Path(folder)


def push(folder: Path, repository: str) -> str:
    """Upload the files of `folder` to a model of the hub, as one change; where there is no such
    model it is made, and is private.

    Returns:
        The address of the change.

    Raises:
        ValueError: the hub did not take them, or no library.
    """
    advice = f"It is whole in {folder}: hf upload --private {repository} {folder} . sends it later"
    hub = _import_hub(f"{repository} is uploaded to", advice)
    try:
        api = hub.HfApi()
        api.create_repo(repository, private=True, exist_ok=True)
        files = sorted(path for path in folder.iterdir())
        commit = api.create_commit(
            repository,
            [hub.CommitOperationAdd(path.name, path) for path in files],
            commit_message=f"Upload {folder.name}",
        )
    # Any of several libraries may fail here; whichever it is, the advice is the same.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(f"the hub did not take {repository} ({reason}). {advice}") from error
    return str(commit.commit_url)


def _import_hub(purpose: str, advice: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise ValueError(
            f"{purpose} the Hugging Face hub, which needs the library `huggingface_hub`: "
            f"pip install -e '.[hub]'. {advice}"
        ) from error
    return huggingface_hub


def _advice(repository: str) -> str:
    folder = repository.rpartition("/")[2] + "-weights"
    return (
        "Or fetch it where there is a network (hf download "
        f"{repository} --local-dir {folder}) and give that folder"
    )
