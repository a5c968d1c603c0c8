"""Names of other libraries that are not public; no other module of this package uses such names.

`flower_words` has commands and options of Flower's programs, `flower_messages` what messages need,
`flower_processes` what is changed inside Flower's programs, `ray_actors` Flower's actors and Ray.
`deferred` imports slow modules at their first use, `slow_imports` says which.
Each name has a test in ``tests/test_internals.py`` that says what it is used for; docs/decisions/0020
says what Flower 1.43 changes.
"""
