//! The documentation as a developer meets it: in a browser, on a gateway that serves what is shipped.

use crate::harness::browser::Page;
use crate::harness::{Browser, Gateway, eventually, node};
use crate::shipped::shipped;
use std::time::Duration;
use voicegate::demo::Demo;

/// The driver itself: it sees what a page says, asks for and complains of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_tells_what_a_page_does() {
    let page = r#"<!doctype html><title>t</title><p id=p>no</p><script src="s.js"></script>"#;
    let script = "document.getElementById('p').textContent = 'yes'; console.error('oh'); eval('1')";
    let policy = "[{ security_headers: { content_security_policy: \"script-src 'self'\" } }]";
    let fixed = |path: &str, kind: &str, body: &str| {
        let body = serde_json::to_string(body).unwrap();
        format!(
            "  - {{ route: GET {path}, public: true, chain: {policy}, respond: {{ text: {body}, headers: {{ content-type: {kind} }} }} }}\n"
        )
    };
    let manifest =
        format!("routes:\n{}{}", fixed("/p", "text/html", page), fixed("/s.js", "text/javascript", script));
    let gateway = Gateway::with(&manifest).start().await;
    let at = format!("http://{}", gateway.client.address());
    let browser = Browser::start().await;
    let page = browser.open(&format!("{at}/p")).await;
    page.until("document.getElementById('p').textContent === 'yes'").await;
    page.until("true").await;
    let complaints = page.complaints().join("\n");
    for wanted in ["oh", "EvalError", "Content Security Policy"] {
        assert!(complaints.contains(wanted), "{wanted}: {complaints}");
    }
    assert!(page.requests().starts_with(&[format!("{at}/p"), format!("{at}/s.js")]), "{:?}", page.requests());
}

/// Signs up through the page.
async fn register(page: &Page, name: &str) {
    page.until("document.documentElement.dataset.shows").await;
    let typed = format!(
        "document.getElementById('sign').click();
         const form = document.getElementById('credentials');
         form.username.value = '{name}';
         form.password.value = 'Gateway1';
         form.email.value = '{name}@example.com';
         document.getElementById('register').click();"
    );
    page.eval(&format!("(() => {{ {typed} }})()")).await;
    page.until(&format!("document.getElementById('who').textContent === '{name}'")).await;
}

/// Nothing was loaded from elsewhere, and nothing went wrong.
fn assert_clean(page: &Page, gateway: &Gateway) {
    assert_eq!(page.complaints(), Vec::<String>::new());
    let host = gateway.client.address();
    let ours = [format!("http://{host}/"), format!("ws://{host}/"), "data:".to_owned(), "blob:".to_owned()];
    for url in page.requests() {
        assert!(ours.iter().any(|start| url.starts_with(start)), "a foreign request: {url}");
    }
}

async fn click(page: &Page, id: &str) {
    page.eval(&format!("document.getElementById('{id}').click()")).await;
}

