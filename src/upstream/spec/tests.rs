//! Sound and unsound upstreams.

use super::*;
use crate::diag::{FileId, SourceFile};
use crate::manifest::{decode::decode, node};

fn read(yaml: &str) -> (Option<UpstreamSpec>, Vec<(Code, String)>) {
    let mut out = Diagnostics::new();
    let file = SourceFile::new("m.yaml", yaml);
    let node = node::parse(FileId(0), &file, &mut out).unwrap();
    let decl: model::Upstream = decode(&node, &mut out).unwrap();
    let key = Key { text: "algo".into(), span: Span::new(FileId(0), 0, 0) };
    let spec = UpstreamSpec::check(&key, &decl, &Manifest::default(), &mut out);
    (spec, out.iter().map(|fault| (fault.code, fault.message.clone())).collect())
}

/// The checked form of a sound upstream called `algo`.
pub(in crate::upstream) fn spec(yaml: &str) -> Arc<UpstreamSpec> {
    let (spec, faults) = read(yaml);
    Arc::new(spec.unwrap_or_else(|| panic!("{faults:?}")))
}

fn codes(yaml: &str) -> Vec<Code> {
    let (spec, faults) = read(yaml);
    assert_eq!(spec.is_some(), faults.is_empty(), "{yaml}: {faults:?}");
    faults.into_iter().map(|(code, _)| code).collect()
}

#[test]
fn defaults_are_those_of_the_contract() {
    let spec = spec("targets: [{ url: \"http://LocalHost:8000/\" }, { url: \"https://[::1]\", weight: 0 }]");
    assert_eq!(&*spec.servers()[0].address, "localhost:8000");
    assert_eq!(spec.servers()[0].authority, "localhost:8000");
    assert_eq!(spec.servers()[0].url("/x"), "http://localhost:8000/x");
    assert_eq!(&*spec.servers()[1].address, "[::1]:443");
    assert_eq!(spec.servers()[1].authority, "[::1]");
    assert_eq!(spec.servers()[1].literal, Some("[::1]:443".parse().unwrap()));
    assert!(spec.servers()[0].tls.is_none() && spec.servers()[1].tls.is_some() && spec.tls().is_some());
    assert_eq!((spec.connect_timeout(), spec.max_connections()), (Duration::from_secs(1), 1000));
    assert_eq!(spec.timeouts().total, Duration::from_secs(300));
    assert_eq!(*spec.balance(), Choice::RoundRobin);
    assert!(spec.health().is_none());
}

#[test]
fn urls_are_servers_and_nothing_else() {
    for bad in
        ["ftp://h", "h:80", "http://", "http://u:p@h", "http://h/p", "http://h?q", "http://h#f", "http://h:0"]
    {
        let (_, faults) = read(&format!("targets: [{{ url: \"{bad}\" }}]"));
        assert_eq!(faults.len(), 1, "{bad}: {faults:?}");
        assert_eq!(faults[0].0, Code::BAD_VALUE, "{bad}");
        assert!(!faults[0].1.contains(bad), "values are not repeated: {}", faults[0].1);
    }
    assert_eq!(codes("targets: []"), [Code::MISSING_KEY]);
    assert_eq!(codes("targets: [{ url: \"http://h\", weight: 0 }]"), [Code::BAD_VALUE]);
}

#[test]
fn faults_of_several_keys_show_at_once() {
    let (_, faults) = read(
        "{ targets: [{ url: \"http://h\" }], protocol: grpc, retry: { methods: [GET, POST] }, protos: [a.proto], \
         descriptors: x, reflection: true }",
    );
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults.iter().any(|(code, text)| *code == Code::UNSAFE_RETRY && text.contains("POST")));
    assert!(faults.iter().any(|(code, _)| *code == Code::DESCRIPTORS));
}

