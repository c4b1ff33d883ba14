"""Where arrays live: the device mesh, the layout of logical axes over it, and the processes.

A model never names a device. `MeshConfig` shares the devices out, `LAYOUT` maps what a dimension is
to the mesh axes it is split over, and XLA's partitioner inserts the communication.
"""
