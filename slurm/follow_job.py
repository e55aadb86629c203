"""Prints the log of a submitted job until it ends, and ends with its exit code; 1 where it has none, or is lost."""

import asyncio
import sys

from ray.job_submission import JobSubmissionClient


async def follow(submission: str) -> int:
    """Print a submission's log to its end, and return the exit code."""
    client = JobSubmissionClient()  # by RAY_API_SERVER_ADDRESS and the token
    async for lines in client.tail_job_logs(submission):
        sys.stdout.write(lines)
        sys.stdout.flush()
    job = client.get_job_info(submission)
    if job.driver_exit_code is None:
        sys.stderr.write(f"{submission}: {job.status}; {job.message}\n")
        return 1
    return int(job.driver_exit_code)


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(follow(sys.argv[1])))
    except (ConnectionError, RuntimeError) as error:
        sys.exit(f"{sys.argv[1]}: lost: {error}")
