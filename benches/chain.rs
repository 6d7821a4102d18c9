//! What the full chain costs, with state in memory and in Redis; what a flood of logins and a hanging Redis cost others; and
//! what each stage costs in instructions, which must not grow unnoticed.
//!
//! `cargo bench --profile counted --bench chain -- --instructions` counts under callgrind and fails where something costs over 5 % more than
//! `benches/chain/instructions.json` says; `scripts/test` runs it. With `--save` that file is written.
//!
//! `cargo bench --bench chain` takes times. The gateway is a process of its own, the load comes from here over connections that are
//! kept. Cases take turns in short rounds, so that what else the machine does meets all of them alike: compare figures
//! within one run. Without `--bench`, as under `cargo test`, each case runs once and briefly.

#![expect(clippy::print_stdout, reason = "its figures are what it is for")]
#![expect(unreachable_pub, reason = "the rooms of a benchmark are public to it")]

#[path = "chain/gateway.rs"]
mod gateway;
#[path = "chain/instructions.rs"]
mod instructions;
#[path = "chain/load.rs"]
mod load;
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "made for tests, which do more with it and fail by panicking"
)]
#[path = "../src/shared/testing.rs"]
mod redis;

use gateway::{Gateway, service};
use load::{Caller, Times, get, load, post};
use redis::RedisServer;
use std::net::SocketAddr;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// Callers that ask as fast as they are answered.
const CALLERS: usize = 16;
/// Callers of ordinary traffic, and how long each rests between requests.
const ORDINARY: (usize, Duration) = (8, Duration::from_millis(10));
/// Callers who log in, again and again.
const LOGINS: usize = 300;
/// What the gateway tells those it has no room for, in seconds.
const AGAIN: Duration = Duration::from_secs(1);
/// What a Redis that hangs may add to the 99th percentile.
const HANG: Duration = Duration::from_millis(100);

/// How much is measured.
#[derive(Clone, Copy)]
struct Scale {
    rounds: usize,
    slice: Duration,
}

/// What is asked of which gateway.
struct Case {
    name: &'static str,
    address: SocketAddr,
    request: Vec<u8>,
    times: Times,
}

impl Case {
    fn new(name: &'static str, gateway: &Gateway, path: &str) -> Self {
        let request = get(gateway.address, path, &gateway.token);
        Case { name, address: gateway.address, request, times: Times::default() }
    }

    async fn round(&mut self, callers: usize, pause: Duration, slice: Duration) {
        self.times.add(load(self.address, &self.request, callers, pause, slice).await);
    }

    /// A line of the table, compared with another case.
    fn show(&self, to: &Case) {
        let shares = [0.5, 0.99, 1.0];
        let [p50, p99, max] = self.times.within(shares);
        let [p50_to, p99_to, _] = to.times.within(shares);
        println!(
            "{:<44} {:>9.0} {:>9} {:>9} {:>9}   {:>5.2} {:>5.2} {:>5.2}",
            self.name,
            self.times.rate(),
            p50.as_micros(),
            p99.as_micros(),
            max.as_micros(),
            self.times.rate() / to.times.rate(),
            p50.as_secs_f64() / p50_to.as_secs_f64(),
            p99.as_secs_f64() / p99_to.as_secs_f64(),
        );
    }
}

fn head(title: &str, to: &str) {
    println!("\n{title}");
    println!(
        "{:<44} {:>9} {:>9} {:>9} {:>9}   {:>17}",
        "",
        "req/s",
        "p50 µs",
        "p99 µs",
        "max µs",
        format!("× {to}: r, 50, 99")
    );
}

