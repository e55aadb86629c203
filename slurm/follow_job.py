"""Prints the log of a submitted job until it ends, and ends with its exit code; 1 where it has none, or is lost."""

import asyncio
import sys

import aiohttp
import requests
from ray.job_submission import JobSubmissionClient


async def follow(submission: str) -> int:
    """Print a submission's log to its end, and return the exit code as a shell has it: 137 where signal 9 ended it."""
    client = JobSubmissionClient()  # by RAY_API_SERVER_ADDRESS and the token
    async for lines in client.tail_job_logs(submission):
        sys.stdout.write(lines)
        sys.stdout.flush()
    job = client.get_job_info(submission)
    code = job.driver_exit_code
    if code is None:
        sys.stderr.write(f"{submission}: {job.status}; {job.message}\n")
        return 1
    return int(code) if code >= 0 else 128 - int(code)


if __name__ == "__main__":
    job = sys.argv[1]
    try:
        sys.exit(asyncio.run(follow(job)))
    except KeyboardInterrupt:
        sys.stderr.write(f"{job} goes on; to follow it again: slurm/submit.sh --follow={job}\n")
        sys.exit(130)
    except (OSError, RuntimeError, requests.RequestException, aiohttp.ClientError) as error:
        sys.exit(f"{job}: lost: {error}")
