//! A headless Chromium, driven over its DevTools protocol: pages, what their scripts say, and what they ask for.
//!
//! What a page must not do is seen from outside it: [`Page::complaints`] are errors in its console, exceptions that nobody
//! caught and violations of its Content-Security-Policy; [`Page::requests`] are all addresses it asked. The browser finds
//! no host but loopback, so a test never depends on others' servers.

use super::client::PATIENCE;
use super::{Client, Wire, eventually};
use base64::Engine as _;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

/// A browser with a profile of its own. Ended when dropped.
pub struct Browser {
    child: Child,
    tools: SocketAddr,
    _profile: tempfile::TempDir,
}

/// A page of a browser.
pub struct Page {
    commands: mpsc::UnboundedSender<Message>,
    next: AtomicU64,
    seen: Arc<Mutex<Seen>>,
}

/// What a page's browser has told.
#[derive(Default)]
struct Seen {
    waiting: HashMap<u64, oneshot::Sender<Value>>,
    complaints: Vec<String>,
    requests: Vec<String>,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The group: Chromium is many processes.
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.child.id())]).status();
        let _ = self.child.wait();
    }
}

impl Browser {
    /// Starts Chromium; fails with the name of the package if there is none.
    pub async fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut child = Command::new("chromium")
            .args(["--headless=new", "--remote-debugging-port=0", "--no-sandbox", "--disable-gpu"])
            .args(["--no-first-run", "--disable-extensions", "--disable-component-update", "--mute-audio"])
            .args(["--disable-background-networking", "--disable-dev-shm-usage", "--hide-scrollbars"])
            .args(["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"])
            .arg("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("`chromium` does not start ({error}): install Debian's package chromium")
            });
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (say, said) = oneshot::channel();
        std::thread::spawn(move || {
            let mut say = Some(say);
            for line in stderr.lines().map_while(Result::ok) {
                let address = line.strip_prefix("DevTools listening on ws://");
                if let Some(address) = address.and_then(|rest| rest.split('/').next())
                    && let Some(say) = say.take()
                {
                    let _ = say.send(address.to_owned());
                }
            }
        });
        let said = tokio::time::timeout(2 * PATIENCE, said).await;
        let tools = said.expect("Chromium starts in time").expect("Chromium says where its tools are");
        Browser { child, tools: tools.parse().unwrap(), _profile: profile }
    }

    /// Opens a page, and returns once its scripts have run.
    pub async fn open(&self, url: &str) -> Page {
        self.open_with(url, "").await
    }

    /// The same, with a script that runs in every document of the page before those of its own.
    pub async fn open_with(&self, url: &str, before: &str) -> Page {
        let client = Client::new(self.tools);
        let target = client.send("PUT", "/json/new?about:blank", &[], "").await.json();
        let path = format!("/devtools/page/{}", target["id"].as_str().unwrap());
        let page = Page::attach(self.tools, &path).await;
        for domain in ["Page", "Runtime", "Network", "Log"] {
            page.call(&format!("{domain}.enable"), json!({})).await;
        }
        if !before.is_empty() {
            page.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": before })).await;
        }
        page.go(url).await;
        page
    }
}

