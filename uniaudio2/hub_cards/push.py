"""Uploading what was staged: one commit per repository, with nothing in it but what differs."""

import fnmatch
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from .checks import check_contents
from .staging import ANY_NAMESPACE, Repository, files_of, read_record, repositories, sha256

# Begins the titles of commits and pull requests, by which they are found again.
TITLE = "Published with"
# Files on the Hub that are removed when they are no longer staged: what would be loaded in the place of what is. All
# others, such as pictures or a licence that somebody has added, stay.
REMOVED = {
    "model": ("model*.safetensors", "model.safetensors.index.json", "codec/model*.safetensors*"),
    "space": ("uniaudio2/*",),
}


@dataclass(frozen=True)
class Changes:
    """
    How a repository on the Hub has to change.

    Args:
        upload (`Mapping[str, Path | bytes]`): New contents by their path.
        delete (`tuple[str, ...]`): Paths to remove.
    """

    upload: Mapping[str, Path | bytes]
    delete: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.upload or self.delete)


def push(
    output: str | Path, namespace: str, *, private: bool = False, create_pr: bool = False, dry_run: bool = False
) -> list[str]:
    """
    Upload a staged folder.

    A repository that has everything already is left alone. After an interruption the same call goes on where it was.

    Args:
        output (`str` or `Path`): What `stage` has made. Nothing in it changes.
        namespace (`str`): The user or organisation.
        private (`bool`, *optional*, defaults to `False`): Whether repositories that have to be created are private.
        create_pr (`bool`, *optional*, defaults to `False`):
            Open pull requests. One that is open already from an earlier call gets the commit instead.
        dry_run (`bool`, *optional*, defaults to `False`): Say what would change, and change nothing.

    Returns:
        `list[str]`: The addresses of the commits or pull requests that were made.

    Raises:
        ValueError: If the folder was not staged, or for another namespace, if it holds a secret, if there is no token,
            or the token's owner may not write there.
        OSError: If the Hub cannot be reached, or refuses.
    """
    output = Path(output)
    record = read_record(output)
    if record["namespace"] not in (None, namespace):
        raise ValueError(
            f"{output} was staged for {record['namespace']}, not for {namespace}: stage it again with --namespace "
            f"{namespace}."
        )
    for repository in repositories(record["name"]):
        check_contents(output / repository.folder)
    if get_token() is None:
        raise ValueError("There is no token: `hf auth login`, or set HF_TOKEN to one that may write.")
    api = HfApi(library_name="uniaudio2")
    made = []
    for repository in repositories(record["name"]):
        address = f"{namespace}/{repository.name}"
        contents = staged_contents(output / repository.folder, record["name"], namespace)
        try:
            url = _push_one(api, repository, address, contents, record["made_by"], private, create_pr, dry_run)
        except (HTTPError, RuntimeError, ConnectionError) as error:
            raise _explained(error, address, namespace) from error
        made += [url] * (url is not None)
    return made


def staged_contents(folder: Path, name: str, namespace: str) -> dict[str, Path | bytes]:
    """What is to be uploaded of a staged folder: files as they are, but for the namespace in those that name one."""
    contents: dict[str, Path | bytes] = {}
    for path in files_of(folder):
        contents[path.relative_to(folder).as_posix()] = path
        if path.parent == folder and path.suffix in (".md", ".py"):
            text = path.read_bytes()
            for repository in repositories(name):
                text = text.replace(
                    f"{ANY_NAMESPACE}/{repository.name}".encode(), f"{namespace}/{repository.name}".encode()
                )
            contents[path.name] = text
    return contents


def _push_one(
    api: HfApi,
    repository: Repository,
    address: str,
    contents: Mapping[str, Path | bytes],
    made_by: str,
    private: bool,
    create_pr: bool,
    dry_run: bool,
) -> str | None:
    exists = _prepare(api, repository, address, private, dry_run)
    if not exists and dry_run:
        _say(f"{address}: would be created, with {len(contents)} files")
        return None
    title = f"{TITLE} {made_by}"
    revision = _open_pull_request(api, repository, address) if create_pr else None
    changes = compare(contents, _remote_files(api, repository, address, revision), REMOVED[repository.type])
    if not changes:
        _say(f"{address}: nothing has changed")
        return None
    size = sum(len(entry) if isinstance(entry, bytes) else entry.stat().st_size for entry in changes.upload.values())
    _say(f"{address}: {len(changes.upload)} files to upload ({size:,} bytes), {len(changes.delete)} to remove")
    for path in changes.upload:
        _say(f"  + {path}")
    for path in changes.delete:
        _say(f"  - {path}")
    if dry_run:
        return None
    operations = [CommitOperationAdd(path, entry) for path, entry in changes.upload.items()]
    operations += [CommitOperationDelete(path, is_folder=False) for path in changes.delete]
    commit = api.create_commit(
        address,
        operations,
        commit_message=title,
        repo_type=repository.type,
        revision=revision,
        create_pr=create_pr and revision is None,
    )
    url = commit.pr_url or commit.commit_url
    _say(f"{address}: {url}")
    return url


