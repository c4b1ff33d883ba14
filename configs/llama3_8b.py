"""Llama 3 8B (Grattafiori et al. 2024, arXiv:2407.21783) for 256 devices: 8.03 B parameters.

    research train configs/llama3_8b.py --data.source 'corpus/**/*.txt'

Sequences of 8,192, four million tokens a step, parameters and optimizer state split over 64
devices, heads and hidden units over 4. With 32 bytes of state a parameter (parameters, gradients
and the two moments in float32, doubled while they are updated) a device holds about 1 GB of it. To
start from published weights: --run.initialize-from FOLDER (safetensors).
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
    model=TransformerConfig(
        layers=32,
        width=4096,
        heads=32,
        key_value_heads=8,
        hidden=14_336,
        positions="rotary",
        rope_theta=500_000.0,
        normalization="rms",
        activation="swiglu",
        tied_head=False,
        vocabulary_size=128_256,
        dtype="bfloat16",
        remat="full",
    ),
    data=TextConfig(vocabulary="bpe", vocabulary_size=128_000, context=8192, batch=512),
    optimizer=OptimizerConfig(
        learning_rate=3e-4,
        warmup_steps=2000,
        final_learning_rate=3e-6,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        clip=1.0,
        microbatches=8,
    ),
    mesh=MeshConfig(data=1, fsdp=64, tensor=4),
    run=RunConfig(
        steps=100_000, log_every=10, evaluate_every=1000, checkpoint_every=500, keep_checkpoints=3
    ),
)
