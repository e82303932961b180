"""
A binary tree of sums over the leaves: one is changed, and one is found by a point of the sum, in as many steps as the tree is
deep. An array holds it, with the root at 1, the children of node i at 2 i and 2 i + 1, and the leaves in the second half.
"""

from functools import cache
from typing import Any

import numpy as np


def set_leaves(tree: np.ndarray, leaves: np.ndarray, values: np.ndarray) -> None:
    """Set leaves, and the sums above them; of a leaf that is there twice, the later value stays."""
    for index in range(len(leaves)):
        node = leaves[index] + len(tree) // 2
        tree[node] = values[index]
        node //= 2
        while node > 0:
            tree[node] = tree[2 * node] + tree[2 * node + 1]
            node //= 2


def find_leaves(tree: np.ndarray, points: np.ndarray, leaves: np.ndarray) -> None:
    """Write for each point of [0, sum) the leaf in whose share it lies; never one of 0, unless all are."""
    half = len(tree) // 2
    for index in range(len(points)):
        node, point = 1, points[index]
        while node < half:
            node *= 2
            # Rounding may leave a point beyond what is there.
            if point >= tree[node] and tree[node + 1] > 0:
                point -= tree[node]
                node += 1
        leaves[index] = node - half


@cache
def compiled() -> tuple[Any, Any]:
    """:func:`set_leaves` and :func:`find_leaves`, by Numba where it is installed."""
    try:
        from numba import njit
    except ImportError:
        return set_leaves, find_leaves
    try:
        return njit(set_leaves, cache=True), njit(find_leaves, cache=True)
    # Numba finds no folder to keep them in.
    except RuntimeError:
        return njit(set_leaves), njit(find_leaves)


def planted(leaves: np.ndarray, count: int) -> np.ndarray:
    """A tree with these leaves, and others of 0 up to at least ``count``."""
    half = 1 << max(count - 1, 1).bit_length()
    tree = np.zeros(2 * half)
    tree[half : half + len(leaves)] = leaves
    while half > 1:
        half //= 2
        tree[half : 2 * half] = tree[2 * half : 4 * half].reshape(-1, 2).sum(axis=1)
    return tree
