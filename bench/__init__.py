"""Every speed claim, beside a peer, in one run. Each module is a program; results go to ``build/bench/``."""
