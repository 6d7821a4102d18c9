"""Processes, where they run, and what they cost. The gateway alone has CPU 1; upstreams and callers share CPU 0."""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
RUN = HERE.parent / "target" / "bench"
TICKS = os.sysconf("SC_CLK_TCK")
SECRET = b"bench-secret-0123456789abcdef0123456789"
LOAD_CPU, GATEWAY_CPU = "0", "1"


def token():
    """An access token that every gateway here takes: HS256, role admin, good for years."""

    def part(data):
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    head = part(b'{"alg":"HS256","typ":"JWT"}')
    now = int(time.time())
    user = "00000000-0000-4000-8000-000000000042"
    claims = dict(iss="voicehelper-api", sub=user, user_id=user, tenant_id="t1", role="admin", jti="bench", token_use="access",
                  iat=now, nbf=now, exp=now + 10**8)
    body = head + b"." + part(json.dumps(claims).encode())
    return (body + b"." + part(hmac.new(SECRET, body, hashlib.sha256).digest())).decode()


class Process:
    """A process and its children, bound to a CPU, stopped by pid."""

    def __init__(self, name, command, port, cpu=GATEWAY_CPU, env=None):
        self.log = RUN / f"{name}.log"
        with open(self.log, "wb") as log:
            self.popen = subprocess.Popen(
                ["taskset", "-c", cpu, *map(str, command)], env={**os.environ, **(env or {})}, cwd=RUN,
                stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        self.begun = time.monotonic()
        if not self._listens(port):
            self.stop()
            raise RuntimeError(f"{name} does not listen on {port}:\n{self.log.read_text()[-2000:]}")
        self.took = time.monotonic() - self.begun

    def _listens(self, port):
        end = time.monotonic() + 30
        while time.monotonic() < end and self.popen.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 0.5).close()
                return True
            except OSError:
                time.sleep(0.002)
        return False

    def pids(self):
        """Its own and those of what it started."""

        def under(pid):
            found = [pid]
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    found += [pid for child in task.read_text().split() for pid in under(int(child))]
                except OSError:
                    pass
            return found

        return under(self.popen.pid)

    def cpu(self):
        """Seconds of CPU so far."""
        total = 0
        for pid in self.pids():
            try:
                fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += int(fields[11]) + int(fields[12])
            except OSError:
                pass
        return total / TICKS

    def memory(self, what="VmHWM"):
        """MiB: the peak, or with VmRSS what is held now."""
        total = 0
        for pid in self.pids():
            try:
                found = re.search(what + r":\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())
                total += int(found.group(1)) if found else 0
            except OSError:
                pass
        return total / 1024

    def stop(self):
        pids = self.pids()
        self.popen.send_signal(signal.SIGTERM)
        try:
            self.popen.wait(8)
        except subprocess.TimeoutExpired:
            pass
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        self.popen.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


@contextlib.contextmanager
def alone():
    """What is started within comes before all else that wants its core, as if nothing else ran: real-time priority. The kernel's own
    threads take slices of 3 ms else, and one more process between two ends is one more that they can stop. Only for work that leaves
    its cores some rest. Without the right to it (root, CAP_SYS_NICE) nothing changes, but the tails are then those of the machine."""
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        say("no right to real-time priority: tails of this case will be those of whatever else runs")
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def configured(name, **values):
    """A peer's configuration with its `@NAME@`s filled in; its path."""
    text = (HERE / "peers" / name).read_text()
    for key, value in {"RUN": RUN, "THREADS": 1, **values}.items():
        text = text.replace(f"@{key}@", str(value))
    path = RUN / name
    path.write_text(text)
    return path


def wrk(url, seconds, connections=64, bearer=None, script=None):
    """Load over kept connections: requests/s, microseconds of the quantiles, failures."""
    command = ["taskset", "-c", LOAD_CPU, "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    if bearer:
        command += ["-H", f"Authorization: Bearer {bearer}"]
    if script:
        command += ["-s", str(script)]
    out = subprocess.run([*command, url], capture_output=True, text=True, timeout=seconds + 60, cwd=RUN).stdout

    def found(pattern, default="0"):
        match = re.search(pattern, out, re.M)
        return match.group(1) if match else default

    def micros(text):
        number, unit = re.match(r"([\d.]+)([a-z]*)", text).groups()
        return float(number) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}.get(unit, 1)

    errors = sum(int(count) for count in re.findall(r"(?:connect|read|write|timeout) (\d+)", out))
    return dict(rate=float(found(r"Requests/sec:\s+([\d.]+)")), count=int(found(r"(\d+) requests in")),
                p50=micros(found(r"^\s+50%\s+(\S+)", "0us")), p99=micros(found(r"^\s+99%\s+(\S+)", "0us")),
                failed=errors + int(found(r"Non-2xx or 3xx responses: (\d+)")))


def h2load(url, seconds, connections=8, streams=16, data=None, headers=()):
    """The same over HTTP/2 without TLS."""
    command = ["taskset", "-c", LOAD_CPU, "h2load", "-p", "h2c", "-t1", f"-c{connections}", f"-m{streams}", f"-D{seconds}"]
    for header in headers:
        command += ["-H", header]
    if data:
        command += ["-d", str(data)]
    out = subprocess.run([*command, url], capture_output=True, text=True, timeout=seconds + 60, cwd=RUN).stdout
    done = re.search(r"finished in ([\d.]+)s, ([\d.]+) req/s", out)
    codes = re.search(r"status codes: (\d+) 2xx", out)
    failed = re.search(r"(\d+) failed", out)
    rate = float(done.group(2)) if done else 0.0
    return dict(rate=rate, count=int(codes.group(1)) if codes else 0, p50=0.0, p99=0.0,
                failed=int(failed.group(1)) if failed else 0)


def tool(name, *arguments, env=None):
    """One of the load tools, on the callers' CPU; what it printed."""
    command = ["taskset", "-c", LOAD_CPU, RUN / "load" / "release" / name, *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=600,
                          env={**os.environ, **(env or {})})
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        raise RuntimeError(f"{name}: {done.stdout[-500:]} {done.stderr[-500:]}") from error


def call(port, path, body, bearer=None):
    """One JSON request to a gateway; its answer."""
    headers = {"Content-Type": "application/json"}
    if bearer:
        headers["Authorization"] = f"Bearer {bearer}"
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def median(rows, key):
    values = [row[key] for row in rows if key in row]
    return statistics.median(values) if values else float("nan")


def say(text):
    print(text, file=sys.stderr, flush=True)