/// What is shipped, its pages allowed to open WebSockets: their address is known only now.
async fn shipped_for_browsers(demo: &Demo) -> Gateway {
    let gateway = shipped(demo).await;
    let policies = gateway.path("policies/cors.yaml");
    let text = std::fs::read_to_string(&policies).unwrap();
    let text = text.replace("http://localhost:8080", &format!("http://{}", gateway.client.address()));
    std::fs::write(&policies, text).unwrap();
    eventually("the policy is taken over", Duration::from_secs(5), async || gateway.revision() >= 2).await;
    gateway
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_developer_signs_in_and_watches_an_answer_being_written() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped_for_browsers(&demo).await;
    let browser = Browser::start().await;
    let page = browser.open(&format!("http://{}/docs", gateway.client.address())).await;
    page.resize(1280, 900, "light").await;
    register(&page, "ann_of_the_gateway").await;
    page.until("document.body.innerText.includes('VoiceHelper API')").await;
    page.screenshot("docs-desktop").await;

    // Another version shows its own operations, and no other.
    let choose = |name: &str| {
        format!(
            "(() => {{ const s = document.getElementById('version'); s.value = '{name}'; s.dispatchEvent(new Event('change')) }})()"
        )
    };
    page.eval(&choose("v2.json")).await;
    page.until("document.documentElement.dataset.shows.startsWith('v2.json')").await;
    page.until("document.body.innerText.includes('Stream an agent') && !document.body.innerText.includes('/api/v01/')").await;
    page.eval(&choose("all.json")).await;
    page.until("document.documentElement.dataset.shows.startsWith('all.json')").await;

    // An answer comes in pieces.
    click(&page, "tab-stream").await;
    page.eval(
        "window.lengths = [];
         new MutationObserver(() => lengths.push(document.getElementById('stream-answer').textContent.length))
             .observe(document.getElementById('stream-answer'), { childList: true });",
    )
    .await;
    click(&page, "stream-send").await;
    page.until("document.getElementById('stream-state').textContent.endsWith('complete')").await;
    let pieces = page.eval("new Set(lengths).size").await.as_u64().unwrap();
    assert!(pieces > 5, "it came in {pieces} pieces");
    page.screenshot("docs-stream").await;

    // Stop ends it at the gateway, and so at the service behind it.
    page.eval("document.getElementById('stream-operation').value = 'POST /api/v2/chat/stream'").await;
    page.eval("document.getElementById('stream-operation').dispatchEvent(new Event('change'))").await;
    page.eval("document.getElementById('stream-query').value = 'delay=200ms&tokens=100'").await;
    click(&page, "stream-send").await;
    page.until("document.getElementById('stream-answer').textContent.length > 5").await;
    click(&page, "stream-stop").await;
    page.until("!document.getElementById('stream-send').disabled").await;
    page.until("document.getElementById('stream-state').textContent.endsWith(', stopped')").await;
    eventually("the service has stopped", Duration::from_secs(5), async || demo.stats().streams.running == 0)
        .await;

    // A word in the console is answered.
    click(&page, "tab-socket").await;
    page.eval("document.getElementById('socket-path').value = '/api/v2/voice/stream'").await;
    page.eval("document.getElementById('socket-path').dispatchEvent(new Event('change'))").await;
    click(&page, "socket-open").await;
    page.until("document.getElementById('socket-state').textContent === 'open'").await;
    click(&page, "socket-send").await;
    page.until("document.getElementById('socket-log').innerText.includes('session_started')").await;
    page.screenshot("docs-socket").await;
    click(&page, "socket-speak").await;
    page.until("document.getElementById('socket-log').innerText.includes('asr_')").await;
    click(&page, "socket-close").await;
    page.until("document.getElementById('socket-state').textContent === 'closed'").await;

    click(&page, "tab-reference").await;
    page.eval("location.hash = [...document.querySelectorAll('a[href*=\"chat/stream\"]')].map((a) => new URL(a.href).hash).pop() ?? ''").await;
    page.screenshot("docs-operation").await;
    page.resize(390, 844, "dark").await;
    let within = "(id) => document.getElementById(id).getBoundingClientRect().bottom <= document.querySelector('.bar').getBoundingClientRect().bottom";
    page.until(&format!("['sign', 'version', 'tab-socket', 'more'].every({within})")).await;
    page.screenshot("docs-phone").await;
    click(&page, "tab-stream").await;
    page.screenshot("docs-phone-stream").await;
    // Signed out is signed out at the gateway too.
    click(&page, "sign").await;
    page.until("document.getElementById('who').textContent === ''").await;
    assert_clean(&page, &gateway);
}

