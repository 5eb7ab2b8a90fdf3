"""A server on this machine that speaks the part of the Hub's protocol that publishing and loading need.

What it does and the real one does too: namespaces and permissions, private repositories, git's names of contents,
large files through LFS with their checksums verified, branches and pull requests, validation of the metadata of cards.
What it does not: Xet, redirects to a content delivery network, rate limits.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

import yaml

TOKEN, USER, ORGANISATION = "hf_" + "t" * 34, "me", "lab"
# The Hub stores files in LFS by their size and by what `.gitattributes` says.
LFS_SUFFIX, LFS_BYTES = ".safetensors", 10_000_000
LICENSES = ("apache-2.0", "mit", "llama3.2", "other")
HARDWARE = ("cpu-basic", "t4-small", "l4x1", "l40sx1", "a100-large", "zero-a10g")


@dataclass
class Commit:
    """A commit: its title, the files it has changed, and all files after it."""

    title: str
    changed: list[str]
    files: dict[str, bytes]
    lfs: set[str]

    @property
    def oid(self) -> str:
        names = sorted((path, hashlib.sha1(content).hexdigest()) for path, content in self.files.items())
        return hashlib.sha1(repr((self.title, self.changed, names)).encode()).hexdigest()


@dataclass
class Repo:
    """A repository: branches and pull requests, each a list of commits."""

    kind: str
    name: str
    private: bool
    sdk: str | None
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((commit for branch in self.branches.values() for commit in branch if commit.oid == revision), None)


class FakeHub(ThreadingHTTPServer):
    """Serves from a thread until `stop` is called; `failures` maps a part of a path to the status to answer with."""

    daemon_threads = True

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.log: list[str] = []
        self.failures: dict[str, int] = {}
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def stop(self):
        self.shutdown()
        self.server_close()
        self.thread.join()

    def commits(self, kind: str, name: str, branch: str = "main") -> list[Commit]:
        """The commits after the one that the Hub itself makes."""
        return self.repos[kind, name].branches[branch][1:]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content=None, status=200, body=None, **headers):
        body = json.dumps(content if content is not None else {}).encode() if body is None else body
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status, message, code=""):
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def handle_request(self):
        body = self.body()
        address = urlparse(self.path)
        with self.server.lock:
            self.server.log.append(f"{self.command} {unquote(address.path)}")
            for part, status in self.server.failures.items():
                if part in unquote(address.path):
                    return self.fail(status, "made to fail")
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            for pattern, method in ROUTES:
                if match := re.fullmatch(pattern, address.path):
                    return method(self, *(unquote(group or "") for group in match.groups()), query=query, body=body)
        return self.fail(404, f"no such route: {address.path}")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request  # noqa: N815

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    @property
    def is_me(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repo(self, kind, name):
        repo = self.server.repos.get((kind, name))
        if repo is None or (repo.private and not self.is_me):
            self.fail(404 if self.is_me else 401, "Repository not found", "RepoNotFound")
            return None
        return repo

    def may_write(self, name):
        if not self.is_me:
            self.fail(401, "Invalid username or password.")
        elif name.partition("/")[0] not in (USER, ORGANISATION):
            self.fail(403, "You don't have the rights to write here")
        else:
            return True
        return False

    # Accounts and repositories

    def whoami(self, query, body):
        if not self.is_me:
            return self.fail(401, "Invalid credentials")
        token = {"accessToken": {"role": "write"}}
        return self.answer({"type": "user", "name": USER, "orgs": [{"name": ORGANISATION}], "auth": token})

    def validate_yaml(self, query, body):
        request = json.loads(body)
        metadata = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", request["content"], flags=re.DOTALL)[1])
        errors = []
        if metadata.get("license") not in LICENSES:
            errors.append('"license" must be one of the known identifiers')
        if metadata.get("license") == "other" and not metadata.get("license_link"):
            errors.append('"license_link" is required')
        if request["repoType"] == "space":
            if metadata.get("sdk") != "gradio" or not isinstance(metadata.get("sdk_version"), str):
                errors.append('"sdk_version" is required')
            if metadata.get("suggested_hardware") not in HARDWARE:
                errors.append('"suggested_hardware" is not known')
            if len(metadata.get("short_description", "")) > 60:
                errors.append('"short_description" length must be less than or equal to 60 characters long')
        elif not all(
            result["source"]["url"] for result in metadata.get("model-index", [{"results": []}])[0]["results"]
        ):
            errors.append('"model-index" has a result without a source')
        return self.answer({"errors": [{"message": error} for error in errors]}, 400 if errors else 200)

    def create(self, query, body):
        request = json.loads(body)
        kind, name = request.get("type", "model"), f"{request.get('organization') or USER}/{request['name']}"
        if not self.may_write(name):
            return None
        if (kind, name) in self.server.repos:
            return self.fail(409, "You already created this repo")
        repo = Repo(kind, name, request.get("visibility") == "private", request.get("sdk"))
        files = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}
        repo.branches["main"] = [Commit("initial commit", [".gitattributes"], files, set())]
        self.server.repos[kind, name] = repo
        prefix = "" if kind == "model" else f"{kind}s/"
        return self.answer({"url": f"{self.server.url}/{prefix}{name}", "name": name, "id": name})

    def info(self, kind, name, revision, query, body):
        if (repo := self.repo(kind, name)) is None:
            return None
        if (commit := repo.at(revision or "main")) is None:
            return self.fail(404, "Revision not found", "RevisionNotFound")
        readme = commit.files.get("README.md", b"").decode()
        front = re.match(r"---\n(.*?)\n---\n", readme, flags=re.DOTALL)
        metadata = yaml.safe_load(front[1]) if front else {}
        content = {
            "_id": "0",
            "id": name,
            "modelId": name,
            "sha": commit.oid,
            "private": repo.private,
            "tags": metadata.get("tags", []),
            "downloads": 0,
            "likes": 0,
            "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": path} for path in commit.files],
        }
        content |= {key: metadata[key] for key in ("pipeline_tag", "library_name") if key in metadata}
        return self.answer(content)

    def tree(self, kind, name, revision, query, body):
        if (repo := self.repo(kind, name)) is None:
            return None
        if (commit := repo.at(revision)) is None:
            return self.fail(404, "Revision not found", "RevisionNotFound")
        return self.answer([_entry(path, content, path in commit.lfs) for path, content in commit.files.items()])

    def discussions(self, kind, name, query, body):
        if (repo := self.repo(kind, name)) is None:
            return None
        requests = [
            {
                "num": int(branch.rpartition("/")[2]),
                "title": commits[1].title,
                "author": {"name": USER},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "status": "open",
                "repo": {"name": name, "type": kind},
                "isPullRequest": True,
            }
            for branch, commits in repo.branches.items()
            if branch != "main"
        ]
        return self.answer({"discussions": requests, "count": len(requests), "start": 0})

    # Uploading

    def preupload(self, kind, name, revision, query, body):
        if self.repo(kind, name) is None or not self.may_write(name):
            return None
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIX) or file["size"] > LFS_BYTES else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        return self.answer({"files": files})

    def lfs_batch(self, kind, name, query, body):
        if not self.may_write(name):
            return None
        objects = []
        for entry in json.loads(body)["objects"]:
            if entry["oid"] not in self.server.lfs:
                entry["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{entry['oid']}"}}
            objects.append(entry)
        return self.answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid, query, body):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.fail(400, "the content is not what was announced")
        self.server.lfs[oid] = body
        return self.answer()

    def commit(self, kind, name, revision, query, body):
        if (repo := self.repo(kind, name)) is None or not self.may_write(name):
            return None
        last = repo.at(revision)
        files, lfs, changed, title = dict(last.files), set(last.lfs), [], ""
        for line in body.decode().splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                title = value["summary"]
                continue
            changed.append(value["path"])
            lfs.discard(value["path"])
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
                lfs.add(value["path"])
            elif key == "deletedFile":
                del files[value["path"]]
        commit, address = Commit(title, changed, files, lfs), f"{self.server.url}/{name}"
        content = {"success": True, "commitOid": commit.oid, "commitUrl": f"{address}/commit/{commit.oid}"}
        if query.get("create_pr") == "1":
            number = len(repo.branches)
            repo.branches[f"refs/pr/{number}"] = [last, commit]
            content["pullRequestUrl"] = f"{address}/discussions/{number}"
        else:
            repo.branches[revision].append(commit)
        return self.answer(content)

    # Downloading

    def resolve(self, kind, name, revision, path, query, body):
        if (repo := self.repo(kind or "model", name)) is None:
            return None
        commit = repo.at(revision)
        if commit is None:
            return self.fail(404, "Revision not found", "RevisionNotFound")
        if path not in commit.files:
            return self.answer(status=404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit.oid)
        content = commit.files[path]
        return self.answer(body=content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=commit.oid)


def _entry(path: str, content: bytes, is_lfs: bool) -> dict:
    entry = {"type": "file", "path": path, "size": len(content)}
    if not is_lfs:
        return {**entry, "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
    # git itself only has a pointer to the content.
    pointer = f"oid sha256:{hashlib.sha256(content).hexdigest()}\nsize {len(content)}\n"
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": len(pointer)}
    return {**entry, "oid": hashlib.sha1(pointer.encode()).hexdigest(), "lfs": lfs}


REPO = r"(model|space)s/([^/]+/[^/]+)"
ROUTES = (
    (r"/api/whoami-v2", Handler.whoami),
    (r"/api/validate-yaml", Handler.validate_yaml),
    (r"/api/repos/create", Handler.create),
    (rf"/api/{REPO}/preupload/([^/]+)", Handler.preupload),
    (rf"/api/{REPO}/commit/([^/]+)", Handler.commit),
    (rf"/api/{REPO}/tree/([^/]+)", Handler.tree),
    (rf"/api/{REPO}/discussions", Handler.discussions),
    (rf"/api/{REPO}(?:/revision/([^/]+))?", Handler.info),
    (r"/(?:(space)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"/lfs/([0-9a-f]{64})", Handler.lfs_put),
    (r"/(?:(space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
)
