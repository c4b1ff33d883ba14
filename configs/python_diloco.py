"""A small language model of Python by four replicas that meet every 20 steps: no download.

    research train configs/python_diloco.py --cpu-devices 8
    research train configs/python_diloco.py --cpu-devices 8 --exchange.rule every_step

DiLoCo (Douillard et al. 2023, arXiv:2311.08105): inner AdamW, outer Nesterov. Model, data, inner
optimizer and tokens are those of `python_stdlib`; a replica has a quarter of the batch, over two
devices.
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
    model=TransformerConfig(layers=4, width=128, heads=4, initial_deviation=0.05),
    data=TextConfig(source="python_stdlib", vocabulary="byte", context=128, batch=16),
    optimizer=OptimizerConfig(
        learning_rate=2e-3, warmup_steps=20, final_learning_rate=2e-4, weight_decay=0.1, beta2=0.99
    ),
    exchange=ExchangeConfig(rule="diloco", period=20, outer_learning_rate=0.7, outer_momentum=0.9),
    mesh=MeshConfig(replica=4, data=1, fsdp=2),
    run=RunConfig(
        steps=600, log_every=10, evaluate_every=200, evaluate_batches=50, checkpoint_every=200
    ),
)
