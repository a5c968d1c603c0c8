"""``python -m flsimulation.network.supernode``: Flower's SuperNode with our shorter waits."""

from __future__ import annotations


def main() -> None:
    """Run ``flower-supernode``."""
    from flwr.supernode.cli import flower_supernode

    from flsimulation.network import waits

    waits.shorten_looks()
    waits.shorten_pulls()
    flower_supernode()


if __name__ == "__main__":
    main()
