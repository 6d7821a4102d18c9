//! Three targets under steady load; one is killed, one slows down; then both heal.
//!
//! `cargo bench --bench upstreams`. The gateway is a process of its own with the rules of the shipped defaults, but for
//! ejections of three seconds instead of thirty, so that the run is not an hour. Requests come at a fixed pace,
//! whatever becomes of those before (an open loop), so what waits behind a slow target is seen. Every second is a line:
//! requests by the second in which they began, errors, the time of their answers, and what the admin API says of the
//! targets at its end. Without `--bench`, as under `cargo test`, everything is short and little.

#![expect(clippy::print_stdout, reason = "its figures are what it is for")]
#![expect(unreachable_pub, reason = "the rooms of a benchmark are public to it")]

#[path = "upstreams/gateway.rs"]
mod gateway;
#[path = "upstreams/target.rs"]
mod target;

use gateway::{Gateway, get};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use target::Target;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout};

/// How long a target that slowed down takes.
const SLOW: Duration = Duration::from_secs(2);
/// What a well one takes.
const WELL: Duration = Duration::from_millis(5);
/// After this a request has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// How much is measured.
#[derive(Clone, Copy)]
struct Scale {
    /// Requests a second.
    rate: u32,
    /// Until anything happens.
    healthy: Duration,
    /// From the faults to the healing.
    ill: Duration,
    /// What is left to come back.
    healed: Duration,
}

/// A request as its caller saw it; `began` since the run did.
#[derive(Clone)]
struct Seen {
    began: Duration,
    took: Duration,
    /// What it got instead of an answer.
    fault: Option<String>,
}

/// What the targets were at a moment: a letter for each, `+` well, `E` ejected, `T` on trial, `D` down.
type States = String;

fn main() {
    let bench = std::env::args().any(|argument| argument == "--bench");
    let secs = Duration::from_secs;
    let scale = match bench {
        true => Scale { rate: 300, healthy: secs(10), ill: secs(30), healed: secs(30) },
        false => Scale { rate: 60, healthy: secs(1), ill: secs(2), healed: secs(1) },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.expect("a runtime").block_on(run(scale, bench));
}

async fn run(scale: Scale, bench: bool) {
    let mut targets = [Target::start(WELL).await, Target::start(WELL).await, Target::start(WELL).await];
    let gateway = Gateway::start(targets.each_ref().map(|target| target.address)).await;
    println!(
        "{} requests a second to three targets of {WELL:?}; then the first is killed, the second takes {SLOW:?}",
        scale.rate
    );
    println!(
        "{:>4}  {:>8} {:>7} {:>9} {:>9} {:>9}  targets",
        "s", "requests", "errors", "p50 ms", "p99 ms", "max ms"
    );
    let (seen, states) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::<Mutex<Vec<States>>>::default());
    let began = Instant::now();
    let whole = scale.healthy + scale.ill + scale.healed;
    let load = tokio::spawn(load(gateway.address, scale.rate, whole, began, seen.clone()));
    let watch = tokio::spawn(watch(gateway.admin, began, states.clone()));
    sleep(scale.healthy).await;
    targets[0].kill();
    targets[1].take(SLOW);
    sleep(scale.ill).await;
    targets[0].revive().await;
    targets[1].take(WELL);
    load.await.expect("the load does not panic");
    watch.abort();
    let seen = seen.lock().expect("nobody panicked").clone();
    let states = states.lock().expect("nobody panicked").clone();
    for second in 0..whole.as_secs() {
        let (from, to) = (Duration::from_secs(second), Duration::from_secs(second + 1));
        let now = if from == scale.healthy {
            "  <- killed, slowed"
        } else if from == scale.healthy + scale.ill {
            "  <- healed"
        } else {
            ""
        };
        let figures = Figures::of(&seen, from, to);
        let state = states.get(second as usize).map_or("", String::as_str);
        println!("{second:>4}  {figures}  {state}{now}");
    }
    summary(scale, &seen, &states, bench);
}

