"""Drills: proof by really breaking things.

``lab`` makes machines that can lose power, freeze and be cut off; ``workload`` makes traffic on them; ``checkers``
judge what came out, apart from the world they judge. ``site`` puts a lab under protection; ``demo`` tells the story.
"""
