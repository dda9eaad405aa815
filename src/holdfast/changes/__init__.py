"""The vocabulary every other part speaks: names, changes, digests, frames. Pure: no files, no network, no clock.

``names``   the nouns (machine, epoch, position ...) as types
``change``  one fact about one path, nine kinds
``digest``  contents described block by block
``frame``   a batch of changes as one sealed, chained message of the log; `docs/formats/frame.md` is made from it
"""
