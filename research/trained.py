"""What is done with a run that was trained: evaluate it, sample from it, export it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from research.data import Vocabulary, outside, vocabulary_from_json
from research.errors import UserError
from research.experiment import Experiment
from research.learning import Learner, State
from research.models import TransformerConfig
from research.models.generation import generate
from research.parallel.processes import is_first
from research.parallel.saying import say
from research.prepared import Prepared, check_same_data
from research.reporting import nll_over_members, print_ensemble, reliability_diagram
from research.restored import Restored
from research.training.evaluation import ALL
from research.training.evaluation_of_clients import spreads_in_words
from research.training.evaluation_of_ensembles import evaluate_ensemble
from research.training.folder import RunFolder


def evaluate(
    path: Path, change: Callable[[Experiment], Experiment] = lambda e: e
) -> dict[str, Any]:
    """Metrics of a run's newest checkpoint on the test split, printed and returned."""
    folder = RunFolder.existing(path)
    restored = Restored(folder, change)
    prepared = Prepared(restored.experiment, restored.mesh)
    dataset = prepared.dataset
    check_same_data(folder, prepared)
    split = "validation" if dataset.test_is_validation else "test"
    with jax.set_mesh(prepared.mesh):
        metrics = prepared.evaluate(restored.state, dataset.test, prepared.clients("test"))
    shown = "  ".join(f"{n} {metrics[n]:.4f}" for n in ALL if n in metrics)
    say(f"step {restored.step}, {split} split of {dataset.name}: {shown}")
    if prepared.account is not None:
        metrics |= prepared.account.observe(restored.state)
        say(prepared.account.in_words(restored.state))
    with jax.set_mesh(prepared.mesh):
        audit = prepared.audit(restored.state)
    if audit is not None:
        metrics["epsilon_at_least"] = audit.epsilon
        say(audit.in_words(metrics.get("epsilon")))
    for line in spreads_in_words(metrics):
        say(line)
    result = {"step": restored.step, "split": split, "examples": len(dataset.test), **metrics}
    if prepared.experiment.ensemble.rule != "none":
        with jax.set_mesh(prepared.mesh):
            result["ensemble"] = judged(prepared, restored.state)
        if is_first():
            show(result, folder.path)
    if is_first():
        folder.write("evaluation", result)
    return result


def judged(prepared: Prepared, state: Any) -> dict[str, Any]:
    """What is written down of the ensemble that `state` is, as `evaluate_ensemble` says."""
    dataset, kind = prepared.dataset, prepared.experiment.ensemble.outside
    is_text = dataset.unit == "tokens"
    strange = None
    if kind != "none" and not is_text:
        strange = prepared.answers(state, outside(dataset.test, kind))
    return evaluate_ensemble(
        prepared.answers(state, dataset.test),
        list(prepared.answers(state, dataset.validation)),
        strange,
        stacking=not is_text,
    )


def show(result: dict[str, Any], folder: Path) -> None:
    """Prints the table of an evaluated ensemble, and draws what there is to see of it."""
    print_ensemble(result)
    drawn = {"reliability.svg": reliability_diagram, "nll_over_members.svg": nll_over_members}
    for name, draw in drawn.items():
        draw(result, folder / name)
    say(f"drawn: {' and '.join(str(folder / name) for name in drawn)}")


def sample(
    path: Path,
    prompt: str,
    tokens: int = 256,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
    change: Callable[[Experiment], Experiment] = lambda e: e,
) -> str:
    """Text from the language model of a run, printed and returned."""
    if tokens < 1 or temperature < 0 or (top_k is not None and top_k < 1):
        raise UserError(
            f"--tokens {tokens} and --top-k {top_k} must be 1 or more, "
            f"--temperature {temperature} 0 or more"
        )
    folder = RunFolder.existing(path)
    restored = Restored(folder, change)
    stored = folder.path / "vocabulary.json"
    if not stored.exists():
        raise UserError(
            f"{path} trained a {type(restored.experiment.model).__name__} on "
            f"{restored.data['name']}, which writes no text: give the run of a language model"
        )
    vocabulary = vocabulary_from_json(stored.read_text(encoding="utf-8"))
    key = jax.random.key(seed)
    with jax.set_mesh(restored.mesh):
        text = text_of(
            restored.learner, restored.state, vocabulary, prompt, tokens, key, temperature, top_k
        )
    say(text)
    return text


def export(path: Path, destination: Path) -> Path:
    """Writes a run's transformer (of an ensemble member 0, or the last snapshot) as a Hugging Face
    folder (safetensors and config.json)."""
    from research.models import huggingface

    restored = Restored(RunFolder.existing(path))
    model = restored.experiment.model
    if not isinstance(model, TransformerConfig):
        raise UserError(f"{path} trained a {type(model).__name__}: only transformers are exported")
    parameters = jax.device_get(restored.learner.parameters(restored.state))
    huggingface.export(model, restored.specification, parameters, destination)
    say(f"step {restored.step} of {path} is in {destination}")
    return destination


def text_of(
    learner: Learner,
    state: State,
    vocabulary: Vocabulary,
    prompt: str,
    tokens: int,
    key: jax.Array,
    temperature: float = 0.8,
    top_k: int | None = None,
) -> str:
    """`prompt` and the text that follows it (a line break stands for an empty prompt)."""
    made = generate(
        lambda state, tokens: learner.model(state)(tokens),
        state,
        vocabulary.encode(prompt or "\n"),
        tokens,
        learner.specification.shape[0],
        key,
        temperature,
        top_k,
        vocabulary.size,
    )
    return prompt + vocabulary.decode(made)
