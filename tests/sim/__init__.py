"""A whole hub in one process, deterministic: docs/simulation.md.

    python -m tests.sim SEED             one seed again, with a trace of what happened
    python -m tests.sim SEED --shrink    the fewest operations and faults that still fail

The code is metad's own: workers' layers with their committers and log allocators, the collector,
expiry, recovery, backup, the master's list of recoveries.  Replaced is what decides about order and
time: threads, loops, locks, clocks, processes.

    plan        what a seed makes: operations, faults, how the scheduler behaves
    scheduler   tasks, of which one runs; it gives way at switch points
    system      files and locks of one process, the clock, the semaphore
    databases   LMDB for several "processes" in one
    process     what a kill takes: tasks, descriptors, locks, memory
    hub         one node: data, shared memory, disk; master, workers, collector, recoveries
    clients     what goes on from outside: mail in, sessions, deletions
    judge       what must hold, at every moment and at the end

A `Simulation` has one clock and one scheduler and may have several hubs: a cluster needs, besides,
a network between them.
"""
