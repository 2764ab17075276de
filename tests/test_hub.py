"""``autoft push`` against a hub of our own on this machine, which speaks the few requests that an upload makes."""

from __future__ import annotations

import base64
import json
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest

from autoft.api import _earlier_revisions, _pinned, _with_named
from autoft.artifact import Manifest
from autoft.card import front_matter, license_of
from autoft.contracts import ModelSource, Regularizer, TaskContext
from autoft.errors import HubError, ModelError, RecipeError, RunFolderError
from autoft.hardware import Hardware
from autoft.hub import push_folder
from autoft.plans.models import base_model
from autoft.plans.plan import read_plan
from autoft.plans.planner import make_plan
from autoft.plans.targets import plan_target
from autoft.plugins import load_plugins
from autoft.pretrained import load_network, named_model, trained_model
from autoft.recipe import Recipe, recipe_from_mapping
from autoft.rundir import RunDir, write_json
from autoft.space import Categorical, SearchSpace
from autoft.strategies.distillation import Distillation

TOKEN = "hf_" + "x" * 30


class Hub(ThreadingHTTPServer):
    """Keeps what is uploaded; one name is public already, one token may write."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.files: dict[str, bytes] = {}
        self.repos: dict[str, bool] = {"me/seen": False}
        """By name, whether it is private."""
        self.asked: list[tuple[str, str]] = []
        self.discussions: list[dict[str, object]] = []
        """Of me/pickled, a model without safetensors."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Requests(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, format, *args) -> None:
        pass

    def answer(self, value: object, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def allowed(self) -> bool:
        self.server.asked.append((self.command, self.path))
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.answer({"error": "who are you?"}, 401)
        return False

    def do_GET(self) -> None:
        if not self.allowed():
            return
        name = self.path.removeprefix("/api/models/").split("?")[0].removesuffix("/revision/main")
        if name in self.server.repos:
            siblings = [{"rfilename": path} for path in self.server.files]
            self.answer({"id": name, "private": self.server.repos[name], "sha": "0" * 40, "siblings": siblings})
        elif (asked := re.fullmatch(r"/api/datasets/me/films(?:/revision/(\w+))?", self.path)) is not None:
            commits = {None: "a" * 40, "v2": "b" * 40}
            self.answer({"id": "me/films", "sha": commits.get(asked[1], asked[1])})
        elif self.path.startswith("/api/models/me/pickled/discussions?"):
            self.answer({"discussions": self.server.discussions, "count": len(self.server.discussions), "start": 0})
        elif self.path == "/api/models/me/pickled/revision/refs%2Fpr%2F7":
            self.answer({"id": "me/pickled", "sha": "7" * 40})
        elif re.fullmatch(r"/me/pickled/resolve/\w+/config\.json", self.path) is not None:
            self.answer({"model_type": "bert"}, headers={"X-Repo-Commit": "e" * 40, "ETag": '"e"'})
        elif self.path.startswith("/me/pickled/resolve/"):
            self.answer({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "e" * 40})
        else:
            self.answer({"error": "no such repository"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.allowed():
            return
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = "/".join(filter(None, (given.get("organization") or "me", given["name"])))
            taken = name in self.server.repos
            private = given.get("visibility") == "private" or given.get("private") is True
            self.server.repos.setdefault(name, private)
            self.answer({"url": f"{self.server.address}/{name}", "id": name, "name": name}, 409 if taken else 200)
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            name = self.path.removeprefix("/api/models/").split("/commit/")[0]
            address = f"{self.server.address}/{name}/commit/{'1' * 40}"
            self.answer({"commitUrl": address, "commitOid": "1" * 40, "success": True})
        else:
            self.answer({"error": self.path}, 500)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    # What the variables HF_HUB_OFFLINE and HF_ENDPOINT become when the library is imported, which it is already here.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def manifest(**changes) -> Manifest:
    figures = {"test": {"accuracy": {"value": 0.8125, "low": 0.7, "high": 0.9, "n": 80}}, "validation": {}, "costs": {}}
    given = {
        "autoft": "0.1.0",
        "task": "text-classification",
        "format": "transformers",
        "model": "distilbert/distilbert-base-uncased",
        "config": {},
        "facts": {"labels": ["bad", "good"]},
        "options": {},
        "params": {},
        "max_length": 64,
        "variant": "none",
        "measured": figures,
    }
    return Manifest.model_validate({**given, **changes})


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    card = load_plugins().task("text-classification").card
    head = front_matter(card, manifest(), None, library="transformers", name="reviews")
    (folder / "README.md").write_text(f"---\n{head}\n---\n# reviews\n", encoding="utf-8")
    (folder / "autoft.json").write_text(manifest().model_dump_json(), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / ".lock").write_text("")
    return folder


def test_all_files_arrive_as_they_are_and_only_the_owner_sees_them(hub, model):
    address = push_folder(model, "me/reviews")
    assert address.endswith("/me/reviews")
    assert hub.repos["me/reviews"] is True
    assert hub.files == {p.name: p.read_bytes() for p in model.iterdir() if p.name != ".lock"}


def test_what_links_lead_to_elsewhere_is_not_sent(hub, model, tmp_path):
    (model / "vocab.txt").symlink_to(model / "model.safetensors")
    push_folder(model, "me/reviews")
    (tmp_path / "secret").write_text("secret")
    (model / "notes.txt").symlink_to(tmp_path / "secret")
    hub.files.clear()
    with pytest.raises(ModelError, match=r"notes\.txt: is a link that leads out"):
        push_folder(model, "me/reviews")
    assert hub.files == {}
    # As the hub's own cache has it.
    cached = tmp_path / "models--me--reviews" / "snapshots" / ("c" * 40)
    shutil.copytree(model, cached, ignore=shutil.ignore_patterns("notes.txt"))
    (cached.parents[1] / "blobs").mkdir()
    (cached / "model.safetensors").rename(cached.parents[1] / "blobs" / "abc")
    (cached / "model.safetensors").symlink_to("../../blobs/abc")
    push_folder(cached, "me/reviews")
    assert "model.safetensors" in hub.files


@pytest.mark.parametrize(("file", "key"), [("autoft.json", "model"), ("preprocessing.json", "base_model")])
def test_a_model_that_says_where_on_this_machine_its_base_was_is_not_sent(file, key, hub, model):
    path = model / file
    told = json.loads(path.read_text()) if path.is_file() else {}
    write_json(path, {**told, key: "/home/user/bert"})
    with pytest.raises(ModelError, match=r"says where on this machine the base model was \(/home/user/bert\)"):
        push_folder(model, "me/reviews")
    assert hub.asked == []
    write_json(path, {**told, key: "bert"})
    push_folder(model, "me/reviews")
    assert "/home/user" not in str(hub.files)


def test_what_an_older_version_wrote_of_its_base_is_read_without_the_path():
    assert manifest(model="/home/user/bert").model == "bert"


def test_a_second_push_replaces_what_is_there(hub, model):
    push_folder(model, "me/reviews")
    (model / "model.safetensors").write_bytes(b"other")
    push_folder(model, "me/reviews")
    assert hub.files["model.safetensors"] == b"other"
    assert hub.repos["me/reviews"] is True


def test_it_is_public_only_where_that_is_said(hub, model):
    push_folder(model, "me/open", public=True)
    assert hub.repos["me/open"] is False
    with pytest.raises(HubError, match="is public; give --public"):
        push_folder(model, "me/seen")
    assert "model.safetensors" in hub.files
    hub.files.clear()
    push_folder(model, "me/seen", public=True)
    assert "model.safetensors" in hub.files


def test_of_a_run_best_is_taken(hub, model, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "plan.json").write_text("{}")
    model.rename(run / "best")
    push_folder(run, "me/reviews")
    assert set(hub.files) == {"README.md", "autoft.json", "model.safetensors"}


def test_without_a_token_nothing_is_asked(hub, model, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="set the environment variable HF_TOKEN"):
        push_folder(model, "me/reviews")
    assert hub.asked == []


def test_a_refused_token_is_said_and_not_shown(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_and_secret")
    with pytest.raises(HubError, match="the token in HF_TOKEN is not known there") as told:
        push_folder(model, "me/reviews")
    assert "hf_wrong_and_secret" not in str(told.value)


def test_a_token_with_a_line_break_after_it_is_taken(hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN}\r\n")
    push_folder(model, "me/model")
    assert "README.md" in hub.files


@pytest.mark.parametrize("token", ["hf_secret\nhf_secret", "hf_secret one", "hf_secret\N{EN DASH}"])
def test_a_token_that_is_none_is_said_and_not_shown(token, hub, model, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match="no token has") as told:
        push_folder(model, "me/model")
    assert "secret" not in str(told.value)
    assert not hub.asked


def test_the_token_is_written_nowhere(hub, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    push_folder(model, "me/reviews")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]


def test_no_network_is_said(hub, model, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"http://127\.0\.0\.1:9: cannot be reached"):
        push_folder(model, "me/reviews")


def test_offline_is_said(hub, model, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        push_folder(model, "me/reviews")


def test_a_name_that_is_none_is_said(hub, model):
    with pytest.raises(HubError, match="is no name of a repository"):
        push_folder(model, "me/re views!")


def test_folders_without_a_model_or_a_card_are_refused(hub, model, tmp_path):
    with pytest.raises(RunFolderError, match="no such folder"):
        push_folder(tmp_path / "none", "me/reviews")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match="holds no model"):
        push_folder(tmp_path / "empty", "me/reviews")
    (model / "README.md").write_text("---\nlicense: [\n---\n# no card\n")
    with pytest.raises(ModelError, match="is no card that a hub can read"):
        push_folder(model, "me/reviews")
    (model / "README.md").unlink()
    with pytest.raises(RunFolderError, match=r"has no README\.md"):
        push_folder(model, "me/reviews")
    assert hub.asked == []


def test_the_head_of_a_card_reads_back_as_the_hub_reads_it(model):
    from huggingface_hub import ModelCard

    data = ModelCard.load(model / "README.md").data
    assert data.base_model == "distilbert/distilbert-base-uncased"
    assert data.pipeline_tag == "text-classification"
    assert data.library_name == "transformers"
    assert data.license is None
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.8125)


@pytest.mark.parametrize("name", ["../models/mine", "package://somewhere/model", "./here"])
def test_a_base_model_of_this_machine_is_no_name_of_the_hub(name):
    card = load_plugins().task("text-classification").card
    assert "base_model" not in front_matter(card, manifest(model=name), None, library="onnx", name="reviews")


def test_the_licence_is_that_of_the_card_beside_the_weights(tmp_path):
    planned = SimpleNamespace(models=[SimpleNamespace(name="mine", path=str(tmp_path))])
    assert license_of("mine", planned) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Weights\n")
    assert license_of("mine", planned) == "apache-2.0"
    (tmp_path / "README.md").write_text("# A page\n")
    assert license_of("mine", planned) is None


def test_the_resolved_recipe_names_the_commits_and_a_run_goes_on_with_its_own(hub, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--me--encoder"
    shutil.copytree(tiny_model, cached / "snapshots" / ("c" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("c" * 40)
    data = {"train": "hub://me/films:small#train", "validation": "own.csv", "test": "hub://me/films@v2#test"}
    recipe = recipe_from_mapping(
        {"task": "text-classification", "model": ["me/encoder", str(tiny_model)], "data": data}
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plan = make_plan(recipe, load_plugins(), Hardware.probe())
    assert [one.revision for one in plan.models] == ["c" * 40, None]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    catalog = load_plugins()
    pinned, planned = _pinned(recipe, plan, {}, catalog)
    assert pinned.model == [f"me/encoder@{'c' * 40}", str(tiny_model)]
    assert pinned.data.train == f"hub://me/films:small@{'a' * 40}#train"
    assert pinned.data.validation == "own.csv"
    assert pinned.data.test == f"hub://me/films@{'b' * 40}#test"
    again, _ = _pinned(recipe, plan, {**planned.revisions, "hub://me/films:small#train": "d" * 40}, catalog)
    assert again.data.train == f"hub://me/films:small@{'d' * 40}#train"
    assert _pinned(pinned, plan, {}, catalog)[0].data == pinned.data
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    free, planned = _pinned(recipe, plan, {}, catalog)
    assert free.data == recipe.data
    assert [warning.partition(": the hub cannot be asked")[0] for warning in planned.warnings] == [
        *plan.warnings,
        "data.train: hub://me/films:small#train is pinned to no commit",
        "data.test: hub://me/films@v2#test is pinned to no commit",
    ]
    assert _pinned(pinned, plan, {}, catalog)[1].warnings == plan.warnings


class Judged(Regularizer):
    """A strategy of somebody else that loads a model by its name."""

    name: ClassVar[str] = "judged"
    summary: ClassVar[str] = "asks another model"
    space: ClassVar[SearchSpace] = {"judge": Categorical((None,), open=True)}
    models: ClassVar[frozenset[str]] = frozenset({"judge"})


NAMED = ("me/student", "me/teacher", "me/there", "me/back", "me/judge")


@pytest.fixture
def moving(tmp_path, monkeypatch, tiny_model, small_model):
    """Models in a cache of the hub's own form; the function that is given moves ``main`` of all to another commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    places = [tmp_path / f"models--{name.replace('/', '--')}" for name in NAMED]
    for place in places:
        for commit, folder in (("a" * 40, tiny_model), ("b" * 40, small_model)):
            (place / "snapshots").mkdir(parents=True, exist_ok=True)
            (place / "snapshots" / commit).symlink_to(folder)
        (place / "refs").mkdir()

    def move(commit: str) -> None:
        for place in places:
            (place / "refs" / "main").write_text(commit)

    return move


def named_by_strategies(tiny_model) -> Recipe:
    return recipe_from_mapping(
        {
            "task": "text-classification",
            "model": str(tiny_model),
            "data": "own.csv",
            "compress": ["none", "distillation"],
            "augment": ["none", "back-translation"],
            "regularize": ["none", "judged"],
            "space": {
                "distillation": {"student": "me/student", "teacher": "me/teacher"},
                "back-translation": {"forward": "me/there", "backward": "me/back"},
                "judged.judge": [str(tiny_model), "me/judge"],
            },
        }
    )


def test_models_that_strategies_name_stay_those_that_the_run_began_with(moving, tiny_model, small_model, tmp_path):
    catalog = load_plugins()
    catalog = replace(catalog, strategies={**catalog.strategies, "judged": Judged()})
    recipe = named_by_strategies(tiny_model)
    moving("a" * 40)
    plan = make_plan(recipe, catalog, Hardware.probe_cpu())
    assert plan.revisions == dict.fromkeys(NAMED, "a" * 40)
    pinned, plan = _pinned(recipe, plan, {}, catalog)
    kept = {name: f"{name}@{'a' * 40}" for name in NAMED}
    assert pinned.space == {
        "distillation.student": kept["me/student"],
        "distillation.teacher": kept["me/teacher"],
        "back-translation.forward": kept["me/there"],
        "back-translation.backward": kept["me/back"],
        "judged.judge": [str(tiny_model), kept["me/judge"]],
    }
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    write_json(run.plan, plan.model_dump(mode="json"))
    moving("b" * 40)
    assert make_plan(recipe, catalog, Hardware.probe_cpu()).revisions["me/judge"] == "b" * 40
    again, plan = _pinned(
        recipe, make_plan(recipe, catalog, Hardware.probe_cpu(), revisions=_earlier_revisions(run)), {}, catalog
    )
    assert again == pinned
    # As a worker or a node reads it.
    plan = read_plan(run.plan)
    for wrong in ("refs/pr/1", "a" * 40 + "#test", "../other"):
        write_json(run.plan, {**plan.model_dump(mode="json"), "revisions": {"me/judge": wrong}})
        assert _earlier_revisions(run) == {}
    target = plan_target(plan, catalog.task(plan.task), plan.models[0], params={})
    assert named_model("me/judge", target).revision == "a" * 40
    assert trained_model("me/teacher", target).revision == "a" * 40
    assert named_model(kept["me/judge"]).revision == "a" * 40
    target = replace(target, context=replace(target.context, facts={"labels": ["bad", "good"], "problem": "single"}))
    student, own = Distillation().transform(None, target, [], {"student": "me/student"})
    assert student.config.hidden_size == own.config["hidden_size"] == 32


def test_a_model_that_an_added_trial_names_first_is_kept_too(moving, tiny_model, tmp_path):
    catalog, run = load_plugins(), RunDir(tmp_path / "run")
    recipe = recipe_from_mapping({"task": "text-classification", "model": str(tiny_model), "data": "own.csv"})
    plan = make_plan(recipe, catalog, Hardware.probe_cpu())
    config = plan.default_config().model_copy(update={"params": {"back-translation.forward": "me/there"}})
    run.path.mkdir()
    moving("a" * 40)
    assert _with_named(plan, config, run, catalog).revisions == {"me/there": "a" * 40}
    moving("b" * 40)
    told = read_plan(run.plan)
    assert _with_named(told, config, run, catalog).revisions == {"me/there": "a" * 40}
    assert _pinned(recipe, plan, told.revisions, catalog)[1].revisions == {"me/there": "a" * 40}
    config = config.model_copy(update={"params": {"back-translation.forward": "me/nowhere"}})
    with pytest.raises(RecipeError, match=r"--set back-translation\.forward=me/nowhere: .* is no folder here"):
        _with_named(told, config, run, catalog)


def test_converted_weights_are_taken_from_no_pull_request_that_the_recipe_does_not_name(hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    anybody = {
        "num": 6,
        "title": "Adding `safetensors` variant of this model",
        "author": {"name": "mallory"},
        "status": "open",
        "isPullRequest": True,
        "repo": {"name": "me/pickled", "type": "model"},
        "createdAt": "2026-01-01T00:00:00.000Z",
    }
    for offered, expected in (
        ([anybody], "me/pickled@commit"),
        ([anybody, {**anybody, "num": 7, "author": {"name": "SFconvertbot"}}], f"me/pickled@{'7' * 40}"),
    ):
        hub.discussions = offered
        with pytest.raises(ModelError, match=f"holds no safetensors weights at commit {'e' * 40}; .* {expected}"):
            base_model("me/pickled", tmp_path)
    assert not [path for _, path in hub.asked if "refs%2Fpr%2F6" in path]
    hub.asked.clear()
    source, context = ModelSource("me/pickled", "me/pickled"), TaskContext({}, {}, {}, 16)
    with pytest.raises(ModelError, match=r"does not appear to have a file named model\.safetensors"):
        load_network("AutoModelForSequenceClassification", source, context)
    # As transformers begins to have them converted.
    assert ("GET", "/api/models/me/pickled") not in hub.asked


def test_a_model_that_a_strategy_names_and_the_hub_does_not_give_is_told_with_its_key(moving, tiny_model):
    given = {"task": "text-classification", "model": str(tiny_model), "data": "own.csv", "compress": "distillation"}
    recipe = recipe_from_mapping({**given, "space": {"distillation.student": "me/nowhere"}})
    with pytest.raises(RecipeError, match=r"space\.distillation\.student: 'me/nowhere' is no folder here, and the hub"):
        make_plan(recipe, load_plugins(), Hardware.probe_cpu())
