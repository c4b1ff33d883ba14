"""A small language model of Python, from the source of the standard library: no download.

    make train
    research train configs/python_stdlib.py --cpu-devices 8

0.84 M parameters on bytes, over data 2 × fsdp 2 × tensor 2. Expect the loss to fall from 5.7 to
about 2 nats a byte in 300 steps, some minutes on 2 cores, and text at the end that has Python's
shape.
"""

from research.experiment import (
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
    mesh=MeshConfig(data=2, fsdp=2, tensor=2),
    run=RunConfig(
        steps=300, log_every=10, evaluate_every=100, evaluate_batches=20, checkpoint_every=100
    ),
)
