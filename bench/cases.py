"""What is measured: gateways, and the work each is given. Every case runs all of its gateways in turn, round by round."""

import contextlib
import dataclasses
import os
import threading
import time

from drive import GATEWAY_CPU, HERE, LOAD_CPU, RUN, Process, alone, call, configured, h2load, token, tool, wrk

TOKEN = token()
VOICEGATE = 8006


@dataclasses.dataclass
class Gateway:
    """How a gateway is started, and where it listens."""

    name: str
    port: int
    command: tuple = ()
    env: dict = dataclasses.field(default_factory=dict)
    cpu: str = GATEWAY_CPU

    def start(self):
        if not self.command:
            return contextlib.nullcontext()
        return Process(self.name, self.command, self.port, self.cpu, self.env)


def voicegate(name="voicegate", manifest=HERE / "manifests" / "all.yaml", **env):
    """This project's gateway: one worker, its database and logs out of the way."""
    database = RUN / f"{name}.db"
    for file in RUN.glob(f"{database.name}*"):
        file.unlink()
    settings = dict(WORKERS="1", LISTEN=f"127.0.0.1:{VOICEGATE}", ADMIN_LISTEN="127.0.0.1:8096",
                    DATABASE_URL=f"sqlite://{database}", JWT_SECRET="bench-secret-0123456789abcdef0123456789")
    settings = {key: value for key, value in {**settings, **env}.items() if value is not None}
    return Gateway(name, VOICEGATE, (RUN / "voicegate", "serve", "--config", manifest), settings)


def envoy(port):
    command = (RUN / "venv" / "bin" / "envoy", "-c", configured("envoy.yaml"), "--concurrency", "1", "--log-level", "error",
               "--disable-hot-restart")
    return Gateway("envoy", port, command)


def gin(*flags):
    return Gateway("gin", 8005, (RUN / "gin", *flags), {"GOMAXPROCS": "1"})


def peers():
    caddy = {"GOMAXPROCS": "1", "XDG_DATA_HOME": str(RUN), "XDG_CONFIG_HOME": str(RUN)}
    return dict(
        direct=Gateway("direct", 9100),
        nginx=Gateway("nginx", 8001, ("nginx", "-c", configured("nginx.conf"))),
        haproxy=Gateway("haproxy", 8002, ("haproxy", "-f", configured("haproxy.cfg"), "-db")),
        relay=Gateway("relay", 8022, ("haproxy", "-f", configured("haproxy.cfg"), "-db")),
        haproxy_jwt=Gateway("haproxy", 8012, ("haproxy", "-f", configured("haproxy.cfg"), "-db")),
        envoy=envoy(8003),
        envoy_jwt=envoy(8013),
        caddy=Gateway("caddy", 8004, (RUN / "venv" / "bin" / "caddy", "run", "--config", configured("Caddyfile"), "--adapter",
                                      "caddyfile"), caddy),
        gin=gin(),
        gin_log=gin("-log"),
    )


@contextlib.contextmanager
def upstreams():
    """What every gateway forwards to, on the callers' CPU."""
    files = RUN / "files"
    files.mkdir(exist_ok=True)
    for name, size in (("16k", 16 << 10), ("1m", 1 << 20)):
        (files / name).write_bytes(b"x" * size)
    (RUN / "message").write_bytes(bytes(1) + (500).to_bytes(4, "big") + bytes(500))
    load = RUN / "load" / "release"
    with contextlib.ExitStack() as stack:
        for name, command, port in (
            ("upstream", ("nginx", "-c", configured("upstream.conf")), 9100),
            ("service", (load / "service",), 9101),
            ("calls", (load / "calls",), 9102),
            ("redis", ("redis-server", "--port", "9379", "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"), 9379),
        ):
            # What a POST asks for, which has no query to say it.
            stack.enter_context(Process(name, command, port, cpu=LOAD_CPU, env={"EVENTS": "300", "PACE": "20"}))
        yield


def costed(process, work):
    """Runs the work; what it printed, with what the gateway spent on it."""
    if process is None:
        return work()
    before, begun = process.cpu(), time.monotonic()
    row = work()
    spent, took = process.cpu() - before, time.monotonic() - begun
    row.update(cpu=spent / took, rss=process.memory(), rss_now=process.memory("VmRSS"))
    if row.get("count"):
        row["cpu_us"] = spent / row["count"] * 1e6
    return row


def requests(gateway, path, seconds, bearer=None, connections=64, script=None):
    """A gateway under wrk."""
    with gateway.start() as process:
        url = f"http://127.0.0.1:{gateway.port}{path}"
        wrk(url, 2, connections, bearer, script)
        return costed(process, lambda: wrk(url, seconds, connections, bearer, script))


def calls(gateway, path, seconds, grpc=False):
    """A gateway under h2load."""
    with gateway.start() as process:
        url = f"http://127.0.0.1:{gateway.port}{path}"
        extra = dict(data=RUN / "message", headers=("content-type: application/grpc", "te: trailers")) if grpc else {}
        h2load(url, 2, **extra)
        return costed(process, lambda: h2load(url, seconds, **extra))