/// Runs what was copied: curl by a shell, the others by Node.
async fn run(kind: &str, text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let name = if kind == "curl" { "copied.sh" } else { "copied.mjs" };
    std::fs::write(folder.path().join(name), text).unwrap();
    if kind != "curl" {
        return node::run(folder.path(), name, &[]).await;
    }
    let mut shell = std::process::Command::new("sh");
    shell.args(["-eu", name]).current_dir(folder.path());
    let output = tokio::task::spawn_blocking(move || shell.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{text}\n{}", node::said(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_copied_runs_as_it_is() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped_for_browsers(&demo).await;
    let browser = Browser::start().await;
    let page = browser.open(&format!("http://{}/docs", gateway.client.address())).await;
    page.resize(1280, 900, "light").await;
    register(&page, "cat").await;
    page.eval("navigator.clipboard.writeText = async (text) => { copied.push(text) }").await;
    for (path, method, answers) in
        [("auth/me", "GET", "\"username\":\"cat\""), ("sessions", "POST", "session_id")]
    {
        let hash = format!("tag/v01/{method}/api/v01/{path}");
        let section = format!("document.getElementById('api-1/{hash}')");
        page.until(&format!("document.querySelector('a[href$=\"{hash}\"]')")).await;
        page.eval(&format!("location.hash = '{hash}'")).await;
        let picker = format!("{section}.querySelector('[id^=headlessui-popover-button]')");
        page.until(&picker).await;
        for (kind, option, begins) in [
            ("curl", "shell/curl", "curl "),
            ("fetch", "js/fetch", "fetch("),
            ("wx.request", "custom/javascript", "wx.request("),
        ] {
            page.eval(&format!("{picker}.click()")).await;
            let chosen = format!("document.querySelector('[role=option][id$=\"{option}\"]')");
            page.until(&chosen).await;
            page.eval(&format!("{chosen}.click()")).await;
            // An example beside the code is copied too: what is meant is told by how it begins.
            let copied = format!("window.copied?.find((text) => text.startsWith('{begins}'))");
            page.eval("window.copied = []").await;
            let copy = format!(
                "{section}.querySelectorAll('button[class*=copy-button]').forEach((button) => button.click())"
            );
            page.until(&format!("({copy}, {copied})")).await;
            let text = page.eval(&copied).await.as_str().unwrap().to_owned();
            let token = page.eval("JSON.parse(sessionStorage.getItem('voicegate.docs.session')).token").await;
            let text = match kind {
                "curl" => text,
                "fetch" => {
                    format!("const response = await {};\nconsole.log(await response.text());", in_one(&text))
                }
                // What a mini program brings along.
                _ => format!(
                    "const token = {token};\nconst wx = {{ request: async ({{ url, method, header, data, success }}) => {{\n\
                     const body = data === undefined ? undefined : JSON.stringify(data);\n\
                     const answer = await fetch(url, {{ method, headers: header, body }});\n\
                     success({{ statusCode: answer.status, data: JSON.stringify(await answer.json()) }});\n}} }};\n{text}"
                ),
            };
            let said = run(kind, &text).await;
            assert!(said.contains(answers), "{kind}: {said}\n{text}");
        }
    }
    assert_clean(&page, &gateway);
}

/// The first statement, as an expression.
fn in_one(text: &str) -> &str {
    text.trim().trim_end_matches(';')
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_phone_has_everything_too() {
    let old = "versions:\n  - name: v1\n    prefix: /v1\n    deprecated: { since: 2026-06-01, sunset: 2027-06-01 }\n    \
               routes: [{ route: GET /old, public: true, respond: {}, docs: { summary: Old } }]\n";
    let gateway = Gateway::with(&format!("{HOME}{old}")).start().await;
    let browser = Browser::start().await;
    let page = browser.open(&format!("http://{}/api/docs", gateway.client.address())).await;
    page.until("document.documentElement.dataset.shows").await;
    let seen = |id: &str, text: &str| {
        format!(
            "[...document.querySelectorAll('{id}')].some((it) => {{ const at = it.getBoundingClientRect(); return it.textContent === '{text}' && at.height > 0 && at.right <= innerWidth + 1 && at.left >= 0 }})"
        )
    };
    page.resize(1280, 900, "light").await;
    page.until(&seen("#links a", "Swagger UI")).await;
    page.resize(360, 2500, "light").await;
    page.until("document.getElementById('reference').innerText.includes('deprecated, gone on 2027-06-01')")
        .await;
    page.resize(360, 740, "light").await;
    for (id, text) in [("#sign", "Sign in"), ("[role=tab]", "WebSockets"), ("#more", "⋯")] {
        page.until(&seen(id, text)).await;
    }
    assert_eq!(page.eval(&seen("#links a", "Errors")).await, false);
    click(&page, "more").await;
    for text in ["Errors", "Changes", "Swagger UI", "JSON"] {
        page.until(&seen("#links a", text)).await;
    }
    page.screenshot("docs-phone-more").await;
    assert_clean(&page, &gateway);
}

const HOME: &str =
    "routes:\n  - { route: GET /api/docs, handler: gateway.docs, chain: [request_id], public: true }\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_saved_shows_on_the_open_page() {
    let policies = "roles: { admin: { allow: ['*'] }, user: { allow: ['thing:read'] } }\n";
    let route = |chain: &str| {
        let public = if chain.contains("auth") { "" } else { ", public: true" };
        format!(
            "  - {{ route: GET /things, respond: {{ text: thing }}, chain: [{chain}]{public}, docs: {{ summary: Look at things }} }}\n"
        )
    };
    let manifest = |routes: &str| format!("{policies}{HOME}{routes}");
    let gateway = Gateway::with(&manifest("")).start().await;
    let browser = Browser::start().await;
    let page = browser.open(&format!("http://{}/api/docs", gateway.client.address())).await;
    // What is far below the window is not rendered.
    page.resize(1280, 3000, "light").await;
    page.until("document.documentElement.dataset.shows").await;
    page.eval("window.stayed = true").await;
    let shows = |text: &str| format!("document.getElementById('reference').innerText.includes('{text}')");
    assert_eq!(page.eval(&shows("Look at things")).await, false);

    let limited = "auth, rbac, { rate_limit: { limit: 7, per: 1m, by: [user] } }";
    gateway.rewrite(&manifest(&route(limited)));
    page.until(&shows("Look at things")).await;
    page.until(&shows("role: admin, user")).await;
    page.until(&shows("limit: 7 / 1m")).await;
    page.screenshot("docs-saved").await;

    gateway.rewrite(&manifest(&route("request_id")));
    page.until(&format!("{} && !{}", shows("Look at things"), shows("role: "))).await;
    assert_eq!(page.eval("window.stayed").await, true, "the page was not loaded anew");
    assert_clean(&page, &gateway);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn descriptions_are_inert_in_both_references() {
    let hostile = r#"<img src=data:image/png;base64,AA onerror="window.hacked = 1"><script>window.hacked = 1</script><svg onload="window.hacked = 1"></svg><iframe srcdoc="<script>parent.hacked = 1</script>"></iframe> [click](javascript:window.hacked=1) ![](https://evil.example/pixel.png)"#;
    let hostile = serde_json::to_string(hostile).unwrap();
    let manifest = format!(
        "info: {{ title: Inert, version: '1', description: {hostile} }}\n{HOME}  - {{ route: GET /x, respond: {{ text: x }}, public: true, docs: {{ summary: {hostile} }} }}\n"
    );
    let gateway = Gateway::with(&manifest).start().await;
    let browser = Browser::start().await;
    for name in ["", "/swagger"] {
        let page = browser.open(&format!("http://{}/api/docs{name}", gateway.client.address())).await;
        page.until("document.documentElement.dataset.shows").await;
        page.until("document.getElementById('reference').innerText.includes('/x')").await;
        for link in ["a[href^=javascript]", "iframe", "[onerror]", "[onload]", "#reference script"] {
            let found = page.eval(&format!("document.querySelectorAll('{link}').length")).await;
            assert_eq!(found, 0, "{link}");
        }
        assert_eq!(page.eval("typeof window.hacked").await, "undefined");
        // What the references did not take out, the policy kept out: an image from elsewhere, and handlers that
        // Swagger UI makes elements of before it takes them out.
        let kept_out = |said: &String| {
            said.contains("Content Security Policy")
                && (said.contains("evil.example")
                    || name == "/swagger" && said.contains("inline event handler"))
        };
        let others: Vec<_> = page.complaints().into_iter().filter(|said| !kept_out(said)).collect();
        assert_eq!(others, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_reference_and_the_catalogues_open_without_a_fault() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped(&demo).await;
    let browser = Browser::start().await;
    let at = format!("http://{}/docs", gateway.client.address());
    let page = browser.open(&format!("{at}/swagger")).await;
    page.resize(1280, 900, "light").await;
    page.until("document.getElementById('reference').innerText.includes('/api/v2/chat/stream')").await;
    page.screenshot("docs-swagger").await;
    for (path, wanted) in [("errors#rate_limited", "rate_limited"), ("diagnostics#VG031", "VG031")] {
        page.go(&format!("{at}/{path}")).await;
        page.until(&format!("document.querySelector(':target').innerText.includes('{wanted}')")).await;
    }
    page.screenshot("docs-diagnostics").await;
    assert_clean(&page, &gateway);
}
