"""What other libraries do not publish and this package rests on; no other module names any of it.

`flower_words` are words that Flower's programs exchange, `flower_messages` what a message needs,
`flower_processes` what is changed inside Flower's programs, `ray_actors` Flower's actors and Ray.
Each name has a test in ``tests/test_internals.py`` that says what for; docs/decisions/0020 says what
Flower 1.43 changes.
"""
