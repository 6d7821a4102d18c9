"""What one request of each kind asks of Redis and PostgreSQL: counted, not read.

    bench/operations.py [--cluster] [--statements] [--gateway target/debug/voicegate]

Starts a Redis (or a Cluster of three), a PostgreSQL and a gateway with the shipped manifest (limits raised, and a chat that
is finished for who left added), does each kind of request a number of times, and prints what the servers counted
(`INFO commandstats`, `pg_stat_statements`), less what goes on by itself. docs/scale.md says what follows. Needs
redis-server, redis-cli and PostgreSQL with its contrib modules; nothing is left behind.
"""

import argparse
import base64
import collections
import contextlib
import glob
import http.client
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What only scripts use: they are one call from the gateway whatever they do inside.
INNER = {"time", "hmget", "hset", "hincrby", "pexpire", "zremrangebyscore", "zcard", "zadd", "pttl", "zscore", "xrevrange", "xadd",
         "get", "del"}
# Ours, and what the connections say about themselves.
OURS = {"info", "auth", "hello", "client", "client|setinfo", "client|setname", "command", "select", "cluster", "cluster|slots",
        "cluster|shards", "cluster|nodes", "readonly", "eval"}
PASSWORD = "Correct1horse"


def free_port(below=65_536):
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        # A node of a Cluster has a second port, 10,000 higher.
        if port < below:
            return port


def until(what, ask, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, subprocess.CalledProcessError, http.client.HTTPException):
            if ask():
                return
        time.sleep(0.05)
    raise RuntimeError(f"{what}: not within {seconds} s")


