"""The vault: a repository of snapshots in write-once objects, sealed and without need to trust the store."""
