//! What requests cost in instructions, stage by stage, and whether that is more than it was.
//!
//! The gateway runs under callgrind, which counts every instruction of the process and is asked for its count between cases: no
//! clock takes part, so what else the machine does changes nothing. Not counted is what the kernel does for it. Each stage stands
//! alone in a chain of its own; what it costs is what the request costs beyond one without it.

use super::gateway::{Gateway, MANIFEST_OF_ALL};
use super::load::{Caller, get};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, mpsc};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Where the counts stand that a change is held against.
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/chain/instructions.json");
/// How much more than the baseline is let pass, as a factor.
const SLACK: f64 = 1.05;
/// The same where another compiler made the code.
const SLACK_OF_OTHERS: f64 = 1.15;
/// Requests before counting begins, and those that are counted.
const WARM: usize = 300;
const COUNTED: usize = 1000;

/// Chains of one stage, and what each is compared with.
const STAGES: &[(&str, &str, &str)] = &[
    ("access_log", "[access_log]", "bare"),
    ("recovery", "[recovery]", "bare"),
    ("cors", "[{ cors: default }]", "bare"),
    ("request_id", "[request_id]", "bare"),
    ("metrics", "[metrics]", "bare"),
    ("security_headers", "[security_headers]", "bare"),
    ("timeout", "[{ timeout: 30s }]", "bare"),
    ("body_limit", "[{ body_limit: 1MiB }]", "bare"),
    ("rate_limit", "[{ rate_limit: default }]", "bare"),
    ("auth", "[auth]", "bare"),
    ("rbac", "[auth, { rbac: \"session:read\" }]", "auth"),
    ("tenant", "[auth, tenant]", "auth"),
    ("concurrency", "[auth, { concurrency: { limit: 3, by: [user] } }]", "auth"),
];

/// Counts, shows, and compares with the baseline or (`save`) writes it. Fails where something costs more than it may.
pub async fn run(save: bool) -> ExitCode {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        println!("instructions are compared on x86_64 Linux only");
        return ExitCode::SUCCESS;
    }
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("valgrind counts the instructions, and is not here: install the package `valgrind`");
        return ExitCode::FAILURE;
    }
    let counts = count().await;
    show(&counts);
    let compiler = compiler();
    if save {
        let counts: Map<_, _> = counts.iter().map(|(name, count)| (name.clone(), json!(count))).collect();
        let text = json!({ "compiler": compiler, "instructions": counts });
        let text = serde_json::to_string_pretty(&text).expect("numbers and texts");
        std::fs::write(BASELINE, text + "\n").expect("the baseline can be written");
        println!("\nwritten to {BASELINE}");
        return ExitCode::SUCCESS;
    }
    match compare(&counts, &compiler) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// Compares with the baseline; how many cases are beyond it.
fn compare(counts: &[(String, u64)], compiler: &str) -> usize {
    let text = std::fs::read_to_string(BASELINE).expect("the baseline is part of the project");
    let baseline: Value = serde_json::from_str(&text).expect("the baseline was written by `--save`");
    let same = baseline["compiler"] == compiler;
    let slack = if same { SLACK } else { SLACK_OF_OTHERS };
    if !same {
        println!("\nthe baseline was made by {}, this by {compiler}", baseline["compiler"]);
    }
    let mut beyond = 0;
    for (name, count) in counts {
        let Some(before) = baseline["instructions"][name].as_u64() else {
            println!("{name}: not in the baseline; write it with --save");
            beyond += 1;
            continue;
        };
        if *count as f64 > before as f64 * slack {
            println!("{name}: {count} instructions, {before} before: beyond {slack} times");
            beyond += 1;
        }
    }
    if beyond == 0 {
        println!("\nwithin {slack} times the baseline");
    } else {
        println!(
            "\n{beyond} beyond the baseline. `callgrind_annotate` on the files in target/callgrind says where it goes. If it must be so, \
             `cargo bench --profile counted --bench chain -- --instructions --save` makes it the baseline, and the commit says why."
        );
    }
    beyond
}

fn show(counts: &[(String, u64)]) {
    let found: HashMap<&str, u64> = counts.iter().map(|(name, count)| (name.as_str(), *count)).collect();
    println!("{:<28} {:>12} {:>12}", "a request with", "instructions", "the stage");
    for (name, count) in counts {
        let than = STAGES.iter().find(|(stage, ..)| stage == name).and_then(|(.., than)| found.get(than));
        match than {
            Some(than) => println!("{name:<28} {count:>12} {:>12}", *count as i64 - *than as i64),
            None => println!("{name:<28} {count:>12}"),
        }
    }
}

fn compiler() -> String {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).arg("--version").output().expect("who builds this has a compiler");
    String::from_utf8_lossy(&said.stdout).split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// The manifest of all cases.
