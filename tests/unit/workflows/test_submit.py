"""The script of a job, run by the shell with stand-ins for batch systems and daskreg."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from daskreg.cli import app
from daskreg.cli.submission import registration_arguments
from daskreg.cli.submission import submit as submitted
from daskreg.errors import ConfigError, OutputError, OutputExists
from daskreg.workflows.submit import Job, job_script, present_system, submit

IN_A_JOB = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "PBS_JOBID": "8.server", "LSB_JOBID": "9", "LSB_MCPU_HOSTS": "a 4 b 4"}
PAIR = ("f.zarr", "m.zarr", "-o", "run.zarr")
STANDS_IN = """#!/bin/bash
echo "$(basename "$0") $*" >> "{log}"
{rest}
"""


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """A folder of programs, which write what they are called with into a log; ``python`` is the one that runs here."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    log = tmp_path / "log"
    log.write_text("")
    runs = "trap 'sleep 0.3; exit 143' TERM; touch started; for k in $(seq 200); do sleep 0.05; done; exit 0"
    answers = {
        "scontrol": "",
        "sbatch": "echo 4711",
        "qsub": "echo 4712.server",
        "bsub": "cat > stdin; echo 'Job <4713> is submitted.'",
    }
    for name, rest in {"python": runs, **answers}.items():
        (tmp_path / name).write_text(STANDS_IN.format(log=log, rest=rest))
        (tmp_path / name).chmod(0o755)
    return tmp_path, log, {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", **IN_A_JOB, "PBS_O_WORKDIR": str(tmp_path)}


def run(shell, number, system="slurm", change=lambda text: text):
    folder, log, environment = shell
    (folder / "job.sh").write_text(change(job_script(Job(system=system), PAIR, folder / "job.sh")))
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where pytest runs in the background, and then by the shell
    try:
        job = subprocess.Popen(["/bin/bash", "job.sh"], cwd=folder, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)
    while not (folder / "started").exists():
        assert job.poll() is None
        time.sleep(0.02)
    if number is not None:
        job.send_signal(number)
    return job.wait(30), log.read_text().splitlines()


def test_a_job_is_queued_again_when_its_time_is_nearly_over(shell):
    status, called = run(shell, signal.SIGUSR1)
    assert status == 143
    assert called == ["python -P -m daskreg register f.zarr m.zarr -o run.zarr --resume", "scontrol requeue 7"]


@pytest.mark.parametrize(("system", "status", "again"), [("pbs", 143, ["qsub {folder}/job.sh"]), ("lsf", 99, [])])
def test_the_script_looks_at_the_clock_where_the_batch_system_warns_all_processes(shell, system, status, again):
    found, called = run(shell, None, system, lambda text: text.replace("sleep $((28680 - SECONDS))", "sleep 0.1"))
    assert found == status
    assert called[1:] == [line.format(folder=shell[0]) for line in again]


@pytest.mark.parametrize(("system", "number"), [("pbs", signal.SIGTERM), ("lsf", signal.SIGINT), ("lsf", signal.SIGTERM)])
def test_a_job_of_pbs_or_lsf_that_is_cancelled_ends(shell, system, number):
    status, called = run(shell, number, system)
    assert (status, len(called)) == (143, 1)
    assert subprocess.run(["pgrep", "-f", "sleep 28680"], check=False, capture_output=True).returncode == 1


def test_a_job_that_is_cancelled_ends(shell):
    status, called = run(shell, signal.SIGTERM)
    assert status == 143
    assert called == ["python -P -m daskreg register f.zarr m.zarr -o run.zarr --resume"]


def test_what_is_asked_of_slurm(tmp_path):
    job = Job(4, 32, 1, "250GB", "2-00:00:00", "gpu", "lab", "brain", ("module load cuda",), "daskreg.sif")
    text = job_script(job, ("register", *PAIR, "--preset", "light sheet"))
    for line in ("--nodes=4", "--cpus-per-task=32", "--gpus-per-node=1", "--mem=238418M", "--time=2-00:00:00", "--partition=gpu",
                 "--account=lab", "--output=brain-%j.log", "--signal=B:USR1@120 --requeue --open-mode=append"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert "module load cuda\n" in text
    assert (
        "apptainer exec --nv daskreg.sif daskreg register f.zarr m.zarr -o run.zarr --preset 'light sheet' --resume "
        '--cluster "$scheduler" --workers "$SLURM_NNODES" &'
    ) in text
    assert '--output="brain-%j-%t.log" apptainer exec --nv daskreg.sif dask worker "$scheduler"' in text
    assert "--cluster cuda" in job_script(Job(gpus=4), PAIR)
    for given in (job, Job(), Job(gpus=2)):
        (tmp_path / "job.sh").write_text(job_script(given, PAIR))
        assert subprocess.run(["/bin/bash", "-n", tmp_path / "job.sh"], check=False).returncode == 0


def test_what_is_asked_of_pbs_and_lsf(tmp_path):
    asked = (2, 32, 1, "250GB", "2-00:30:00", "gpu", "lab", "brain", ("module load cuda",), "daskreg.sif")
    pbs, lsf = (job_script(Job(*asked, system=system), PAIR, tmp_path / "job.sh") for system in ("pbs", "lsf"))
    for line in ("-N brain", "-l select=2:ncpus=32:mpiprocs=1:ngpus=1:mem=238418mb", "-l walltime=48:30:00", "-q gpu", "-A lab"):
        assert f"#PBS {line}\n" in pbs
    for line in ("-J brain", "-n 64", '-R "span[ptile=32] rusage[mem=238418MB/host]"', '-gpu "num=1"', "-W 48:30", "-Q 99"):
        assert f"#BSUB {line}\n" in lsf
    for text, start in ((pbs, "pbsdsh -- "), (lsf, "blaunch -z ")):
        assert "exec apptainer exec --nv daskreg.sif dask worker '$scheduler' --nworkers 1 --nthreads 32" in text
        assert f"\n{start}" in text
        assert '--cluster "$scheduler" --workers 2 &' in text
        (tmp_path / "job.sh").write_text(text)
        assert subprocess.run(["/bin/bash", "-n", tmp_path / "job.sh"], check=False).returncode == 0


def test_a_worker_on_another_node_has_the_environment_of_the_job(shell):
    """As PBS starts it: with nothing."""
    folder, log, environment = shell
    line = next(x for x in job_script(Job(2, system="pbs"), PAIR).splitlines() if x.startswith("pbsdsh"))
    (folder / "pbsdsh").write_text('#!/bin/bash\nshift; exec env -i "$@"\n')
    (folder / "python").write_text(STANDS_IN.format(log=log, rest='echo "here: $PWD $PYTHONPATH"'))
    (folder / "pbsdsh").chmod(0o755)
    script = f"python='{folder}/python'\nscheduler=tcp://a:1\nexport PYTHONPATH='/a b'\n{line}\nwait"
    subprocess.run(["/bin/bash", "-c", script], cwd=folder, env=environment, check=True)
    assert log.read_text() == "python -P -m dask worker tcp://a:1 --nworkers 1 --nthreads 1 --local-directory /tmp\n"
    assert (folder / f"daskreg-8-{socket.gethostname()}.log").read_text() == f"here: {folder} /a b\n"


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("30", 1800), ("30:15", 1815), ("02:00:05", 7205), ("2-00:00:00", 172800), ("1-12", 129600), ("1-01:30", 91800)],
)
def test_times_are_those_of_slurm(time, seconds):
    assert Job(time=time).seconds == seconds