def streams(gateway, count, events, pace, path="/sse"):
    """Event streams through a gateway."""
    with gateway.start() as process:
        port = 9101 if gateway.name == "direct" else gateway.port
        return costed(process, lambda: tool("events", f"127.0.0.1:{port}", path, count, events, pace, env={"TOKEN": TOKEN}))


def chats(gateway, count, events, pace):
    """Event streams through the native handler, every one of them stored."""
    with gateway.start() as process:
        user = dict(username="bench_user", password="Bench-password-1", email="bench@example.com")
        bearer = call(gateway.port, "/register", user)["access_token"]
        ids = [call(gateway.port, "/sessions", {}, bearer)["session_id"] for _ in range(count)]
        (RUN / "sessions").write_text("\n".join(ids))
        env = {"TOKEN": bearer, "SESSIONS": str(RUN / "sessions")}
        body = '{"session_id":"{}","query":"why?"}'
        return costed(process, lambda: tool("events", f"127.0.0.1:{gateway.port}", "/chat", count, events, pace, body, env=env))


def sockets(gateway, count, seconds, pace=20):
    """WebSockets that talk and are answered."""
    with alone(), gateway.start() as process:
        port = 9103 if gateway.name == "direct" else gateway.port
        return costed(process, lambda: tool("frames", f"127.0.0.1:{port}", "/ws", count, seconds, pace, 640))


def many_routes(count):
    """A manifest with that many routes, and a script that asks for all of them in turn. Asking costs the caller the same however
    many they are: all paths are as long, and the requests are written before they are needed."""
    lines = ["version: 1", 'upstreams: { app: { targets: [{ url: "http://127.0.0.1:9100" }], max_connections: 10000 } }', "routes:"]
    lines += [f"  - {{ route: GET /group{n % 100:02}/kind{n:05}/:id/detail, upstream: app, chain: [], public: true }}" for n in range(count)]
    manifest = RUN / f"routes-{count}.yaml"
    manifest.write_text("\n".join(lines) + "\n")
    script = RUN / f"routes-{count}.lua"
    # A stride that meets every route, and no two neighbours together.
    script.write_text(
        "local n, requests = 0, {}\n"
        f"init = function()\n  for n = 0, {count - 1} do\n"
        '    requests[n] = wrk.format("GET", string.format("/group%02d/kind%05d/abc/detail", n % 100, n))\n'
        f"  end\nend\nrequest = function()\n  n = (n + 7919) % {count}\n  return requests[n]\nend\n")
    return manifest, script


def routed(count, seconds):
    manifest, script = many_routes(count)
    return requests(voicegate(f"routes-{count}", manifest), "/", seconds, script=script)


def cored(workers, path, seconds, bearer=None):
    """Two cores for the gateway, the upstream and the caller alike, and so many workers: what a request costs is what counts."""
    gateway = voicegate(f"workers-{workers}", WORKERS=str(workers))
    return requests(dataclasses.replace(gateway, cpu=f"{LOAD_CPU},{GATEWAY_CPU}"), path, seconds, bearer)


def reloading(seconds, reload):
    """Load while the manifest is saved anew each second, or not."""
    text = (HERE / "manifests" / "all.yaml").read_text()
    manifest = RUN / "reloaded.yaml"
    manifest.write_text(text)
    over = threading.Event()

    def save():
        number = 0
        while not over.wait(1.0):
            number += 1
            new = manifest.with_suffix(".new")
            new.write_text(f"{text}  - {{ route: GET /added{number}, respond: {{ text: hello }}, chain: [], public: true }}\n")
            os.replace(new, manifest)

    gateway = voicegate("reloaded", manifest)
    saver = threading.Thread(target=save)
    with gateway.start() as process:
        url = f"http://127.0.0.1:{gateway.port}/plain/x"
        wrk(url, 2)
        if reload:
            saver.start()
        try:
            return costed(process, lambda: wrk(url, seconds))
        finally:
            over.set()
            if reload:
                saver.join()


def starting(gateway):
    """Start to the first answer, and memory at rest."""
    with gateway.start() as process:
        time.sleep(3)
        return dict(start_ms=process.took * 1000, idle=process.memory("VmRSS"))


def resting(gateway, count):
    """Memory with that many connections that were used once and kept."""
    import socket

    with gateway.start() as process:
        before, held = process.memory("VmRSS"), []
        request = b"GET /plain/x HTTP/1.1\r\nhost: bench\r\n\r\n"
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", gateway.port))
            one.sendall(request)
            one.recv(4096)
            held.append(one)
        time.sleep(1)
        after = process.memory("VmRSS")
        for one in held:
            one.close()
        return dict(connections=count, idle=before, rss_now=after)