def compare(contents: Mapping[str, Path | bytes], remote: Mapping[str, RepoFile], removed: tuple[str, ...]) -> Changes:
    """
    Args:
        contents (`Mapping[str, Path | bytes]`): What shall be there.
        remote (`Mapping[str, RepoFile]`): What is there.
        removed (`tuple[str, ...]`): Patterns of the files that go if they are not in `contents`.
    """
    return Changes(
        {path: entry for path, entry in contents.items() if path not in remote or not _equal(entry, remote[path])},
        tuple(
            path
            for path in sorted(remote.keys() - contents.keys())
            if any(fnmatch.fnmatchcase(path, pattern) for pattern in removed)
        ),
    )


def _equal(entry: Path | bytes, remote: RepoFile) -> bool:
    size = len(entry) if isinstance(entry, bytes) else entry.stat().st_size
    if remote.lfs is not None:
        if size != remote.lfs.size:
            return False
        return (hashlib.sha256(entry).hexdigest() if isinstance(entry, bytes) else sha256(entry)) == remote.lfs.sha256
    if size != remote.size:
        return False
    content = entry if isinstance(entry, bytes) else entry.read_bytes()
    # As git names the content of a file.
    return hashlib.sha1(b"blob %d\0" % size + content).hexdigest() == remote.blob_id


def _prepare(api: HfApi, repository: Repository, address: str, private: bool, dry_run: bool) -> bool:
    """Creates the repository if it is not there; whether it was."""
    try:
        info = api.repo_info(address, repo_type=repository.type)
    except RepositoryNotFoundError:
        namespace = address.partition("/")[0]
        me = api.whoami()
        own = [me["name"], *(organisation["name"] for organisation in me.get("orgs", []))]
        if namespace not in own:
            raise ValueError(
                f"{address} does not exist, and cannot be created: the token belongs to {me['name']}, who can create "
                f"repositories under {', '.join(own)}. Is the namespace {namespace!r} spelled right?"
            ) from None
        if not dry_run:
            sdk = "gradio" if repository.type == "space" else None
            api.create_repo(address, repo_type=repository.type, private=private, space_sdk=sdk)
        return False
    if private and not info.private:
        raise ValueError(
            f"{address} exists already and is public. Make it private in its settings, or leave out --private."
        )
    return True


def _open_pull_request(api: HfApi, repository: Repository, address: str) -> str | None:
    """The revision of a pull request that an earlier call has opened."""
    found = api.get_repo_discussions(
        address,
        author=api.whoami()["name"],
        discussion_type="pull_request",
        discussion_status="open",
        repo_type=repository.type,
    )
    return next((request.git_reference for request in found if request.title.startswith(TITLE)), None)


def _remote_files(api: HfApi, repository: Repository, address: str, revision: str | None) -> dict[str, RepoFile]:
    try:
        tree = list(api.list_repo_tree(address, recursive=True, revision=revision, repo_type=repository.type))
    except RevisionNotFoundError:
        # A repository without a commit has no branch.
        return {}
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _explained(error: Exception, address: str, namespace: str) -> OSError:
    # What went wrong with a file is wrapped in what went wrong with the upload.
    cause = error
    while not isinstance(cause, HfHubHTTPError) and cause.__cause__ is not None:
        cause = cause.__cause__
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    again = "What has arrived is not sent again: repeat the same command."
    if status == 401:
        return OSError("The Hub does not know the token: `hf auth login`, or set HF_TOKEN to a valid one.")
    if status == 403:
        return OSError(f"The token may not write to {address}: it needs the permission to write in {namespace}.")
    if status is None:
        return OSError(f"The Hub could not be reached for {address} ({cause}). {again}")
    return OSError(f"The Hub has refused {address}: {cause}. {again}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