fn main() -> ExitCode {
    let asked = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    let bench = asked("--bench");
    let scale = match bench {
        true => Scale { rounds: 6, slice: Duration::from_millis(500) },
        false => Scale { rounds: 1, slice: Duration::from_millis(100) },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    if asked("--instructions") {
        return runtime.block_on(instructions::run(asked("--save")));
    }
    runtime.block_on(async {
        let app = service();
        let memory = Gateway::start(app, None).await;
        let redis = has_redis().then(RedisServer::start);
        let shared = match &redis {
            Some(redis) => Some(Gateway::start(app, Some(&redis.url())).await),
            None => None,
        };
        if redis.is_none() {
            println!("no redis-server in PATH: what needs it is skipped");
        }
        chains(&memory, shared.as_ref(), scale).await;
        logins(&memory, scale).await;
        if let (Some(redis), Some(shared)) = (&redis, &shared) {
            hanging(redis, shared, scale).await;
        }
    });
    ExitCode::SUCCESS
}

fn has_redis() -> bool {
    let asked = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// (a), (b), (c): as fast as callers are answered.
async fn chains(memory: &Gateway, shared: Option<&Gateway>, scale: Scale) {
    let mut tables = Vec::new();
    for (target, path) in [("fixed answer", "fixed"), ("proxied", "proxied")] {
        let mut cases = vec![
            Case::new("(a) no stages", memory, &format!("/bare/{path}")),
            Case::new("(b) full chain, memory", memory, &format!("/full/{path}")),
        ];
        if let Some(shared) = shared {
            cases.push(Case::new("(c) full chain, Redis", shared, &format!("/full/{path}")));
        }
        tables.push((target, cases));
    }
    for case in tables.iter().flat_map(|(_, cases)| cases) {
        load(case.address, &case.request, CALLERS, Duration::ZERO, scale.slice / 4).await;
    }
    for _ in 0..scale.rounds {
        for case in tables.iter_mut().flat_map(|(_, cases)| cases) {
            case.round(CALLERS, Duration::ZERO, scale.slice).await;
        }
    }
    for (target, cases) in &tables {
        head(&format!("{target}, {CALLERS} connections"), "(a)");
        for case in cases {
            case.show(&cases[0]);
        }
    }
}

/// (d): ordinary traffic, alone and beside logins.
async fn logins(gateway: &Gateway, scale: Scale) {
    let (callers, pause) = ORDINARY;
    let mut alone = Case::new("proxied, full chain, alone", gateway, "/full/proxied");
    let mut beside = Case::new("(d) beside 300 concurrent logins", gateway, "/full/proxied");
    let tried = Arc::new([const { AtomicUsize::new(0) }; 2]);
    for _ in 0..scale.rounds {
        alone.round(callers, pause, scale.slice).await;
        let mut flood = JoinSet::new();
        for number in 0..LOGINS {
            flood.spawn(keep_logging_in(gateway.address, number, tried.clone()));
        }
        // From when the workers are busy.
        let refused = &tried[1];
        let before = refused.load(Ordering::Relaxed);
        while refused.load(Ordering::Relaxed) == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        beside.round(callers, pause, scale.slice * 2).await;
        // Leaves with them what waits in their queue, so that the next round begins in peace.
        flood.abort_all();
        while let Some(ended) = flood.join_next().await {
            assert!(ended.is_err_and(|error| error.is_cancelled()), "a login went wrong");
        }
        tokio::time::sleep(scale.slice * 2).await;
    }
    head(&format!("ordinary traffic, {callers} connections, {} ms apart", pause.as_millis()), "alone");
    alone.show(&alone);
    beside.show(&alone);
    let [compared, refused] = [0, 1].map(|which| tried[which].load(Ordering::Relaxed));
    println!("{:<44} {compared} compared, {refused} sent away with 503", "");
}

/// Logs in with a wrong password, again and again; comes back when it was told to.
async fn keep_logging_in(address: SocketAddr, number: usize, tried: Arc<[AtomicUsize; 2]>) {
    let mut caller = Caller::connect(address).await;
    // Another name each time: a name is locked after a few.
    loop {
        let turn = tried[0].load(Ordering::Relaxed) + tried[1].load(Ordering::Relaxed);
        let body = format!(r#"{{"username":"user_{number}_{turn}","password":"Wrong1horse"}}"#);
        match caller.ask(&post(address, "/login", &body)).await.status {
            401 => _ = tried[0].fetch_add(1, Ordering::Relaxed),
            503 => {
                tried[1].fetch_add(1, Ordering::Relaxed);
                // Not all at the same moment.
                tokio::time::sleep(AGAIN.mul_f64(1.0 + number as f64 / LOGINS as f64)).await;
            }
            status => panic!("a login was answered {status}"),
        }
    }
}

/// (e): ordinary traffic while Redis answers, and while it is stopped.
async fn hanging(redis: &RedisServer, gateway: &Gateway, scale: Scale) {
    let (callers, pause) = ORDINARY;
    let mut before = Case::new("proxied, full chain, Redis", gateway, "/full/proxied");
    let mut during = Case::new("(e) Redis stopped", gateway, "/full/proxied");
    // Fewer and longer: each time, those under way wait for the deadline, and nobody after them.
    for _ in 0..scale.rounds.div_ceil(2) {
        before.round(callers, pause, scale.slice).await;
        redis.signal("STOP");
        during.round(callers, pause, scale.slice * 4).await;
        redis.signal("CONT");
        // Asked once a second, it is found again.
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    head(&format!("ordinary traffic, {callers} connections, {} ms apart", pause.as_millis()), "Redis there");
    before.show(&before);
    during.show(&before);
    let ([there], [stopped]) = (before.times.within([0.99]), during.times.within([0.99]));
    let verdict = if stopped <= there + HANG { "within" } else { "BEYOND" };
    println!("{:<44} p99 grew by {:?}: {verdict} {HANG:?}", "", stopped.saturating_sub(there));
}
