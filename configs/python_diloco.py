"""A small language model of Python by four replicas that meet every 50 steps: no download.

    research train configs/python_diloco.py
    research train configs/python_diloco.py --cpu-devices 4

DiLoCo (Douillard et al. 2023, arXiv:2311.08105): inner AdamW with warm-up and cosine, outer
Nesterov with the paper's rate and momentum, 586 tokens a parameter. Expect a validation loss of
1.384 in 10,000 steps, 4 to 8 minutes on one core. Averaging gradients in every step, at a rate of
its own, reaches 1.378 with 50 times the bytes: `research reproduce diloco_2023` runs both. Larger
models or shorter runs are further apart: replicas that seldom meet pay at the beginning.

Four replicas take turns on one device, and have one each on four; `--mesh.fsdp 2 --cpu-devices 8`
splits each over two.
"""

from research.experiment import (
    ExchangeConfig,
    Experiment,
    MeshConfig,
    OptimizerConfig,
    RunConfig,
    TextConfig,
    TransformerConfig,
)

experiment = Experiment(
    model=TransformerConfig(layers=2, width=32, heads=2, initial_deviation=0.08, unroll=2),
    data=TextConfig(source="python_stdlib", vocabulary="byte", context=64, batch=32),
    optimizer=OptimizerConfig(
        learning_rate=5e-3,
        warmup_steps=100,
        final_learning_rate=5e-5,
        weight_decay=0.1,
        beta2=0.99,
    ),
    exchange=ExchangeConfig(
        rule="diloco", replicas=4, period=50, outer_learning_rate=0.7, outer_momentum=0.9
    ),
    mesh=MeshConfig(replica=-1, data=1),
    run=RunConfig(steps=10_000, log_every=100, evaluate_every=2500, checkpoint_every=2500),
)
