"""GPT-2 124M (Radford et al. 2019) in bfloat16, sequences of 1,024, about half a million tokens a
step.

    research train configs/gpt2_124m.py --data.source 'corpus/**/*.txt'

The hyper-parameters are nanoGPT's reproduction on OpenWebText, which reaches a validation loss of
about 2.85 after 300 billion tokens (600,000 steps, four days on 8 A100). The default text here is
the Python standard library, 10 MB: enough to measure speed and memory, not to learn English. The
vocabulary is learned from the text given; its table has 50,304 rows, a multiple of 128.
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
        layers=12,
        width=768,
        heads=12,
        activation="gelu",
        vocabulary_size=50_304,
        dtype="bfloat16",
        remat="none",
    ),
    data=TextConfig(vocabulary="bpe", vocabulary_size=50_257, context=1024, batch=480),
    optimizer=OptimizerConfig(
        learning_rate=6e-4,
        warmup_steps=2000,
        final_learning_rate=6e-5,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        clip=1.0,
        microbatches=40,
    ),
    mesh=MeshConfig(data=-1),
    run=RunConfig(
        steps=600_000,
        evaluate_every=1000,
        evaluate_batches=4,
        checkpoint_every=1000,
        keep_checkpoints=3,
        keep_every=50_000,
    ),
)