@contextlib.contextmanager
def running(command, **more):
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, **more)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Redis:
    """One server, or the nodes of a Cluster."""

    def __init__(self, stack, folder, nodes):
        self.ports = [free_port(55_000) for _ in range(nodes)]
        for port in self.ports:
            (folder / str(port)).mkdir()
            cluster = ["--cluster-enabled", "yes"] if nodes > 1 else []
            stack.enter_context(running(["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                                         "--dir", folder / str(port), *cluster]))
        for port in self.ports:
            until("redis-server", lambda: self.cli(port, "PING").strip() == "PONG")
        if nodes > 1:
            addresses = [f"127.0.0.1:{port}" for port in self.ports]
            subprocess.run(["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"], check=True, stdout=subprocess.DEVNULL)
            until("the Cluster", lambda: all("cluster_state:ok" in self.cli(port, "CLUSTER", "INFO") for port in self.ports))
        self.url = ",".join(f"redis://127.0.0.1:{port}" for port in self.ports)

    @staticmethod
    def cli(port, *words):
        return subprocess.run(["redis-cli", "-p", str(port), *words], check=True, capture_output=True, text=True).stdout

    def counted(self):
        """Calls and microseconds by command, and bytes in and out; the last is each node's calls."""
        calls, micros, nodes, flow = collections.Counter(), collections.Counter(), [], 0
        for port in self.ports:
            text = self.cli(port, "INFO", "all")
            mine = 0
            for name, count, usec in re.findall(r"cmdstat_(\S+?):calls=(\d+),usec=(\d+)", text):
                if name in OURS:
                    continue
                calls[name] += int(count)
                micros[name] += int(usec)
                mine += 0 if name in INNER else int(count)
            nodes.append(mine)
            flow += sum(int(found) for found in re.findall(r"total_net_(?:in|out)put_bytes:(\d+)", text))
        return calls, micros, nodes, flow

    def clients(self):
        return [int(re.search(r"connected_clients:(\d+)", self.cli(port, "INFO", "clients")).group(1)) - 1 for port in self.ports]


class Postgres:
    """A server of its own that counts statements."""

    def __init__(self, stack, folder):
        bins = sorted(glob.glob("/usr/lib/postgresql/*/bin")) or [os.path.dirname(shutil.which("postgres") or "")]
        self.port, data = free_port(), folder / "postgres"
        data.mkdir()
        # PostgreSQL refuses to run as root.
        user = {}
        if os.geteuid() == 0:
            shutil.chown(data, "postgres", "postgres")
            user = dict(user="postgres", group="postgres", cwd="/")
        program = lambda name: os.path.join(bins[-1], name)
        subprocess.run([program("initdb"), "-D", data, "-U", "bench", "--auth=trust", "-E", "UTF8", "--locale=C", "--no-sync"],
                       check=True, stdout=subprocess.DEVNULL, **user)
        stack.enter_context(running([program("postgres"), "-D", data, "-p", self.port, "-k", "", "-h", "127.0.0.1", "-F",
                                     "-c", "shared_preload_libraries=pg_stat_statements", "-c", "max_connections=200"],
                                    stderr=subprocess.DEVNULL, **user))
        until("postgres", lambda: self.ask("SELECT 1") == [["1"]])
        self.ask("CREATE EXTENSION pg_stat_statements")
        self.url = f"postgres://bench@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def ask(self, sql):
        out = subprocess.run(["psql", "-XAtq", "-F", "\x1f", "-R", "\x1e", "-h", "127.0.0.1", "-p", str(self.port), "-U", "bench", "-d",
                              "postgres", "-c", sql], check=True, capture_output=True, text=True).stdout.rstrip("\n")
        return [row.split("\x1f") for row in out.split("\x1e")] if out else []

    def counted(self):
        """Calls by statement, and bytes of the log that is written ahead."""
        rows = self.ask("SELECT calls, wal_bytes, query FROM pg_stat_statements WHERE query NOT LIKE '%pg_stat_%'")
        calls = collections.Counter()
        for count, _, query in rows:
            calls[" ".join(query.split())] += int(count)
        return calls, sum(int(wal) for _, wal, _ in rows)

    def clients(self):
        return int(self.ask("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")[0][0]) - 1


class Gateway:
    """The shipped manifest with room for many requests."""

    def __init__(self, stack, folder, program, redis, postgres):
        config = folder / "config"
        config.mkdir()
        for part in ("policies", "openapi"):
            shutil.copytree(ROOT / part, config / part)
        limits = next(file for file in (config / "policies").glob("*.yaml") if "rate_limits:" in file.read_text())
        limits.write_text(re.sub(r"limit: (\d+|\"[^\"]*\")", "limit: 1000000", limits.read_text()))
        text = (ROOT / "routes.yaml").read_text()
        begin = text.index("      - route: POST /chat/stream ")
        stream = text[begin:text.index("      - route: POST /chat/cancel")]
        kept = stream.replace("/chat/stream ", "/chat/kept ", 1).replace("on_disconnect: cancel", "on_disconnect: finish")
        assert kept.count("kept") == 1 and "finish" in kept, "the shipped chat has changed: this script too, please"
        (config / "routes.yaml").write_text(text[:begin] + kept + text[begin:])
        self.port, self.admin = free_port(), free_port()
        environment = {**os.environ, "DATABASE_URL": postgres.url, "REDIS_URL": redis.url, "LISTEN": f"127.0.0.1:{self.port}",
                       "ADMIN_LISTEN": f"127.0.0.1:{self.admin}", "JWT_SECRET": "of the operations: 0123456789abcdef", "LOG_LEVEL": "warn"}
        stack.enter_context(running([program, "serve", "--demo", "--config", config / "routes.yaml"], env=environment,
                                    stderr=open(folder / "gateway.log", "wb")))
        until("the gateway", lambda: self.call("GET", "/readyz")[0] == 200)
        self.bearer = None

    def call(self, method, path, body=None, bearer=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = dict(headers or {})
        if body is not None:
            headers["Content-Type"] = "application/json"
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        return answer.status, said

    def done(self, *call, **more):
        status, said = self.call(*call, **more)
        assert status < 300, f"{call[:2]}: {status} {said[:300]}"
        return json.loads(said) if said[:1] in (b"{", b"[") else said

    def socket(self, path, ticket):
        """An open WebSocket."""
        one = socket.create_connection(("127.0.0.1", self.port), 30)
        key = base64.b64encode(os.urandom(16)).decode()
        one.sendall(f"GET {path}?ticket={ticket} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                    f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
        said = one.recv(4096)
        assert b" 101 " in said.split(b"\r\n")[0] + b" ", said[:300]
        return one


def kinds(gateway):
    """Each kind of request, what makes one, and how often it is made."""
    ann = dict(username="ann", email="ann@example.com", password=PASSWORD)
    said = gateway.done("POST", "/api/v01/auth/register", ann)
    bearer = said["access_token"]
    session = gateway.done("POST", "/api/v01/sessions", {}, bearer)["session_id"]
    turn = lambda path: gateway.done("POST", path, {"session_id": session, "query": "why?"}, bearer)
    count = iter(range(10**6))
    logins = [gateway.done("POST", "/api/v01/auth/login", dict(username="ann", password=PASSWORD)) for _ in range(40)]
    spare = [gateway.done("POST", "/api/v01/sessions", {}, bearer)["session_id"] for _ in range(40)]
    sockets = []

    def resumed():
        status, text = gateway.call("POST", "/api/v01/chat/kept", {"session_id": session, "query": "why?"}, bearer)
        last = re.findall(rb"^id: ?(\S+)", text, re.M)[0].decode()
        gateway.done("POST", "/api/v01/chat/kept", {"session_id": session, "query": "why?"}, bearer, {"Last-Event-ID": last})

    def opened():
        ticket = gateway.done("POST", "/api/v01/auth/ws-ticket", bearer=bearer)["ticket"]
        one = gateway.socket("/api/v2/notifications", ticket)
        time.sleep(0.05)
        one.close()
        time.sleep(0.05)

    def held():
        for _ in range(10):
            ticket = gateway.done("POST", "/api/v01/auth/ws-ticket", bearer=bearer)["ticket"]
            sockets.append(gateway.socket("/api/v2/notifications", ticket))

    yield "proxied, public: one limit", lambda: gateway.done("GET", "/api/v2/health"), 50, None
    yield "proxied, token, role, limit", lambda: gateway.done("GET", "/api/v2/chat/sessions", bearer=bearer), 50, None
    yield "`cache`, found", lambda: gateway.done("GET", "/api/v01/search/suggestions?q=a", bearer=bearer), 50, None
    yield "SSE proxied: a limit, a slot", lambda: gateway.done("POST", "/api/v2/chat/stream", dict(session_id=session, query="why?"), bearer), 10, None
    yield "`auth.register`", lambda: gateway.done("POST", "/api/v01/auth/register", dict(
        username=f"bob{(n := next(count))}", email=f"bob{n}@example.com", password=PASSWORD)), 20, None
    yield "`auth.login`", lambda: gateway.done("POST", "/api/v01/auth/login", dict(username="ann", password=PASSWORD)), 20, None
    yield "`auth.refresh`", lambda: gateway.done("POST", "/api/v01/auth/refresh", dict(refresh_token=logins.pop()["refresh_token"])), 18, None
    yield "`auth.logout`", lambda: gateway.done("POST", "/api/v01/auth/logout", dict(refresh_token=(own := logins.pop())["refresh_token"]),
                                               own["access_token"]), 18, None
    yield "`auth.me`", lambda: gateway.done("GET", "/api/v01/auth/me", bearer=bearer), 20, None
    yield "`sessions.create`", lambda: gateway.done("POST", "/api/v01/sessions", {}, bearer), 20, None
    yield "`sessions.list`", lambda: gateway.done("GET", "/api/v01/sessions", bearer=bearer), 20, None
    yield "`sessions.messages`", lambda: gateway.done("GET", f"/api/v01/sessions/{session}/messages", bearer=bearer), 20, None
    yield "`sessions.delete`", lambda: gateway.done("DELETE", f"/api/v01/sessions/{spare.pop()}", bearer=bearer), 20, None
    yield "`chat.stream`, cancel", lambda: turn("/api/v01/chat/stream"), 10, None
    yield "`chat.stream`, finish", lambda: turn("/api/v01/chat/kept"), 10, None
    yield "the same, and read again", resumed, 10, None
    yield "WebSocket: ticket, open, close", opened, 10, None
    yield "10 WebSockets held 30 s, each", held, 1, (30, 10)
    for one in sockets:
        one.close()


def report(redis, postgres, gateway, idle, with_statements):
    """A line for each kind."""
    print("\n| one of | Redis: calls (round trips) | Redis µs, bytes | statements | WAL bytes |\n|---|---|---|---|---|")
    told = []
    for name, once, times, hold in kinds(gateway):
        if hold is None:
            once()
        time.sleep(0.2)
        before, begun = (redis.counted(), postgres.counted()), time.monotonic()
        for _ in range(times):
            once()
        time.sleep(hold[0] if hold else 0.5)
        after, took = (redis.counted(), postgres.counted()), time.monotonic() - begun
        per = hold[1] if hold else times
        calls, micros, statements = ({key: (now[key] - old[key] - took * rest[key]) / per for key in now}
                                     for now, old, rest in ((after[0][0], before[0][0], idle[0]), (after[0][1], before[0][1], idle[1]),
                                                            (after[1][0], before[1][0], idle[2])))
        flow = (after[0][3] - before[0][3]) / per
        outer = {key: value for key, value in calls.items() if key not in INNER and value > 0.05}
        spent = sum(value for key, value in micros.items() if key not in INNER)
        kept = {query: value for query, value in statements.items() if value > 0.05}
        shown = ", ".join(f"{value:.1f} {key}".replace(".0 ", " ") for key, value in sorted(outer.items(), key=lambda it: -it[1])) or "–"
        wal = (after[1][1] - before[1][1] - took * idle[3]) / per
        print(f"| {name} | {shown} | {spent:.0f} µs, {flow:.0f} B | {sum(kept.values()):.1f} | {max(wal, 0):.0f} |".replace(".0 |", " |"), flush=True)
        told.append((name, kept))
    if with_statements:
        for name, kept in told:
            print(f"\n{name}")
            for query, value in sorted(kept.items(), key=lambda it: -it[1]):
                print(f"  {value:5.1f}  {query[:150]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cluster", action="store_true", help="three nodes of a Redis Cluster instead of one server")
    parser.add_argument("--statements", action="store_true", help="every statement by kind of request")
    parser.add_argument("--gateway", type=pathlib.Path, default=ROOT / "target/debug/voicegate")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        redis, postgres = Redis(stack, folder, 3 if asked.cluster else 1), Postgres(stack, folder)
        gateway = Gateway(stack, folder, asked.gateway.resolve(), redis, postgres)
        time.sleep(3)
        before = redis.counted(), postgres.counted()
        time.sleep(20)
        after = redis.counted(), postgres.counted()
        rate = lambda now, old: collections.Counter({key: (now[key] - old[key]) / 20 for key in now})
        idle = (rate(after[0][0], before[0][0]), rate(after[0][1], before[0][1]), rate(after[1][0], before[1][0]),
                (after[1][1] - before[1][1]) / 20)
        print("A replica at rest, a second:")
        print("  Redis: " + ", ".join(f"{value:.2f} {key}" for key, value in idle[0].items() if value))
        for query, value in idle[2].items():
            if value:
                print(f"  PostgreSQL: {value:.2f}  {query[:140]}")
        print(f"  connections: Redis {redis.clients()} (by node), PostgreSQL {postgres.clients()}")
        report(redis, postgres, gateway, idle, asked.statements)
        print(f"\nconnections: Redis {redis.clients()} (by node), PostgreSQL {postgres.clients()}; calls by node {redis.counted()[2]}")


if __name__ == "__main__":
    main()
