//! What grows with callers, and what with cores: a limiter's decision and its bytes among 1,000 to 10,000,000 keys, a
//! token's verification and its bytes among 1,000 to 1,000,000 users, and the whole chain on one thread and on two.
//!
//! `cargo bench --bench scale`. Each line is a process of its own, so that its memory is its alone. Time and bytes of
//! keys and users should not depend on their number beyond what the processor's caches make of it; the chain on two threads
//! is held against arithmetic on two threads, since what a machine calls two cores may be less. Without `--bench`, as under
//! `cargo test`, everything runs once and small. docs/scale.md says what follows from the figures.

#![expect(clippy::print_stdout, reason = "its figures are what it is for")]

use http::Method;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant, SystemTime};
use voicegate::check::check;
use voicegate::compile::{Parts, RoutingTable, compile, finish};
use voicegate::error::Lang;
use voicegate::exchange::{Arrival, Exchange};
use voicegate::handlers::Handlers;
use voicegate::manifest::load;
use voicegate::settings::Settings;
use voicegate::shared::{self, Limit, Memory, SharedLimits};
use voicegate::state::{Backends, Shared};
use voicegate::stores::{self, StoreLimits, User};
use voicegate::telemetry::Telemetry;
use voicegate::tokens::Tokens;
use voicegate::tokens::keys::Keys;
use voicegate::upstream::Registry;

const LIMIT: Limit = Limit { limit: 100, per: Duration::from_secs(60) };
/// Rounds of the chain on one thread and on two, in turn.
const ROUNDS: usize = 7;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let figure = |at: usize| arguments.get(at).and_then(|text| text.parse().ok()).expect("a number");
    match arguments.get(1).map(String::as_str) {
        Some("limiter") => limiter(figure(2), figure(3), figure(4)),
        Some("tokens") => tokens(figure(2), figure(3), figure(4)),
        Some("cores") => cores(Duration::from_millis(figure(2) as u64)),
        _ => all(arguments.iter().any(|argument| argument == "--bench")),
    }
}

/// Every line, each by a process of its own.
fn all(bench: bool) {
    let itself = std::env::current_exe().expect("a program knows its file");
    let line = |what: &str, figures: &[usize]| {
        let figures = figures.iter().map(usize::to_string);
        let status = Command::new(&itself).arg(what).args(figures).status();
        assert!(status.expect("the bench can run itself").success(), "{what} failed");
    };
    let asked = if bench { 4_000_000 } else { 10_000 };
    let room = SharedLimits::default().keys;
    println!("{:<34} {:>12} {:>10} {:>10} {:>12}", "a limit's decision", "keys", "ns", "MiB", "bytes a key");
    for keys in [1_000, 100_000, 1_000_000, 10_000_000] {
        if bench || keys <= 1_000 {
            line("limiter", &[keys, room, asked]);
        }
    }
    // A flood: ten times as many callers as there is room for.
    line("limiter", if bench { &[10_000_000, 1_000_000, 4_000_000] } else { &[100_000, 10_000, 1_000] });
    println!(
        "\n{:<34} {:>12} {:>10} {:>10} {:>12}",
        "a token's verification", "users", "ns", "MiB", "bytes a user"
    );
    for (users, room) in [
        (1_000, 16_384),
        (10_000, 16_384),
        (100_000, 16_384),
        (1_000_000, 16_384),
        (100_000, 262_144),
        (1_000_000, 2_097_152),
    ] {
        if bench || users <= 1_000 {
            line("tokens", &[users, room, asked / 4]);
        }
    }
    println!("\n{:<34} {:>12} {:>10} {:>10} {:>12}", "on every core", "one", "two", "times", "range");
    line("cores", &[if bench { 300 } else { 20 }]);
}

/// Memory of this process.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<usize>().ok());
    kib.unwrap_or_default() * 1024
}

/// Numbers below `most`, without an order that caches could follow.
fn scattered(most: usize) -> impl FnMut() -> usize {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % most as u64) as usize
    }
}

