"""A student learns what its teacher says of the training examples, whoever the teacher is."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from research import runs
from research.data import read_rows
from research.errors import UserError
from research.experiment import (
    EnsembleConfig,
    Experiment,
    ImagesConfig,
    LinearConfig,
    OptimizerConfig,
    RunConfig,
    TableConfig,
    TextConfig,
)
from research.prepared import Prepared
from research.restored import Restored
from research.training.folder import RunFolder


def experiment(folder: Path, **settings: object) -> Experiment:
    return Experiment(
        model=LinearConfig(),
        data=ImagesConfig(name="digits", batch=32),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, schedule="constant", clip=None),
        run=RunConfig(steps=6, log_every=1, directory=str(folder), tensorboard=False),
        **settings,  # type: ignore[arg-type]
    )


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def test_a_student_learns_the_mean_of_its_teacher_s_members(tmp_path: Path) -> None:
    """By NumPy: three linear members' mean probabilities, and the student's first gradient."""
    deep = EnsembleConfig("deep", members=3)
    teacher = runs.train(experiment(tmp_path / "teacher", ensemble=deep))
    told = EnsembleConfig(teacher=str(teacher))
    student = Prepared(experiment(tmp_path / "student", ensemble=told))
    which = np.array([0, 7, 1436])
    rows = read_rows(student.dataset.train, which)
    x = rows["inputs"].reshape(3, -1).astype(np.float64)
    bias, kernel = jax.tree.leaves(Restored(RunFolder(teacher)).state.members.parameters)
    each = softmax(np.einsum("nf,mfk->mnk", x, kernel) + np.asarray(bias)[:, None])
    np.testing.assert_allclose(rows["soft"], each.mean(0), rtol=1e-4, atol=1e-7)

    with jax.set_mesh(student.mesh):
        state = student.learner.init()
        own_bias, own_kernel = (np.asarray(leaf) for leaf in jax.tree.leaves(state.parameters))
        batch = student.batches.rows(0, np.arange(32))
        _, metrics = student.compile()(state, student.rows.place(batch))
    inputs = batch["inputs"].reshape(32, -1)
    p = softmax(inputs @ own_kernel + own_bias)
    loss = -(batch["soft"] * np.log(p)).sum(-1).mean()
    slope = (p - batch["soft"]) / 32
    norm = np.sqrt((slope.sum(0) ** 2).sum() + ((inputs.T @ slope) ** 2).sum())
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-4)
    # It is evaluated on labels, and members may be taught as well.
    with jax.set_mesh(student.mesh):
        assert student.evaluate(student.learner.init(), student.dataset.validation)["loss"] > 0
    taught = Prepared(experiment(tmp_path / "more", ensemble=replace(deep, teacher=str(teacher))))
    assert taught.batches.rows(0, [1])["soft"].shape == (1, 32, 10)

    other = replace(experiment(tmp_path / "other", ensemble=told), data=TableConfig(batch=8))
    with pytest.raises(UserError, match=r"was trained on digits of .*\(8, 8, 1\)"):
        Prepared(other).batches.rows(0, [0])


def test_a_student_learns_from_votes_on_public_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those for validation, whose labels nobody reads; and ε is told with all that it means."""
    deep = EnsembleConfig("deep", members=3, share="disjoint")
    teacher = runs.train(experiment(tmp_path / "teacher", ensemble=deep))
    told = EnsembleConfig(teacher=str(teacher), vote_noise=0.5, vote_seed=1)
    student = Prepared(experiment(tmp_path / "student", ensemble=told))
    validation = ImagesConfig(name="digits").load().validation
    assert len(student.dataset.train) == len(validation) == 180
    read = read_rows(student.dataset.train, np.arange(180))
    x = read["inputs"].reshape(180, -1)
    np.testing.assert_array_equal(
        x, read_rows(validation, np.arange(180))["inputs"].reshape(x.shape)
    )
    bias, kernel = jax.tree.leaves(Restored(RunFolder(teacher)).state.members.parameters)
    votes = (np.einsum("nf,mfk->mnk", x, kernel) + np.asarray(bias)[:, None]).argmax(-1)
    counts = np.eye(10)[votes].sum(0)  # [n, classes]
    # Three against none is 6 deviations ahead, and of one noise against nine hardly ever lost.
    agreed = counts.max(-1) == 3
    assert (read["targets"][agreed] == counts[agreed].argmax(-1)).mean() > 0.97
    assert "180 labels by the votes of 3 members with noise of deviation 0.5: ε = " in (
        printed := capsys.readouterr().out
    )
    assert "add or remove one, PLD accountant" in printed
    config = json.loads((teacher / "config.json").read_text())
    config["ensemble"]["share"] = "all"
    (teacher / "config.json").write_text(json.dumps(config))
    again = Prepared(experiment(tmp_path / "again", ensemble=told))
    with pytest.raises(UserError, match="one example could change the votes of many"):
        again.batches.rows(0, [0])


def test_text_has_no_teacher(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be " * 200)
    text = TextConfig(source=str(path), vocabulary="character", context=8, batch=8)
    told = EnsembleConfig(teacher="nowhere")
    with pytest.raises(UserError, match="not for text"):
        Prepared(Experiment(data=text, ensemble=told))
