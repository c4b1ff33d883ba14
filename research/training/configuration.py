"""What the loop is asked to do: for how long, and what it writes down on the way."""

from dataclasses import dataclass

from research.errors import UserError


@dataclass(frozen=True)
class RunConfig:
    """Length, seed and habits of a run."""

    directory: str | None = None
    """Folder of the run (None: runs/<config>-<date>-<time>)."""

    steps: int = 1000
    """Updates in all (steps)."""

    seed: int = 0
    """Seed of initialization, data order and dropout."""

    log_every: int = 10
    """Steps from one logged loss to the next."""

    evaluate_every: int = 0
    """Steps from one evaluation on the validation split to the next (0: only at the end)."""

    evaluate_batches: int = 0
    """Batches of an evaluation (0: the whole split)."""

    checkpoint_every: int = 500
    """Steps from one checkpoint to the next (0: only at the end)."""

    snapshot_every: int = 10
    """Steps from one snapshot in host memory to the next, under `research launch --elastic` (0:
    none). A failure costs the steps since the newest."""

    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""

    keep_every: int | None = None
    """Checkpoints at multiples of so many steps are kept for good (None: none)."""

    sample_tokens: int = 256
    """Tokens of text generated at the end of a language model's run (0: none)."""

    initialize_from: str | None = None
    """Hugging Face folder (safetensors) whose weights the run starts from (None: random)."""

    tensorboard: bool = True
    """Writes TensorBoard events into the run folder."""

    wandb_project: str | None = None
    """Weights & Biases project that is logged to as well (None: none)."""

    compilation_cache: bool = True
    """Keeps compiled programs in the cache folder, for the next start."""

    def check(self) -> None:
        """Raises UserError for a number that no run can have."""
        for name, least in (
            ("steps", 0),
            ("log_every", 1),
            ("evaluate_every", 0),
            ("evaluate_batches", 0),
            ("checkpoint_every", 0),
            ("snapshot_every", 0),
            ("keep_checkpoints", 1),
            ("sample_tokens", 0),
        ):
            value = getattr(self, name)
            if value < least:
                flag = name.replace("_", "-")
                raise UserError(f"--run.{flag} {value} must be {least} or more")
        if self.keep_every is not None and self.keep_every < 1:
            raise UserError(f"--run.keep-every {self.keep_every} must be 1 or more, or None")
