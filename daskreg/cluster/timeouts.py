"""Intervals and deadlines between client and workers, in seconds."""

PROGRESS_INTERVAL = 0.1  # between two progress messages
WORKER_CHECK_INTERVAL = 0.5  # between two checks that no worker of a run was lost
DONE_CHECK_INTERVAL = 0.1  # between two checks that ranks have ended
SCHEDULER_TIMEOUT = 10.0  # for a scheduler to answer a new client
FIRST_WORKER_TIMEOUT = 60.0  # for the first worker of a cluster to come up, before workers are counted
WORKER_START_TIMEOUT = 120.0  # for the workers of a cluster to come up
STOP_TIMEOUT = 10.0  # for a cluster to stop that was interrupted while it started
RESPONSE_TIMEOUT = 5.0  # for a worker to answer a call, unless its event loop is blocked
CANCEL_TIMEOUT = 5.0  # for ranks to notice that they were cancelled
FAILURE_TIMEOUT = 2.0  # for the other ranks to fail too, after the first has
CHECKPOINT_TIMEOUT = 60.0  # for ranks to write a checkpoint after they were asked to stop; batch systems wait about as long
LOCK_WARNING_DELAY = 2.0  # after which a wait for another run on the same worker is reported
LEVEL_END_CHECKPOINT_AGE = 10.0  # of the last checkpoint, after which the end of a level is worth another