impl Page {
    async fn attach(tools: SocketAddr, path: &str) -> Self {
        let mut wire = Wire::connect(tools).await;
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let ask = format!(
            "GET {path} HTTP/1.1\r\nHost: {tools}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        );
        wire.send(ask).await;
        let head = wire.head().await.expect("an answer");
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        let socket = WebSocketStream::from_raw_socket(wire.into_stream(), Role::Client, None).await;
        let seen = Arc::<Mutex<Seen>>::default();
        let (commands, asked) = mpsc::unbounded_channel();
        tokio::spawn(pump(socket, asked, seen.clone()));
        Page { commands, next: AtomicU64::new(1), seen }
    }

    /// Calls a method of the DevTools protocol; its result.
    pub async fn call(&self, method: &str, params: Value) -> Value {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        self.seen.lock().unwrap().waiting.insert(id, tell);
        let command = json!({ "id": id, "method": method, "params": params });
        self.commands.send(Message::text(command.to_string())).expect("the browser is there");
        let told = tokio::time::timeout(2 * PATIENCE, told).await;
        let mut answer = told.unwrap_or_else(|_| panic!("{method} in time")).expect("the browser is there");
        assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        answer["result"].take()
    }

    /// Goes to another address, and returns once it is loaded.
    pub async fn go(&self, url: &str) {
        let gone = self.call("Page.navigate", json!({ "url": url })).await;
        assert!(gone["errorText"].is_null(), "{url}: {}", gone["errorText"]);
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'").await;
    }

    /// Value of an expression, as JSON; a promise is awaited. Fails if it throws.
    pub async fn eval(&self, script: &str) -> Value {
        let asked =
            json!({ "expression": script, "awaitPromise": true, "returnByValue": true, "userGesture": true });
        let mut told = self.call("Runtime.evaluate", asked).await;
        assert!(told["exceptionDetails"].is_null(), "{script}: {}", told["exceptionDetails"]);
        told["result"]["value"].take()
    }

    /// Waits until an expression holds; fails with it and what the page complained of.
    pub async fn until(&self, script: &str) {
        self.until_within(script, 2 * PATIENCE).await;
    }

    async fn until_within(&self, script: &str, within: Duration) {
        let what = format!("`{script}`");
        let wrapped = format!("(() => {{ try {{ return Boolean({script}) }} catch {{ return false }} }})()");
        let begun = std::time::Instant::now();
        eventually(&what, within, || async {
            let holds = self.eval(&wrapped).await == true;
            if !holds && begun.elapsed() > within - Duration::from_millis(500) {
                let text = self.eval("document.body.innerText.slice(0, 2000)").await;
                panic!("not within {within:?}: {what}\ncomplaints: {:#?}\ntext: {text}", self.complaints());
            }
            holds
        })
        .await;
    }

    /// Errors in the console, exceptions nobody caught, and violations of its policy, so far.
    pub fn complaints(&self) -> Vec<String> {
        self.seen.lock().unwrap().complaints.clone()
    }

    /// Addresses that were asked for so far, of WebSockets too.
    pub fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().requests.clone()
    }

    /// Makes its window so wide and high, in CSS pixels, and its scheme `light` or `dark`.
    pub async fn resize(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", scheme).await;
    }

    /// Writes what it looks like to `target/screenshots/NAME.png`.
    pub async fn screenshot(&self, name: &str) -> PathBuf {
        let taken = self.call("Page.captureScreenshot", json!({ "format": "png" })).await;
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(taken["data"].as_str().unwrap()).unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{name}.png"));
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// Carries commands to the browser, and answers and events from it.
async fn pump(
    mut socket: WebSocketStream<TcpStream>,
    mut asked: mpsc::UnboundedReceiver<Message>,
    seen: Arc<Mutex<Seen>>,
) {
    loop {
        tokio::select! {
            command = asked.recv() => match command {
                Some(command) => {
                    if socket.send(command).await.is_err() {
                        break;
                    }
                }
                None => break,
            },
            told = socket.next() => match told {
                Some(Ok(Message::Text(text))) => {
                    let told: Value = serde_json::from_str(&text).unwrap();
                    seen.lock().unwrap().take(told);
                }
                Some(Ok(_)) => {}
                _ => break,
            },
        }
    }
    // Whoever waits learns that nothing comes.
    seen.lock().unwrap().waiting.clear();
}

impl Seen {
    fn take(&mut self, told: Value) {
        if let Some(id) = told["id"].as_u64() {
            if let Some(waiting) = self.waiting.remove(&id) {
                let _ = waiting.send(told);
            }
            return;
        }
        let event = &told["params"];
        match told["method"].as_str().unwrap_or_default() {
            "Network.requestWillBeSent" => self.asked(&event["request"]["url"]),
            "Network.webSocketCreated" => self.asked(&event["url"]),
            "Runtime.exceptionThrown" => {
                let details = &event["exceptionDetails"];
                let text = details["exception"]["description"].as_str().or(details["text"].as_str());
                self.complaints.push(format!("exception: {}", text.unwrap_or_default()));
            }
            "Runtime.consoleAPICalled" if ["error", "assert"].iter().any(|kind| event["type"] == *kind) => {
                self.complaints.push(format!("console: {}", event["args"]));
            }
            "Log.entryAdded" if event["entry"]["level"] == "error" => {
                let entry = &event["entry"];
                self.complaints.push(format!("{}: {} {}", entry["source"], entry["text"], entry["url"]));
            }
            _ => {}
        }
    }

    fn asked(&mut self, url: &Value) {
        self.requests.push(url.as_str().unwrap_or_default().to_owned());
    }
}
