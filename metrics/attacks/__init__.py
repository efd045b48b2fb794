"""Attacks on a release: each runs with a control in which there is nothing to find, and counts hits that merge."""

from __future__ import annotations

from types import MappingProxyType

ATTACKERS = MappingProxyType(
    {
        "unaware": "compares released pictures with others as they are, as if they were photographs",
        "aware": "knows method, level and model: compares with own outputs of the candidates",
        "filtering": "knows method and level, and how pictures of the kind vary: weighs all parts by what noise leaves",
        "trained": "has learnt from other people's photos and own outputs of them by the public method",
        "inverting": "has trained a network on other people's photos to undo the method, and attacks what it restores",
        "holds the original": "has the originals among the candidates and looks for the one behind each output",
        "holds other photos": "has other photos of the same people, with their names, and looks for the people",
        "knows the groups": "holds the originals and knows which were grouped, and which group an output is of",
        "knows some": "holds the originals, and knows about half of the others in the group of an output",
        "knows all others": "holds the originals, and knows all others in the group of an output",
        "clusters outputs": "has nothing but the release, and looks for outputs of one group",
        "sees k outputs": "sees several outputs of one original and averages what they have in common",
        "reads the files": "looks at what surrounds the pictures: metadata, names, order, sizes, times, scores",
    }
)