fn manifest() -> String {
    let mut text = MANIFEST_OF_ALL.to_owned();
    for (name, chain, _) in STAGES {
        let public = if chain.contains("auth") { "" } else { ", public: true" };
        text += &format!(
            "  - {{ route: GET /stage/{name}, chain: {chain}{public}, respond: {{ text: hello }} }}\n"
        );
    }
    text
}

async fn count() -> Vec<(String, u64)> {
    let go_on = Arc::new(Semaphore::new(0));
    let app = service(go_on.clone());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is in target").join("callgrind");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("the target folder is ours");
    let gateway = Gateway::counted(&manifest(), app, &folder.join("counts")).await;
    let mut callgrind = Callgrind { process: gateway.process.id(), folder, dumps: 0 };
    let mut counts = Vec::new();
    let stages = STAGES.iter().map(|(name, ..)| (*name, format!("/stage/{name}")));
    let whole = [
        ("bare", "/bare/fixed"),
        ("the full chain", "/full/fixed"),
        ("an upstream", "/bare/proxied"),
        ("the full chain, an upstream", "/full/proxied"),
    ];
    let whole = whole.map(|(name, path)| (name, path.to_owned()));
    for (name, path) in whole.into_iter().chain(stages) {
        let request = get(gateway.address, &path, &gateway.token);
        let mut caller = Caller::connect(gateway.address).await;
        for round in [WARM, COUNTED] {
            callgrind.zero();
            for _ in 0..round {
                let answer = caller.ask(&request).await;
                assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
            }
        }
        counts.push((name.to_owned(), callgrind.counted() / COUNTED as u64));
    }
    counts.push(("an event of a stream".to_owned(), events(&gateway, &mut callgrind, &go_on).await));
    counts
}

/// What an event costs that passes through: one at a time, the next when the one before has come.
async fn events(gateway: &Gateway, callgrind: &mut Callgrind, go_on: &Semaphore) -> u64 {
    let mut stream = TcpStream::connect(gateway.address).await.expect("the gateway listens");
    let request = get(gateway.address, "/bare/events", &gateway.token);
    stream.write_all(&request).await.expect("the gateway takes a request");
    let mut read = Vec::with_capacity(4096);
    for round in [WARM, COUNTED] {
        callgrind.zero();
        for _ in 0..round {
            read.clear();
            go_on.add_permits(1);
            while !read.windows(EVENT.len()).any(|bytes| bytes == EVENT) {
                let came = stream.read_buf(&mut read).await.expect("the stream goes on");
                assert!(came > 0, "the stream ended: {}", String::from_utf8_lossy(&read));
            }
        }
    }
    callgrind.counted() / COUNTED as u64
}

/// A process under callgrind, which writes what it has counted when asked.
struct Callgrind {
    process: u32,
    folder: PathBuf,
    dumps: usize,
}

impl Callgrind {
    /// Counts from here.
    fn zero(&self) {
        self.ask("zero");
    }

    /// How many instructions since then.
    fn counted(&mut self) -> u64 {
        self.ask("dump");
        self.dumps += 1;
        let path = self.folder.join(format!("counts.{}", self.dumps));
        let text = std::fs::read_to_string(&path).expect("callgrind wrote its count");
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        total.and_then(|total| total.trim().parse().ok()).expect("callgrind totals what it counted")
    }

    fn ask(&self, command: &str) {
        let asked = Command::new("vgdb").arg(format!("--pid={}", self.process)).arg(command).output();
        let said = asked.expect("vgdb is part of valgrind");
        assert!(said.status.success(), "vgdb: {}", String::from_utf8_lossy(&said.stderr));
    }
}

/// What the service says again and again.
const EVENT: &[u8] = b"data: {\"type\":\"token\",\"content\":\"word\"}\n\n";

/// A service that answers every request alike, and those for events with one event whenever it may go on.
fn service(go_on: Arc<Semaphore>) -> SocketAddr {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            tell.send(listener.local_addr().expect("it is bound")).expect("who asked waits");
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream, go_on.clone()));
            }
        });
    });
    told.recv().expect("the service starts")
}

async fn serve(mut stream: TcpStream, go_on: Arc<Semaphore>) -> std::io::Result<()> {
    let mut read = Vec::with_capacity(4096);
    // Bodies are empty, and the gateway sends a request at a time.
    while stream.read_buf(&mut read).await? > 0 {
        if !read.ends_with(b"\r\n\r\n") {
            continue;
        }
        if !read.starts_with(b"GET /events ") {
            read.clear();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                500
            );
            stream.write_all(&[head.as_bytes(), &[b'x'; 500]].concat()).await?;
            continue;
        }
        let head =
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head).await?;
        let chunk = [format!("{:x}\r\n", EVENT.len()).as_bytes(), EVENT, b"\r\n"].concat();
        while let Ok(permit) = go_on.acquire().await {
            permit.forget();
            stream.write_all(&chunk).await?;
        }
    }
    Ok(())
}
