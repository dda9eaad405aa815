"""Mail in the vault: found message by message, and brought back message by message.

Terms
    *moment*: the trees as they stood once: a snapshot, or an instant between two.
    *box*: one folder of one account in one moment. *stored*: one message in a box, with where its bytes are.
    *presence*: a message in its folder through time: when it was first and last seen there.
    *additive*: brought back into the running server beside what is there; nothing is overwritten, nothing comes twice.

Parts
    ``boxes``      a moment's boxes; ``messages``: the messages in them
    ``headers``    what messages' headers say, remembered: in SQLite, by content
    ``search``     presences that answer a question
    ``traces``     between snapshots, where the log is archived: when exactly a message went; what came and went
    ``groupware``  events and contacts, the same way
    ``wanted``     what a restore is asked for, found in a moment
    ``folder``     restored into a folder: as files, Maildir or .eml
    ``running``    restored into the running server, additively: plan, then execute
    ``scripts``    an account's subscriptions and Sieve scripts
    ``calendar``   events and contacts into the running Radicale

What it stores
    The headers' cache, a file beside the vault's catalog, mode 0600: it holds subjects and addresses in the clear. It
    may be deleted at any time; the next search reads the headers again.

Invariants
    A directory part that two moments share is read once; a header is read once for each content. Restoring into the
    running server goes through the server itself (IMAP as the account's owner), so quotas, indexes and other clients'
    views are right; it never removes and never changes a message, and repeated it adds nothing.

What it does not promise
    Times of deletion finer than the moments searched, where no log is archived or the store is mdbox. Messages
    encrypted by mail_crypt have no readable headers here: they are counted and named, and restored as files only.
    Folders of ``LAYOUT=index`` are called by their GUIDs.
"""