@pytest.mark.parametrize(
    ("job", "arguments", "says"),
    [
        ({}, ("f.zarr", "m.zarr"), "needs the output"),
        ({}, (*PAIR, "--overwrite"), "would begin again"),
        ({"nodes": 2}, (*PAIR, "--workers", "3"), "--workers follows from the nodes"),
        ({"nodes": 2, "gpus": 2}, PAIR, "one GPU a node"),
        ({"time": "soon"}, PAIR, "no time of a job"),
        ({"time": "02:00"}, PAIR, "'02:00' is 120 s; a job has 5 minutes at least"),
        ({"system": "slrum"}, PAIR, "unknown batch system 'slrum'; did you mean 'slurm'"),
        ({"memory": "8"}, PAIR, "8GB"),
    ],
)
def test_what_a_job_cannot_be_is_refused(job, arguments, says):
    with pytest.raises(ConfigError, match=says):
        job_script(Job(**job), arguments)


def test_all_that_is_wrong_with_a_job_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.sh").write_text("")
    words = ["f.zarr", "--overwrite", "--dry-run", "--workers", "2", "--memory", "8", "--preset", "brian"]
    wrong = ["--time", "soon", "--nodes", "2", "--gpus", "2", "--system", "slrum", "--script", "job.sh"]
    said = str(CliRunner().invoke(app, ["submit", *wrong, "--", *words]).exception)
    reasons = (
        "--dry-run registers nothing", "did you mean 'brain'", "8GB?", "no output was named", "two images are needed",
        "no time of a job", "one GPU a node", "--overwrite would begin again", "--workers and --memory follow from the nodes",
        "did you mean 'slurm'", "job.sh exists already",
    )  # fmt: skip
    assert [reason for reason in reasons if reason not in said] == []
    assert len(said.splitlines()) == len(reasons)
    with pytest.raises(ConfigError) as found:
        submitted(words, tmp_path / "job.sh", Job(nodes=2))
    assert len(str(found.value).splitlines()) == len(reasons) - 3
    with pytest.raises(ConfigError, match=r"no time of a job; .*\ncpus is 0; a whole number"):
        Job(time="soon", cpus=0)


