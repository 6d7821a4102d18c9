//! What a large manifest costs: loading, checking and compiling 10,000 routes, and a lookup among 10 or 10,000: always
//! the same, whose memory is near, or each in turn, where with many routes none is.
//!
//! `cargo bench --bench table`. Figures are compared within one run; the lookup's should not depend on the number.

#![expect(missing_docs, reason = "the macros of criterion make items without any")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use voicegate::check::check;
use voicegate::check::router::Asked;
use voicegate::compile::{Parts, RoutingTable, compile};
use voicegate::handlers::Handlers;
use voicegate::manifest::load;
use voicegate::settings::Settings;
use voicegate::shared::{self, SharedLimits};
use voicegate::state::{Backends, Shared};
use voicegate::stores::{self, StoreLimits};
use voicegate::telemetry::Telemetry;
use voicegate::tokens::keys::Keys;
use voicegate::upstream::Registry;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

/// A manifest of so many routes, in the mix that real ones have.
fn manifest(routes: usize) -> String {
    let mut text = String::from(
        "version: 1\nupstreams: { algo: { targets: [{ url: \"http://127.0.0.1:8000\" }] } }\n\
         chains: { public: [access_log, recovery, request_id, metrics, security_headers] }\n\
         versions:\n  - name: v1\n    prefix: /api/v1\n    chain: public\n    routes:\n",
    );
    for n in 0..routes {
        let _ = match n % 4 {
            0 => writeln!(text, "      - {{ route: GET /r{n}, public: true, upstream: algo }}"),
            1 => writeln!(
                text,
                "      - {{ route: \"GET /r{n}/:id\", public: true, upstream: algo, path: \"/x/{{id}}\" }}"
            ),
            2 => writeln!(
                text,
                "      - {{ route: \"POST /r{n}/:id/items/:item\", public: true, upstream: algo }}"
            ),
            _ => writeln!(
                text,
                "      - {{ route: \"ANY /r{n}/*rest\", public: true, respond: {{ json: {{ n: {n} }} }} }}"
            ),
        };
    }
    text
}

/// A request that the nth of them takes.
fn request(n: usize) -> (Method, String) {
    match n % 4 {
        0 => (Method::GET, format!("/api/v1/r{n}")),
        1 => (Method::GET, format!("/api/v1/r{n}/abc")),
        2 => (Method::POST, format!("/api/v1/r{n}/abc/items/7")),
        _ => (Method::GET, format!("/api/v1/r{n}/a/b/c")),
    }
}

fn parts() -> Parts {
    let settings = <Cli as clap::Parser>::parse_from(["bench"]).settings;
    let (_, closing) = tokio::sync::watch::channel(false);
    let backends = async {
        let store =
            stores::open("sqlite::memory:", &StoreLimits::default()).await.expect("a store in memory");
        (store, shared::open(None, &SharedLimits::default()).await.expect("shared state in memory"))
    };
    let (store, state) = tokio::runtime::Handle::current().block_on(backends);
    let keys = Keys::new(b"of a bench", &[]);
    let backends = Backends::new(store, state, keys, &settings).expect("the defaults are sound");
    let shared = Shared::new(settings, Arc::new(Telemetry::default()), closing, backends);
    Parts { handlers: Handlers::new(&shared), upstreams: Registry::new(), shared }
}

fn table(file: &Path, parts: &Parts, before: Option<&RoutingTable>) -> RoutingTable {
    let none: BTreeMap<String, String> = BTreeMap::new();
    let outcome = check(load(file, &|name| none.get(name).cloned()), false);
    compile(Arc::new(outcome.checked.expect("the bench's manifest is sound")), parts, before)
}

fn benches(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let _inside = runtime.enter();
    let folder = tempfile::tempdir().expect("a folder");
    let parts = parts();
    let mut tables = Vec::new();
    for count in [10usize, 10_000] {
        let file = folder.path().join(format!("{count}.yaml"));
        std::fs::write(&file, manifest(count)).expect("a file");
        tables.push((count, file.clone(), table(&file, &parts, None)));
    }

    let mut group = c.benchmark_group("load, check and compile");
    group.sample_size(10);
    for (count, file, _) in &tables {
        group.bench_with_input(BenchmarkId::new("first", count), file, |b, file| {
            b.iter(|| table(file, &parts, None))
        });
    }
    let (count, file, before) = &tables[1];
    group.bench_with_input(BenchmarkId::new("unchanged", count), file, |b, file| {
        b.iter(|| table(file, &parts, Some(before)));
    });
    group.finish();

    let mut group = c.benchmark_group("lookup");
    let headers = HeaderMap::new();
    for (count, _, table) in &tables {
        let ask = |(method, path): &(Method, String)| {
            let asked = Asked { host: "localhost", method, path, headers: &headers, query: None };
            black_box(table.find(black_box(&asked)));
        };
        for (what, n) in [("static", 4), ("param", 5), ("params", 6), ("rest", 7)] {
            let request = request(n % count);
            group.bench_function(BenchmarkId::new(what, count), |b| b.iter(|| ask(&request)));
        }
        let requests: Vec<_> = (0..*count).map(request).collect();
        let mut n = 0;
        group.bench_function(BenchmarkId::new("each in turn", count), |b| {
            b.iter(|| {
                // A stride that meets every route, and no two neighbours together.
                n = (n + 7919) % count;
                ask(&requests[n]);
            });
        });
    }
    group.finish();
}

criterion_group!(all, benches);
criterion_main!(all);
