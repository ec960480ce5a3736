"""A steering's files to and from the Hugging Face hub, through its own client."""

from contextlib import suppress
from pathlib import Path

from .._storage.pairs import CONFIG_LIMIT, TENSORS_LIMIT
from .card import CARD, CONFIG, TENSORS
from .files import is_ours


def download(repo: str, revision: str | None, token: str | None) -> Path:
    """The folder to which a repository's two files were downloaded; the client's cache where there is no network."""
    from huggingface_hub import snapshot_download

    _refuse_large(repo, revision, token)
    try:
        return Path(snapshot_download(repo, revision=revision, token=token, allow_patterns=[CONFIG, TENSORS]))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"no folder {repo}, and nothing of that name on the hub: {error}") from error


def _refuse_large(repo: str, revision: str | None, token: str | None) -> None:
    """Before anything is on the disk. Where the hub does not answer, the download will say why, or needs no answer."""
    from huggingface_hub import HfApi

    sizes: dict[str, int] = {}
    with suppress(Exception):
        found = HfApi(token=token).model_info(repo, revision=revision, files_metadata=True).siblings or ()
        sizes = {file.rfilename: file.size or 0 for file in found}
    for name, limit in ((CONFIG, CONFIG_LIMIT), (TENSORS, TENSORS_LIMIT)):
        if sizes.get(name, 0) > limit:
            raise ValueError(f"{repo}: expected a {name} of at most {limit} bytes, got {sizes[name]}")


def upload(folder: str, repo: str, private: bool | None, token: str | None) -> str:
    """Upload a folder to a repository, which is made if need be; returns the commit's address.

    A README.md there that somebody has made their own stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo, folder_path=folder, commit_message="Upload a lineas steering",
        ignore_patterns=[CARD] if _has_own_card(api, repo) else None,
    )  # fmt: skip
    return str(commit.commit_url)


def _has_own_card(api, repo: str) -> bool:
    from huggingface_hub.utils import EntryNotFoundError

    try:
        return not is_ours(Path(api.hf_hub_download(repo, CARD)))
    except EntryNotFoundError:
        return False
