"""Intervals and deadlines between client and workers, in seconds: nothing here waits without end.

Used as ``timeouts.NAME``, so that tests can make them short. docs/parallel.md lists every wait with its deadline, and what
happens when it is over.
"""

PROGRESS_INTERVAL = 0.1  # between two progress messages
OBSERVER_INTERVAL = 0.2  # between two calls of whoever follows a run
WAIT_REPORT_INTERVAL = 10.0  # until the first report of a wait for workers; the next ones come less and less often
LONGEST_REPORT_INTERVAL = 600.0  # between two reports of that wait
QUEUE_INTERVAL = 10.0  # between two questions to a batch system about jobs
QUEUE_ANSWER_TIMEOUT = 20.0  # for a batch system to say how jobs are; else nothing is known of them
MEMORY_INTERVAL = 2.0  # between two reports of a rank's memory
WORKER_CHECK_INTERVAL = 0.5  # between two checks that no worker of a run was lost
DONE_CHECK_INTERVAL = 0.1  # between two checks that ranks have ended
SCHEDULER_TIMEOUT = 10.0  # for a scheduler to answer a new client
SCHEDULER_RESPONSE_TIMEOUT = 30.0  # for a scheduler to answer a client that it knows
FIRST_WORKER_TIMEOUT = 60.0  # for the first worker of a cluster to come up, before workers are counted
WORKER_START_TIMEOUT = 120.0  # for the workers of a cluster to come up
QUEUED_WORKERS_TIMEOUT = 86400.0  # for workers that are jobs of a batch system to come up
JOBS_CLOSE_TIMEOUT = (
    15.0  # for the jobs of a cluster to be cancelled by dask-jobqueue; then, once more as long, by the batch system
)
REPLACEMENT_TIMEOUT = 5.0  # after a loss, for new workers to take the place of lost ones; without them a run goes on with fewer
QUESTION_TIMEOUT = 60.0  # for a worker to say what it has; it may import CuPy for that, from a slow file system
SLOW_ANSWER = 10.0  # after which a wait for the answer of a worker is reported
STOP_TIMEOUT = 10.0  # for a cluster to stop that was interrupted while it started
CLOSE_TIMEOUT = 5.0  # for a client, or a cluster that daskreg has started, to close; then its processes are killed
KILL_TIMEOUT = 3.0  # for a cluster to close whose processes were killed
RESPONSE_TIMEOUT = 5.0  # for a worker to answer a call, unless its event loop is blocked
RESULT_TIMEOUT = 30.0  # for the report of a rank that has ended to arrive
CANCEL_TIMEOUT = 5.0  # for ranks to notice that they were cancelled
FAILURE_TIMEOUT = 2.0  # for the other ranks to fail too, after the first has
CHECKPOINT_TIMEOUT = 20.0  # for ranks to write a checkpoint after they were asked to stop; batch systems wait 30 s or more
LOCK_WARNING_DELAY = 2.0  # after which a wait for another run on the same worker is reported
LOCK_REPORT_INTERVAL = 60.0  # between two further reports of that wait, which lasts as long as the other run
LEVEL_END_CHECKPOINT_AGE = 10.0  # of the last checkpoint, after which the end of a level is worth another