fn summary(scale: Scale, seen: &[Seen], states: &[States], bench: bool) {
    let out = |state: &States| {
        let away = |letter: &char| matches!(letter, 'E' | 'T' | 'D');
        state.chars().take(2).filter(away).count() == 2
    };
    let (sick, healed) = (scale.healthy, scale.healthy + scale.ill);
    let after = |from: Duration, wanted: &dyn Fn(&States) -> bool| {
        let found = states.iter().enumerate().skip(from.as_secs() as usize).find(|(_, state)| wanted(state));
        found.map(|(second, _)| Duration::from_secs(second as u64 + 1))
    };
    let healthy = Figures::of(seen, Duration::ZERO, sick);
    let ejected = after(sick, &out);
    let back = after(healed, &|state| state.starts_with("+++"));
    println!();
    println!("healthy                          {healthy}");
    match ejected {
        None => println!("both were never ejected at the same time"),
        Some(at) => {
            let ejected = Figures::of(seen, at, healed);
            println!("from ejection to healing         {ejected}");
            println!(
                "  ejected after {:?}; p99 {:.2} x healthy; error rate {:.4} %",
                at - sick,
                ejected.p99 / healthy.p99,
                ejected.error_rate()
            );
        }
    }
    match back {
        None => println!("not all were back"),
        Some(at) => {
            let end = healed + scale.healed;
            println!("all back                         {}", Figures::of(seen, at, end));
            println!("  back {:?} after the healing", at.saturating_sub(healed));
        }
    }
    let mut faults = BTreeMap::<_, usize>::new();
    for fault in seen.iter().filter_map(|seen| seen.fault.as_ref()) {
        *faults.entry(fault).or_default() += 1;
    }
    println!("errors: {faults:?}");
    if !bench {
        println!("(a short run: its figures say nothing)");
    }
}

/// Some requests in numbers; times in milliseconds.
struct Figures {
    requests: usize,
    errors: usize,
    p50: f64,
    p99: f64,
    max: f64,
}

impl Figures {
    /// Of those that began in this time.
    fn of(seen: &[Seen], from: Duration, to: Duration) -> Self {
        let these: Vec<&Seen> = seen.iter().filter(|seen| seen.began >= from && seen.began < to).collect();
        let mut took: Vec<f64> = these.iter().map(|seen| seen.took.as_secs_f64() * 1e3).collect();
        took.sort_unstable_by(f64::total_cmp);
        let within = |share: f64| match took.len() {
            0 => f64::NAN,
            count => took[((count - 1) as f64 * share) as usize],
        };
        Figures {
            requests: these.len(),
            errors: these.iter().filter(|seen| seen.fault.is_some()).count(),
            p50: within(0.5),
            p99: within(0.99),
            max: within(1.0),
        }
    }

    fn error_rate(&self) -> f64 {
        self.errors as f64 * 100.0 / self.requests.max(1) as f64
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures { requests, errors, p50, p99, max } = self;
        write!(f, "{requests:>8} {errors:>7} {p50:>9.2} {p99:>9.2} {max:>9.2}")
    }
}

/// Requests at a fixed pace, each on its own.
async fn load(address: SocketAddr, rate: u32, time: Duration, began: Instant, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut pace = interval(Duration::from_secs(1) / rate);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = tokio::task::JoinSet::new();
    while began.elapsed() < time {
        pace.tick().await;
        let seen = seen.clone();
        running.spawn(async move {
            let asked = began.elapsed();
            let answer = timeout(PATIENCE, get(address, "/")).await;
            let fault = match answer {
                Ok(Ok((200, _))) => None,
                Ok(Ok((status, body))) => Some(format!("{status} {}", code(&body))),
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("no answer in time".to_owned()),
            };
            let took = began.elapsed() - asked;
            seen.lock().expect("nobody panics with it").push(Seen { began: asked, took, fault });
        });
        while running.try_join_next().is_some() {}
    }
    while running.join_next().await.is_some() {}
}

/// The code of an error that the gateway made itself.
fn code(body: &[u8]) -> String {
    let said: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    said.and_then(|said| said["code"].as_str().map(str::to_owned)).unwrap_or_default()
}

/// What the admin API says of the targets, at the end of each second.
async fn watch(admin: SocketAddr, began: Instant, states: Arc<Mutex<Vec<States>>>) {
    for second in 1u64.. {
        sleep_until((began + Duration::from_secs(second)).into()).await;
        let state = match timeout(Duration::from_millis(900), get(admin, "/admin/api/upstreams")).await {
            Ok(Ok((200, body))) => read(&body).unwrap_or_default(),
            _ => "?".to_owned(),
        };
        states.lock().expect("nobody panics with it").push(state);
    }
}

fn read(body: &[u8]) -> Option<States> {
    let said: serde_json::Value = serde_json::from_slice(body).ok()?;
    let servers = said["upstreams"][0]["servers"].as_array()?;
    let letter = |server: &serde_json::Value| {
        if !server["ejected"].is_null() {
            'E'
        } else if server["condition"] == "down" {
            'D'
        } else if server["on_trial"] == true {
            'T'
        } else {
            '+'
        }
    };
    Some(servers.iter().map(letter).collect())
}
