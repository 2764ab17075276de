from __future__ import annotations

import pytest

from autoft.errors import RunFolderError
from autoft.export import export
from autoft.rundir import RunDir, Selection, TrialConfig, TrialResult, VariantResult


def test_a_link_among_the_files_that_leads_out_of_the_run_is_not_followed(tmp_path):
    run = RunDir(tmp_path / "link" / "run")
    folder = run.path / "trials/0000/variants/none"
    folder.mkdir(parents=True)
    # Where the run itself is reached by a link, nothing leads out of it.
    run = RunDir(tmp_path / "run")
    run.path.symlink_to(tmp_path / "link" / "run")
    (folder / "config.json").write_text("{}")
    config = TrialConfig(number=0, kind="default", model="m", pipeline="full", params={}, seed=0)
    variant = VariantResult(name="none", state="complete", folder="trials/0000/variants/none")
    result = TrialResult(number=0, state="complete", config=config, variants=[variant])
    selection = Selection(trial=0, variant="none", objective="accuracy", reason="")
    best = export(run, None, selection, [result])
    assert [path.name for path in best.iterdir()] == ["config.json"]
    (tmp_path / "secret").write_text("secret")
    (folder / "model.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(RunFolderError, match=r"outside the run folder: .*model\.safetensors"):
        export(run, None, selection, [result])
    assert [path.name for path in best.iterdir()] == ["config.json"]
