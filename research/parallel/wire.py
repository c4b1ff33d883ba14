"""Bytes on the wire of a collective, by the usual algorithms: rings; direct for all-to-all.

Sent by one device, for a payload of P bytes and a group of n devices:

    all-gather          P (n-1)/n       P: what each has afterwards
    reduce-scatter      P (n-1)/n       P: what each has before
    all-reduce          2 P (n-1)/n     P: what each has, before and after
    all-to-all          P (n-1)/n       P: what each has, before and after

(Thakur, Rabenseifner and Gropp 2005, *Optimization of collective communication operations in
MPICH*; Chan et al. 2007, *Collective communication: theory, practice, and experience*. The first
three are the least that is possible, Patarasu and Yuan 2009.)
"""


def wire_share(kind: str, devices: int) -> float:
    """Bytes on the wire of a device for each byte of payload, in a group of `devices`."""
    return (2 if kind == "all-reduce" else 1) * (devices - 1) / devices


def wire_messages(kind: str, devices: int) -> int:
    """Messages that a device sends one after another in a collective of a group of `devices`, by
    the same algorithms: what its latency counts."""
    if kind == "collective-permute":
        return 1
    return (2 if kind == "all-reduce" else 1) * (devices - 1)
