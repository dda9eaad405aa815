"""The command line. Every command that acts is a client of the agent; none goes around it.

``main``    the commands, their help, their exit statuses (errors.ExitStatus)
``client``  HTTP on the agent's socket
``show``    statuses, plans and reports for a terminal

Imports are late: ``holdfast --help`` answers in well under 150 ms.
"""
