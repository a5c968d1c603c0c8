"""Runtimes: who carries the messages between the apps."""