def test_the_command_writes_explains_and_submits(shell, monkeypatch):
    folder, log, environment = shell
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", environment["PATH"])
    done = CliRunner().invoke(app, ["submit", "--cpus", "8", "--start", "--", *PAIR])
    assert done.exit_code == 0, done.exception
    assert "scancel ends it for good" in done.output
    assert "submitted as job 4711" in done.output
    assert log.read_text() == "sbatch --parsable daskreg-job.sh\n"
    assert os.access("daskreg-job.sh", os.X_OK)
    with pytest.raises(OutputExists):
        submit(PAIR, "daskreg-job.sh", Job())
    assert submit(PAIR, "daskreg-job.sh", Job(system="pbs"), overwrite=True, start=True) == "4712"
    assert submit(PAIR, "daskreg-job.sh", Job(system="lsf"), overwrite=True, start=True) == "4713"
    assert (folder / "stdin").read_text() == (folder / "daskreg-job.sh").read_text()
    (folder / "sbatch").unlink()
    monkeypatch.setenv("PATH", str(folder))
    assert present_system() == "pbs"
    assert "is here: it is written" not in CliRunner().invoke(app, ["submit", "--script", "a.sh", *PAIR]).output
    monkeypatch.setenv("PATH", "/nowhere")
    assert present_system() is None
    said = CliRunner().invoke(app, ["submit", "--script", "b.sh", *PAIR]).output
    assert "No sbatch, qsub or bsub is here: it is written for SLURM; --system pbs or lsf writes it for these." in said
    with pytest.raises(OutputError, match="is written, and there is no sbatch here"):
        submit(PAIR, "daskreg-job.sh", Job(), overwrite=True, start=True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*PAIR, "--prset", "brain"), "No such option: --prset"),
        ((*PAIR, "--workers", "many"), "Invalid value for '--workers'"),
        ((*PAIR, "third.zarr"), "unexpected extra argument"),
        ((*PAIR, "--preset", "brian"), "unknown preset 'brian'; did you mean 'brain'"),
        ((*PAIR, "--config", "none.yaml"), "config none.yaml does not exist; give a YAML file"),
        ((*PAIR, "--try", "brain,rigdi"), "did you mean 'rigid'"),
        ((*PAIR, "--cluster", "slrum"), "'slrum' is no cluster"),
        ((*PAIR, "--wait-for-workers", "soon"), "not a duration"),
        ((*PAIR, "--log-level", "degub"), "unknown log level"),
        ((*PAIR, "--dry-run"), "registers nothing"),
        (PAIR[1:], "two images are needed"),
        (PAIR[:2], "no output was named"),
    ],
)
def test_what_register_would_refuse_is_refused_before_the_job_is_written(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["submit", "--", *arguments])
    assert says in f"{done.output}{done.exception}"
    assert done.exit_code
    assert not (tmp_path / "daskreg-job.sh").exists()


