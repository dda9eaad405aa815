"""The node: one machine's part in the site.

*What decides.* ``roles`` is a pure table: from facts (the log's last record, what this machine remembers) to a role
with a reason; ``role_facts`` gathers them. ``node`` enters and leaves roles: ``promoting`` is how a machine becomes
the primary, ``copying`` how it holds a copy, ``yielding`` how it gives its role up, ``orders`` what it was told,
``tending`` what it looks at on a timer. ``operations`` carries out what people order (takeover, switchover), each as a
``plan`` that is shown, executed and written into the ``history``.

*Without a person.* ``watchman``: two more tables, for what is done when others fall silent, with the argument why there
are never two that serve, and its bound. ``hearing`` (who hears whom) and ``outlook`` make their facts; ``guard`` looks
twenty times a second and does what they say; ``oneself`` tells it of this machine, ``duties`` are votes and pauses.
``planned`` are switchovers at a set moment, ``failback`` is what speaks against going home. ``outside`` runs the
administrator's programs: ``address_command`` moves the address by one, ``fencing`` switches the old primary off by one.

*Before it is needed.* ``readiness`` looks whether this standby could take over; ``rehearsal`` shows it: a ``sample`` of
the copy on a ``stage`` of namespaces, with the real mail software (``mail.rehearse``).

*What a returned machine alone has.* ``returned`` lists it, ``unseen`` sorts it into what is merged and what is left to
people, ``merging`` sends it, ``merge_answers`` does it on the primary; ``merges`` is the order.

*The pumps.* ``capture`` (primary): watcher -> frames -> log. ``follow`` (standby): log -> frames -> applier. Both keep
the tree index committed only at positions the log really has. ``primary``, ``standby`` and ``seeding`` are the parts
that run in those roles; ``keeping`` trims the log, ``scrub`` compares contents in the background, ``errands`` runs
command outputs and writes the software manifest.

*Copies at intervals.* ``copies`` makes them on the primary (when: ``schedule``), ``whole`` gives a standby the log's
records a whole copy at a time.

*Between machines.* ``beats``: four times a second, what each says of itself (``saying``). ``asks``: sealed orders and
small answers. ``peer``: listings and contents, verify. ``enrol``: how machines become a site.

*Towards people.* ``control`` (HTTP on a socket), ``status``, ``metrics``, ``alarms``, ``story`` (`holdfast why`),
``desk`` (`holdfast decide`; ``desk_facts`` looks up what it tells).

*What is stored.* ``node.json`` (``local``), ``history.jsonl``, ``index.db``, ``aside/``, ``rejoin-``, ``merged-`` and
``undone-*.json``, ``rehearsal.json``, all in the state directory.

*Invariants.* A machine serves as primary only after its promotion is in the log and ``served_epoch`` on its disk. When
it learns of another's promotion it stops serving before it does anything else. An acknowledgement of the log comes
before the index commit that relies on it.

*Not promised here.* Under the policy ``manual``, or while paused: that an isolated primary stops serving before it
hears of the promotion.
"""
