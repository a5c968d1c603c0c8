"""``sites:FOLDER``: a data set of its own for each client, which nobody else reads.

What the sites must agree on is found from what each one reports (`SiteFacts`), by one function
(`agree`), in one process and over a network alike.
"""