def test_inputs_that_are_not_there_and_the_name_of_the_command_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("fixed.nii.gz", "moving.h5"):
        (tmp_path / name).touch()
    given = ["fxied.nii.gz", "moving.h5/t00000", "-o", "run.zarr", "--fixed-mask", "s3://far/mask.zarr", "--quiet"]
    kept, (left, missing) = registration_arguments(["register", *given])
    assert kept == given
    assert left.startswith("'register' before the images is left out")
    assert missing.startswith("fxied.nii.gz does not exist; the nearest name there is fixed.nii.gz. The job is written")


@pytest.mark.parametrize("options", [["--system", "slrm"], ["--time", "8h"], []])
def test_a_job_that_is_not_written_has_no_warnings(tmp_path, monkeypatch, caplog, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "daskreg-job.sh").touch()
    arguments = ["no.zarr", "none.zarr", "-o", "run.zarr"]
    assert CliRunner().invoke(app, ["submit", *options, *arguments]).exit_code
    assert caplog.messages == []
    submitted(arguments, tmp_path / "other.sh", Job())
    assert ["The job is written" in r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [True, True]


@pytest.mark.parametrize(
    ("options", "job", "says"),
    [
        ((), {"container": "nope.sif"}, "nope.sif does not exist. The job is written: it has to be there when the job runs."),
        (
            ("--cluster", "slurm", "--workers", "4"),
            {},
            "--cluster slurm queues a job for each worker from within this job; leave it",
        ),
        (("--workers", "4"), {}, "--workers 4 share 1 core of the job; ask for more by --cpus of submit"),
        (("--workers", "4"), {"cpus": 4, "container": "docker://daskreg"}, None),
        (("--cluster", "tcp://node1:8786", "--workers", "4"), {}, None),
    ],
)
def test_a_job_that_is_probably_not_meant_is_warned_of(tmp_path, monkeypatch, caplog, options, job, says):
    monkeypatch.chdir(tmp_path)
    for name in PAIR[:2]:
        (tmp_path / name).mkdir()
    submitted([*PAIR, *options], "job.sh", Job(**job))
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [w[: len(says or "")] for w in warnings] == ([] if says is None else [says])


@pytest.mark.parametrize(
    ("rest", "says"),
    [("exit 1", "the scheduler has ended before it listened"), ("exec sleep 60", "after 120 s"), (None, "is taken")],
)
def test_a_scheduler_that_does_not_listen_ends_the_job_with_a_sentence(shell, rest, says):
    folder, log, environment = shell
    (folder / "python").write_text(STANDS_IN.format(log=log, rest=rest))
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        if rest is not None:
            server.close()
        text = job_script(Job(2), PAIR).replace("8786", str(port)).replace("-le 120 ]", "-le 1 ]")
        done = subprocess.run(
            ["/bin/bash", "-c", text], env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=30
        )
    assert (done.returncode, log.read_text().count("register")) == (1, 0)
    assert says in done.stderr


def test_the_setup_names_another_python_and_one_that_is_not_there_is_told(shell):
    folder, log, environment = shell
    (folder / "other").symlink_to("/bin/echo")
    for line, status, says in (
        ("DASKREG_PYTHON=other", 0, "-P -m daskreg register f.zarr"),
        ("DASKREG_PYTHON=/no/python", 127, "no Python at /no/python"),
    ):
        text = job_script(Job(setup=(line,)), PAIR)
        done = subprocess.run(["/bin/bash", "-c", text], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == status
        assert says in done.stdout + done.stderr
    assert log.read_text() == ""


@pytest.mark.parametrize(("arguments", "says"), [
    (["f.zarr", "m.zarr"], "no output was named"), (["f.zarr", "-o", "run.zarr"], "two images are needed"),
    (["f.zarr", "m.zarr", "-o", "run.zarr", "--presett", "brain"], "daskreg register: No such option"),
    (["f.zarr", "m.zarr", "-o", "run.zarr", "--preset", "brian"], "did you mean 'brain'"),
    (["f.zarr", "m.zarr", "-o", "run.zarr", "--workers", "x"], "Invalid value for '--workers'"), (["--help"], "register nothing"),
    (["f.zarr::lvl=1", "m.zarr", "-o", "run.zarr", "--dry-run"], "registers nothing"), ("f.zarr m.zarr", "a list of words"),
])  # fmt: skip
def test_python_refuses_what_the_command_refuses(tmp_path, arguments, says):
    with pytest.raises(ConfigError, match=says):
        submitted(arguments, tmp_path / "job.sh", Job())
    assert not (tmp_path / "job.sh").exists()


@pytest.mark.parametrize(("script", "job", "says"), [
    ("job.sh", "slurm", "job 'slurm': a daskreg.Job was expected"), (5, Job(), "script 5: the path of the file"),
])  # fmt: skip
def test_python_says_what_it_expected_in_place_of_a_job_or_a_script(tmp_path, monkeypatch, script, job, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says):
        submitted([*PAIR], script, job)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("given", "says"), [
    ({"nodes": "2"}, "nodes is '2'; a whole number from 1"), ({"cpus": 0}, "cpus is 0"), ({"gpus": -1}, "gpus is -1; a whole"),
    ({"time": 8}, "time 8 is no time"), ({"memory": "8"}, "8GB"),
])  # fmt: skip
def test_a_job_of_wrong_values_is_a_sentence(given, says):
    with pytest.raises(ConfigError, match=says):
        Job(**given)


def test_lines_of_a_setup_may_be_one_text():
    assert Job(setup="module load cuda\nexport A=1").setup == ("module load cuda", "export A=1")


def test_python_says_what_was_written_and_how_to_submit_it(tmp_path, caplog):
    with caplog.at_level("INFO"):
        submitted([*PAIR], tmp_path / "job.sh", Job(time="8"))  # minutes, as SLURM reads it
    assert f"00:08:00 (h:m:s); submit it with: sbatch {tmp_path / 'job.sh'}" in caplog.text
    assert "job.sh: 1 node of 1 core and memory as the batch system gives it, " in caplog.text
    assert "scancel ends it for good" in caplog.text


@pytest.mark.parametrize("said", [
    "sbatch: error: fetch_config: DNS SRV lookup failed\nsbatch: fatal: Could not establish a configuration source",
    "slurm_load_partitions: Unable to contact slurm controller (connect failure)",
])  # fmt: skip
def test_a_controller_that_does_not_answer_is_one_sentence_with_advice(shell, monkeypatch, said):
    folder, *_ = shell
    (folder / "sbatch").write_text(f"#!/bin/bash\necho '{said}' >&2; exit 1\n")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    with pytest.raises(OutputError, match=r"refuses it: .*does not answer here: run this on a login node") as found:
        submitted([*PAIR], folder / "job.sh", Job(), start=True)
    assert len(str(found.value).splitlines()) == 1
    assert "sinfo" in str(found.value)


def test_the_command_needs_no_dashes_before_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["--nodes", "1"], ["--nodes", "1", "--"]):
        done = CliRunner().invoke(app, ["submit", "--overwrite", *words, *PAIR, "--preset", "rigid"])
        assert done.exit_code == 0, done.exception
        assert "register f.zarr m.zarr -o run.zarr --preset rigid --resume" in (tmp_path / "daskreg-job.sh").read_text()
