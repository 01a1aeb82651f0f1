"""An S3 server over HTTP (moto) for tests of the object store."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import httpx

from shared.runtime.ports import free_port

START_SECONDS = 60.0

#: A secret that no error and no log may contain.
SECRET = "s3cr3t/" + "x" * 33

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIDTESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_REGION": "eu-central-1",
}


#: Headers of a signed request. The server rejects anonymous reads, but checks no signature by default.
SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=AKID/20260101/eu-central-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
}


class S3Server:
    """One server process. Its buckets are in memory, so they are lost when it stops."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": self.url}
        self._log = folder / "s3.log"

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"no answer at {self.url}"
            time.sleep(0.05)

    def pause(self) -> None:
        """Suspend the process: connections are still accepted, but no request is answered."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue after a pause."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()

    def new_bucket(self) -> str:
        """Create a bucket and return its URL."""
        bucket = f"bucket-{uuid4().hex[:12]}"
        httpx.put(f"{self.url}/{bucket}", timeout=START_SECONDS).raise_for_status()
        return f"{self.url}/{bucket}"

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/moto-api/").is_success
        except httpx.TransportError:
            return False
