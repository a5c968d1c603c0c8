"""Names by which the processes of one container find each other."""

WARM = "FLSIM_WARM"
"""Environment: the socket of the server that forks warm processes."""
REPORTS = "FLSIM_REPORTS"
"""Environment: the socket of the process that serves the metrics."""
TROUBLE = "FLSIM_TROUBLE"
"""Environment: the file that stores what went wrong until it is reported to the server."""
MEMORY = "FLSIM_MEMORY"
"""Environment: the file that stores which client holds which partition."""
SITE, SITE_DATA = "FLSIM_SITE", "FLSIM_SITE_DATA"
"""Environment: name of a client's site, and the path of its data."""
OUT, RESUME, MODELS = "driver.out", "driver.resume", "driver.models"
"""Keys of a submitted run config that are not part of the experiment."""
LEFT = 75
"""Exit status of a SuperNode that is to be started again at once (EX_TEMPFAIL of sysexits.h)."""
MARK = "\x01flsim-event "
"""Start of the lines of a run's log that are for programs. A text that a client sent cannot hold it: it
begins with a control character."""
