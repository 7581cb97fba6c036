"""A warm process on a client's machine: it has imported everything when the next message comes. Linux only.

Flower starts a process for each message. That process hands the message to a warm process of the same run, bundle,
node config and SuperNode, over a socket that only the owner's user can reach (`handover`, `place`). The warm process
forks for each message, and the fork does the work (`process`). So nothing of one message is left for the next: no data,
no model, no module of the bundle. The warm process itself computes only what depends on the public configuration.
"""
