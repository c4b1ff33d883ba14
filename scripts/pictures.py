r"""Makes the README's picture from a run of configs/python_stdlib.py.

    research train configs/python_stdlib.py --cpu-devices 8 \
        --run.log-every 5 --run.evaluate-every 50
    python scripts/pictures.py RUN [--output docs/pictures/first_run.png]

On the left the run's losses, on the right where the arrays of its step lie on its mesh. The run's
data is not read, and nothing is computed.
"""

import argparse
import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SHOWN = {
    "embedding": ("embedding",),
    "attention's queries": ("blocks", "attention", "query", "kernel"),
    "MLP, up": ("blocks", "mlp", "up", "kernel"),
    "MLP, down": ("blocks", "mlp", "down", "kernel"),
    "norm's scale": ("final_norm", "scale"),
}


def main() -> int:
    """Draws the run named on the command line; the exit status."""
    parser = argparse.ArgumentParser(description="Draw a run for the README.")
    parser.add_argument("run", type=Path, help="folder of a run of configs/python_stdlib.py")
    parser.add_argument(
        "--output", type=Path, default=REPOSITORY / "docs" / "pictures" / "first_run.png"
    )
    arguments = parser.parse_args()

    os.environ["JAX_PLATFORMS"] = "cpu"  # before JAX is imported
    from research.errors import UserError

    try:
        draw(arguments.run, arguments.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:.0f} kB")
    return 0


def draw(run: Path, output: Path) -> None:
    """Draws `run` into the file `output`. Raises UserError for what is no such run."""
    import jax
    import matplotlib

    from research.errors import UserError
    from research.experiment import Experiment
    from research.learners import learner
    from research.models import Specification
    from research.parallel.layout import batch_sharding
    from research.reporting.curves import draw_losses, read_curve
    from research.reporting.picture import STYLE, Picture
    from research.reporting.placement import draw_placement
    from research.training.folder import RunFolder

    folder = RunFolder.existing(run)
    data = folder.read("data")
    jax.config.update("jax_num_cpu_devices", folder.read("environment")["devices"])
    experiment = Experiment.from_json(folder.read("config"))
    mesh = experiment.mesh.build()
    specification = Specification(tuple(data["shape"]), data["classes"])
    parameters = learner(experiment, specification, mesh).abstract_state.parameters

    batch = experiment.data.batch
    arrays = {
        "batch of tokens": jax.ShapeDtypeStruct(
            (batch, *specification.shape), "int32", sharding=batch_sharding(mesh, batch)
        )
    }
    for name, path in SHOWN.items():
        leaf = parameters
        for key in path:
            if key not in leaf:
                raise UserError(f"the model of {run} has no {'/'.join(path)}: give a transformer")
            leaf = leaf[key]
        arrays[name] = leaf

    with matplotlib.rc_context(STYLE):
        picture = Picture(9, 3.7)
        left, right = picture.subplots(1, 2, width_ratios=(1, 1.05), gridspec_kw={"wspace": 0.1})
        draw_losses(left, [read_curve(run)])
        draw_placement(right, arrays)
    picture.save(output)


if __name__ == "__main__":
    sys.exit(main())
