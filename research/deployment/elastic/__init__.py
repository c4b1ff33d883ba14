"""Elastic training: the run goes on with the machines that are left.

A launch on a host is one `Agent`: it starts the host's workers and watches them. On the host of the
rendezvous it also serves the `Controller`, which forms *generations*: fresh workers, a mesh that
fits them (`layout`), and the newest state that the memory of the hosts or the disk still has. No
part of it imports JAX; workers do, and one stands by in every place for the next generation.
"""

from research.deployment.elastic.supervisor import launch_elastic

__all__ = ["launch_elastic"]
