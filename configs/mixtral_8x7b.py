"""Mixtral 8x7B (Jiang et al. 2024, arXiv:2401.04088) for 256 devices: 46.7 B parameters, of which a
token meets 12.9 B.

    research train configs/mixtral_8x7b.py --data.source 'corpus/**/*.txt'

Every device of 8 along `expert` has one expert of every layer, of which width and hidden units are
split 8 × 4 ways. Nothing is dropped: a token goes where it is routed, by an all-to-all there and
one back. Sequences of 8,192 (the published model's go to 32,768), four million tokens a step. How
it was trained is not published: optimizer and batch are Llama 3's; the balance is that of its
published configuration, 0.02 of a mean over layers that counts both choices.
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
        experts=8,
        experts_per_token=2,
        balance_loss=0.02 * 2 / 32,
        router_z_loss=0.0,
        positions="rotary",
        rope_theta=1_000_000.0,
        normalization="rms",
        activation="swiglu",
        tied_head=False,
        vocabulary_size=32_000,
        dtype="bfloat16",
        remat="full",
    ),
    data=TextConfig(vocabulary="bpe", vocabulary_size=32_000, context=8192, batch=512),
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
    mesh=MeshConfig(data=1, fsdp=8, expert=8, tensor=4),
    run=RunConfig(
        steps=100_000, log_every=10, evaluate_every=1000, checkpoint_every=500, keep_checkpoints=3
    ),
)
