"""``python -m holdfast.drill.lab``: the same as ``holdfast lab``."""

from holdfast.drill.lab.commands import main

main()