fn show(what: &str, count: usize, took: Duration, asked: usize, bytes: usize) {
    println!(
        "{what:<34} {count:>12} {:>10.0} {:>10.1} {:>12.0}",
        took.as_nanos() as f64 / asked as f64,
        bytes as f64 / f64::from(1 << 20),
        bytes as f64 / count as f64
    );
}

/// So many callers, each of whom was counted before, ask a limit with room for `room` of them.
fn limiter(keys: usize, room: usize, asked: usize) {
    let before = resident();
    let memory = Memory::with_room_for(room);
    let mut key = String::with_capacity(64);
    let mut hit = |number: usize| {
        key.clear();
        let _ = write!(key, "default 100/60000 ip user:{number:032x}");
        memory.hit_now(&key, LIMIT, SystemTime::now())
    };
    (0..keys).for_each(|number| _ = black_box(hit(number)));
    let held = resident().saturating_sub(before);
    let mut next = scattered(keys);
    let begun = Instant::now();
    (0..asked).for_each(|_| _ = black_box(hit(next())));
    let took = begun.elapsed();
    let kept = memory.keys();
    assert!(kept <= room + 1024, "{kept} keys are kept where there is room for {room}");
    show(&format!("LIMITER_KEYS={room}"), keys, took, asked, held);
}

/// So many users, each of whom was there before, come with their tokens; `room` of those are remembered.
fn tokens(users: usize, room: usize, asked: usize) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (store, state) = runtime.block_on(backends());
    let _inside = runtime.enter();
    let known = Tokens::new(Keys::new(b"of a bench: 32 bytes and a few more", &[]), store, state, room);
    let now = SystemTime::now();
    let brought: Vec<String> =
        (0..users).map(|number| known.issue(&user(number), Some("web"), now).token).collect();
    let before = resident();
    let verify = |number: usize| {
        let identity = known.verify(&brought[number], SystemTime::now());
        black_box(identity.expect("it was just issued"));
    };
    (0..users).for_each(verify);
    let held = resident().saturating_sub(before);
    let mut next = scattered(users);
    let begun = Instant::now();
    (0..asked).for_each(|_| verify(next()));
    show(&format!("TOKEN_CACHE={room}"), users, begun.elapsed(), asked, held);
}

fn user(number: usize) -> User {
    User {
        id: format!("00000000-0000-4000-8000-{number:012}"),
        tenant_id: format!("tenant-{}", number % 100),
        username: format!("user_{number}"),
        email: None,
        password_hash: None,
        role: "user".to_owned(),
        openid: None,
        disabled: false,
        created_at: SystemTime::UNIX_EPOCH,
        last_login_at: None,
    }
}

async fn backends() -> (stores::AnyStore, shared::AnyShared) {
    let store = stores::open("sqlite::memory:", &StoreLimits::default()).await.expect("a store in memory");
    (store, shared::open(None, &SharedLimits::default()).await.expect("shared state in memory"))
}

/// What one thread does in a second, and two: arithmetic, and requests through the table without any socket.
fn cores(slice: Duration) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    compare("arithmetic", slice, &|_| {
        let mut next = scattered(1 << 20);
        Box::new(move || (0..1000).for_each(|_| _ = black_box(next())))
    });
    let (table, token) = whole(&runtime);
    for (what, path, one_user) in [
        ("no stages", "/bare/x", true),
        ("the chain, one caller's limit", "/full/x", true),
        ("the chain, a caller a thread", "/full/x", false),
    ] {
        compare(what, slice, &|thread| {
            let (table, token) = (table.clone(), token.clone());
            let address = Ipv4Addr::new(127, 0, 0, if one_user { 1 } else { 1 + thread as u8 });
            let local = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            Box::new(move || local.block_on(ask(&table, path, &token, address.into())))
        });
    }
}