def plan(seconds):
    """Every case: its letter, what it is, and what is run by name."""
    p = peers()
    ours = voicegate
    redis = dict(REDIS_URL="redis://127.0.0.1:9379")
    return {
        "a": ("plain proxying", {
            "direct": lambda: requests(p["direct"], "/x", seconds),
            "nginx": lambda: requests(p["nginx"], "/x", seconds),
            "haproxy": lambda: requests(p["haproxy"], "/x", seconds),
            "envoy": lambda: requests(p["envoy"], "/x", seconds),
            "caddy": lambda: requests(p["caddy"], "/x", seconds),
            "gin": lambda: requests(p["gin"], "/plain/x", seconds),
            "voicegate": lambda: requests(ours(), "/plain/x", seconds),
        }),
        "b": ("the full chain, limits in memory", {
            "haproxy": lambda: requests(p["haproxy_jwt"], "/x", seconds, TOKEN),
            "envoy": lambda: requests(p["envoy_jwt"], "/x", seconds, TOKEN),
            "gin (whole, Redis)": lambda: requests(p["gin_log"], "/whole/x", seconds, TOKEN),
            "voicegate": lambda: requests(ours(), "/chain/x", seconds, TOKEN),
        }),
        "c": ("the full chain on Redis", {
            "gin (whole, Redis)": lambda: requests(p["gin_log"], "/whole/x", seconds, TOKEN),
            "voicegate (chain)": lambda: requests(ours(**redis), "/chain/x", seconds, TOKEN),
            "voicegate (whole)": lambda: requests(ours(**redis), "/whole/x", seconds, TOKEN),
        }),
        "d": ("1,000 event streams of 300 events", {
            name: (lambda gateway: lambda: streams(gateway() if callable(gateway) else gateway, 1000, 300, 20))(gateway)
            for name, gateway in (("direct", p["direct"]), ("nginx", p["nginx"]), ("envoy", p["envoy"]), ("gin", p["gin"]),
                                  ("voicegate", ours))
        }),
        "d5": ("5,000 event streams of 60 events", {
            "nginx": lambda: streams(p["nginx"], 5000, 60, 200),
            "voicegate": lambda: streams(ours(), 5000, 60, 200),
        }),
        "dn": ("1,000 chats, stored", {
            "nginx (plain stream)": lambda: streams(p["nginx"], 1000, 300, 20),
            "voicegate": lambda: chats(ours(), 1000, 300, 20),
        }),
        "s": ("start and rest", {"voicegate": lambda: starting(ours())}),
        "k": ("10,000 kept connections at rest", {"voicegate": lambda: resting(ours(MAX_CONNECTIONS="20000"), 10_000)}),
        "e": ("1,000 WebSockets, 50 frames/s each way", {
            name: (lambda gateway: lambda: sockets(gateway() if callable(gateway) else gateway, 1000, 10))(gateway)
            for name, gateway in (("direct", p["direct"]), ("haproxy (TCP only)", p["relay"]), ("nginx", p["nginx"]),
                                  ("envoy", p["envoy"]), ("voicegate", ours))
        }),
        "f": ("10,000 routes", {
            f"{count:,} routes" if count > 1 else "1 route": (lambda count: lambda: routed(count, seconds))(count)
            for count in (1, 10, 100, 1_000, 10_000)
        }),
        "g16": ("answers of 16 KiB", {
            "nginx": lambda: requests(p["nginx"], "/files/16k", seconds),
            "envoy": lambda: requests(p["envoy"], "/files/16k", seconds),
            "gin": lambda: requests(p["gin"], "/files/16k", seconds),
            "voicegate": lambda: requests(ours(), "/files/16k", seconds),
        }),
        "g1m": ("answers of 1 MiB", {
            "nginx": lambda: requests(p["nginx"], "/files/1m", seconds, connections=16),
            "envoy": lambda: requests(p["envoy"], "/files/1m", seconds, connections=16),
            "gin": lambda: requests(p["gin"], "/files/1m", seconds, connections=16),
            "voicegate": lambda: requests(ours(), "/files/1m", seconds, connections=16),
        }),
        "h": ("a reload each second under load", {
            "without": lambda: reloading(seconds, False),
            "reloading": lambda: reloading(seconds, True),
        }),
        "i2": ("HTTP/2 without TLS", {
            "nginx": lambda: calls(dataclasses.replace(p["nginx"], port=8011), "/x", seconds),
            "envoy": lambda: calls(p["envoy"], "/x", seconds),
            "voicegate": lambda: calls(ours(), "/plain/x", seconds),
        }),
        "ig": ("gRPC passed through", {
            "nginx": lambda: calls(dataclasses.replace(p["nginx"], port=8011), "/bench.Calls/Ask", seconds, True),
            "envoy": lambda: calls(p["envoy"], "/bench.Calls/Ask", seconds, True),
            "voicegate": lambda: calls(ours(), "/bench.Calls/Ask", seconds, True),
        }),
        "n": ("one worker and two, on the same two cores as all else", {
            f"{what}, {workers}": (lambda workers, path, bearer: lambda: cored(workers, path, seconds, bearer))(workers, path, bearer)
            for what, path, bearer in (("fixed answer", "/fixed", None), ("plain", "/plain/x", None), ("chain", "/chain/x", TOKEN))
            for workers in (1, 2)
        }),
    }
