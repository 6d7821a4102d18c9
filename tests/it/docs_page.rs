//! The documentation as a developer meets it: in a browser, on a gateway that serves what is shipped.

use crate::harness::browser::Page;
use crate::harness::{Browser, Gateway};
use crate::shipped::shipped_with;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_developer_signs_in_and_watches_an_answer_being_written() {
    let demo = Demo::start().await.unwrap();
    let gateway = shipped_with(&demo, |manifest| manifest + &format!("  - {{ route: GET /docs/openapi/all.json, public: true, respond: {{ text: {}, headers: {{ content-type: application/json }} }} }}\n", serde_json::to_string(&std::fs::read_to_string("/tmp/doc.json").unwrap()).unwrap().replace('$', "$$"))).await;
    let browser = Browser::start().await;
    let page = browser.open(&format!("http://{}/docs", gateway.client.address())).await;
    page.resize(1280, 900, "light").await;
    register(&page, "ann").await;
    page.until("document.body.innerText.includes('Sessions')").await;
    page.screenshot("docs-desktop").await;
    page.resize(390, 844, "dark").await;
    page.screenshot("docs-phone").await;
    page.eval("document.getElementById('tab-stream').click()").await;
    page.screenshot("docs-phone-stream").await;
    page.resize(1280, 900, "dark").await;
    page.eval("document.getElementById('stream-send').click()").await;
    page.until("document.getElementById('stream-state').textContent.endsWith('complete')").await;
    page.screenshot("docs-stream").await;
    page.eval("document.getElementById('tab-socket').click()").await;
    page.eval("document.getElementById('socket-open').click()").await;
    page.until("document.getElementById('socket-state').textContent === 'open'").await;
    page.eval("document.getElementById('socket-send').click()").await;
    page.until("document.querySelector('#socket-log .in')").await;
    page.screenshot("docs-socket").await;
    assert_clean(&page, &gateway);
}