/// A table whose routes answer by themselves, and a token for them.
fn whole(runtime: &tokio::runtime::Runtime) -> (Arc<RoutingTable>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("routes.yaml");
    let text = r#"
version: 1
cors: { default: { origins: ["http://localhost:3000"] } }
rate_limits: { default: { limit: 1000000000, per: 1m, by: [ip, route] } }
roles: { user: { allow: ["session:read"] } }
chains:
  full: [access_log, recovery, { cors: default }, request_id, metrics, security_headers, { rate_limit: default }, auth,
         { rbac: "session:read" }, tenant]
routes:
  - { route: "GET /bare/*rest", chain: [], public: true, respond: { text: hello } }
  - { route: "GET /full/*rest", chain: full, respond: { text: hello } }
"#;
    std::fs::write(&file, text).expect("the folder is ours");
    let settings = <Cli as clap::Parser>::parse_from(["bench"]).settings;
    let (store, state) = runtime.block_on(backends());
    let keys = Keys::new(b"of a bench: 32 bytes and a few more", &[]);
    let backends = Backends::new(store, state, keys, &settings).expect("the defaults are sound");
    let (_, closing) = tokio::sync::watch::channel(false);
    let shared = Shared::new(settings, Arc::new(Telemetry::default()), closing, backends);
    let token = shared.tokens.issue(&user(1), None, SystemTime::now()).token;
    let parts = Parts { handlers: Handlers::new(&shared), upstreams: Registry::new(), shared };
    let none: BTreeMap<String, String> = BTreeMap::new();
    let outcome = check(load(&file, &|name| none.get(name).cloned()), false);
    (
        Arc::new(compile(Arc::new(outcome.checked.expect("the bench's manifest is sound")), &parts, None)),
        token,
    )
}

/// One request, to the last byte of its answer.
async fn ask(table: &RoutingTable, path: &str, token: &str, client_ip: IpAddr) {
    let exchange = Exchange::begin(Arrival {
        peer: SocketAddr::new(client_ip, 40_000),
        client_ip,
        secure: false,
        method: Method::GET,
        path: path.to_owned(),
        lang: Lang::default(),
    });
    let request = poem::Request::builder()
        .uri(path.parse::<http::Uri>().expect("it is a path"))
        .header("authorization", format!("Bearer {token}"))
        .extension(exchange.clone())
        .finish();
    let answer = finish(table.answer(&exchange, "localhost", request).await);
    exchange.set_status(answer.status().as_u16());
    assert_eq!(answer.status(), 200);
    black_box(answer.into_body().into_vec().await).expect("the answer is whole");
}

/// Work that is done again and again, made for a thread.
type Work<'a> = dyn Fn(usize) -> Box<dyn FnMut()> + Sync + 'a;

/// Times a second that one thread does something, and two; the range of their ratio over the rounds.
fn compare(what: &str, slice: Duration, work: &Work<'_>) {
    let mut rounds: Vec<[f64; 2]> =
        (0..ROUNDS).map(|_| [1, 2].map(|threads| together(threads, slice, work))).collect();
    rounds.sort_by(|a, b| (a[1] / a[0]).total_cmp(&(b[1] / b[0])));
    let times = |[one, two]: [f64; 2]| two / one;
    let [one, two] = rounds[ROUNDS / 2];
    println!(
        "{what:<34} {one:>12.0} {two:>10.0} {:>10.2} {:>12}",
        two / one,
        format!("{:.2}–{:.2}", times(rounds[0]), times(rounds[ROUNDS - 1]))
    );
}

/// Times a second that so many threads do something, all together.
fn together(threads: usize, slice: Duration, work: &Work<'_>) -> f64 {
    let start = Barrier::new(threads);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let start = &start;
                scope.spawn(move || {
                    let mut work = work(thread);
                    work();
                    start.wait();
                    let (begun, mut count) = (Instant::now(), 0u64);
                    while begun.elapsed() < slice {
                        work();
                        count += 1;
                    }
                    count as f64 / begun.elapsed().as_secs_f64()
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("nothing panics in it")).sum()
    })
}