#[test]
fn contradictions_are_found() {
    let with = |more: &str| codes(&format!("{{ targets: [{{ url: \"http://h\" }}], {more} }}"));
    assert_eq!(with("health: { path: /h, interval: 5s, timeout: 5s }"), [Code::DEADLINES]);
    assert_eq!(with("health: { path: h }"), [Code::BAD_VALUE]);
    assert_eq!(with("protos: [a.proto], json: {}"), [Code::MISPLACED; 2]);
    assert_eq!(with("protocol: grpc, protos: [a.proto], reflection: true"), [Code::DESCRIPTORS]);
    assert_eq!(with("protocol: grpc, descriptors: a.binpb, reflection: false"), []);
    assert_eq!(with("protocol: grpc, json: { max_message: 2GiB }"), [Code::BAD_VALUE]);
    assert_eq!(with("max_connections: 0"), [Code::BAD_VALUE]);
    assert_eq!(with("tls: { ca: x.pem }"), [Code::MISPLACED]);
    assert_eq!(codes("{ targets: [{ url: \"https://h\" }], tls: { ca: none.pem } }"), [Code::UNREADABLE]);
    assert_eq!(with("health: { path: /h, interval: 1s }"), []);
    assert_eq!(with("protocol: grpc, health: { path: /h }"), [Code::MISPLACED]);
    assert_eq!(with("health: { grpc: a.B }"), [Code::MISPLACED]);
    assert_eq!(with("health: { interval: 5s }"), [Code::HEALTH_CHECK]);
    assert_eq!(with("health: { path: /h, tcp: true }"), [Code::HEALTH_CHECK]);
    assert_eq!(with("protocol: grpc, health: { grpc: a.B, tcp: true }"), [Code::HEALTH_CHECK]);
    assert_eq!(with("health: { path: /h, tcp: false }"), []);
    assert_eq!(with("health: { tcp: true }"), []);
    assert_eq!(with("protocol: grpc, health: {}"), []);
    for by in ["user", "session", "ip", "header.X-Device"] {
        assert_eq!(with(&format!("balance: {{ hash: {by} }}")), [], "{by}");
    }
    assert_eq!(with("balance: { hash: cookie.a }"), [Code::HASH_KEY]);
    assert_eq!(with("balance: { hash: 'header.a b' }"), [Code::HASH_KEY]);
    assert_eq!(
        with("outlier: { consecutive_failures: 0, min_requests: 0, failure_ratio: 1.5, slow_factor: 0.5 }"),
        [Code::OUTLIER; 4]
    );
    assert_eq!(with("outlier: { slow_ratio: 0.5 }"), [Code::OUTLIER]);
    assert_eq!(with("outlier: { interval: 50ms }"), [Code::BAD_VALUE]);
    assert_eq!(with("outlier: { eject_for: 1m, max_eject_for: 30s }"), [Code::DEADLINES]);
}

#[test]
fn servers_are_ejected_where_there_is_another() {
    let on =
        |targets: &str, more: &str| spec(&format!("{{ targets: [{targets}], {more} }}")).outlier().is_some();
    let (one, two) = ("{ url: \"http://10.0.0.1\" }", "{ url: \"http://10.0.0.2\" }");
    assert!(!on(one, "") && on(&format!("{one}, {two}"), ""));
    assert!(on("{ url: \"http://name\" }", ""), "a name may have several addresses");
    assert!(!on(&format!("{one}, {two}"), "outlier: { enabled: false }"));
    let by_hash = spec(&format!("{{ targets: [{one}, {two}], balance: {{ hash: ip }} }}"));
    assert_eq!(by_hash.outlier().unwrap().slow_factor, None, "their callers differ");
}

#[test]
fn fingerprints_follow_content() {
    let print = |yaml: &str| spec(yaml).fingerprint();
    let plain = print("targets: [{ url: \"http://h:80\" }]");
    assert_eq!(plain, print("{ balance: round_robin, targets: [{ weight: 1, url: \"http://h\" }] }"));
    for other in [
        "targets: [{ url: \"http://h:81\" }]",
        "targets: [{ url: \"http://h\", weight: 2 }]",
        "{ targets: [{ url: \"http://h\" }], balance: random }",
        "{ targets: [{ url: \"http://h\" }], balance: { hash: ip } }",
        "{ targets: [{ url: \"http://h\" }], outlier: { consecutive_failures: 6 } }",
        "{ targets: [{ url: \"http://h\" }], panic_threshold: 0% }",
        "{ targets: [{ url: \"http://h\" }], slow_start: 1s }",
        "{ targets: [{ url: \"http://h\" }], resolve: { every: 1s } }",
        "{ targets: [{ url: \"http://h\" }], timeouts: { idle: 1s } }",
        "{ targets: [{ url: \"http://h\" }], health: { path: / } }",
        "targets: [{ url: \"https://h:80\" }]",
        "{ targets: [{ url: \"http://h\" }], protocol: grpc }",
    ] {
        assert_ne!(plain, print(other), "{other}");
    }
}

#[test]
fn breakers_and_retries_have_defaults() {
    let (spec, _) = read("{ targets: [{ url: \"http://h\" }], breaker: {}, retry: {} }");
    let spec = spec.unwrap();
    let breaker = spec.breaker().unwrap();
    assert_eq!((breaker.min_requests, breaker.failure_ratio, breaker.slow_call), (20, 0.5, None));
    let retry = spec.retry().unwrap();
    assert_eq!((retry.attempts, retry.connect, retry.reset, retry.budget), (2, true, true, 0.2));
    assert_eq!(retry.statuses, [502, 503, 504]);
    let (spec, _) = read(
        "{ targets: [{ url: \"http://h\" }], retry: { attempts: 3, on: [connect, 500], backoff: { base: 1s }, \
         hedge: { after: 50ms } } }",
    );
    let spec = spec.unwrap();
    let retry = spec.retry().unwrap();
    assert!(retry.connect && !retry.reset && retry.statuses == [500]);
    assert_eq!(retry.backoff_max, Duration::from_secs(1), "never below the base");
    assert_eq!(retry.hedge, Some(Duration::from_millis(50)));
}
