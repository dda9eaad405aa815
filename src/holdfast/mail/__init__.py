"""What the mail software of a machine needs: what to protect, what to leave out, how to start, stop and question it.

Terms
    *service*: one program family that answers clients (:class:`~holdfast.mail.port.Service`).
    *protection*: what one service wants copied (:class:`~holdfast.mail.port.Protection`): trees of its data, and the
    files it is configured by. *discovery*: reading that out of the running configuration, instead of being told.
    *probe*: a real protocol transaction with a latency; nothing less counts as "it serves". *rendered file*: a
    configuration file that holds this machine's own values; :func:`~holdfast.mail.postfix_render.canonical` gives what
    all machines share.

Parts
    ``port`` the words of this package; ``commands`` runs programs; ``processes`` finds and ends them; ``supervise``
    starts and stops by systemd or directly; ``probes`` speaks SMTP, IMAP and CalDAV. ``doveconf``, ``dovecot_layout``,
    ``dovecot_files``, ``dovecot``: Dovecot 2.3, 2.4. ``postfix_render``, ``postfix_maps``, ``postfix``. ``radicale``.
    ``packages``: the software manifest. ``outputs``: outputs of commands kept as files. ``settings``: the ``[mail]``
    table of the configuration file. ``site`` puts a machine's services and trees together. ``certificates``: whether
    they are valid and fit their keys. ``rehearse``: all of it started and asked on a stage, as a standby's proof.

What it stores
    Under the state directory (``/var/lib/holdfast``): ``software/`` (manifest, generated), ``outputs/`` (one file a
    command), ``mail/`` (digests of Postfix map sources as last compiled, pid files of services started directly).
    Rendered values stand in the service's own files, between markers, and can be taken out again exactly.

Invariants
    Start, stop and prepare may be repeated: the second time changes nothing. After ``stop`` no process of the service
    is left: what does not leave within the deadline is killed, and if that fails the call raises. A command's output
    replaces the last one only when the command succeeded. Discovery that cannot tell says so (``warnings``) or raises;
    it never guesses a root that would protect too little in silence.

What it does not promise
    Postfix multi-instance set-ups (postmulti) are not discovered. Account data in SQL or LDAP servers is not a file:
    use an output (a dump on a timer). mbox files are copied, but an expunge rewrites them whole.
"""
