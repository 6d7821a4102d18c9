//! The documentation as a developer meets it: in a browser, on a gateway that serves what is shipped.

use crate::harness::{Browser, Gateway};

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
