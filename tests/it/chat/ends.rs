//! How a turn ends that the model, or a limit, ends: what the reader is told and what is kept.

use super::*;

on_both!(
    a_model_that_gives_no_stream_is_an_error_before_any_event,
    a_model_that_breaks_off_is_told_and_what_it_said_is_kept,
    a_turn_keeps_to_its_limits,
);

async fn a_model_that_gives_no_stream_is_an_error_before_any_event(mut bed: Bed) {
    let ann = bed.register("ann").await;
    let refused = async |query: &str, status: u16, code: &str| {
        let session = ann.create().await;
        let body = json!({ "session_id": session, "query": query });
        let answer = ann.send("POST", "/chat/hasty", &[], body).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{query}");
        // At this moment, not a little later.
        let rows = ann.history(&session).await;
        assert_eq!(rows.len(), 2, "{query}: {rows:?}");
        assert_eq!(rows[0].is(), ("user", "complete", query));
        assert_eq!(rows[1].is(), ("assistant", "failed", ""), "{query}");
    };
    refused("status=500", 502, "upstream_bad_response").await;
    refused("status=200", 502, "upstream_bad_response").await;
    refused("hang=1", 504, "upstream_timeout").await;
    eventually("the silent one is let go", AT_ONCE, async || bed.model.streams().running == 0).await;
    bed.model.close().await;
    refused("nobody there", 502, "upstream_unreachable").await;
    assert_eq!(bed.number("SELECT COUNT(*) FROM turns").await, 0);
}

async fn a_model_that_breaks_off_is_told_and_what_it_said_is_kept(bed: Bed) {
    let ann = bed.register("ann").await;
    for (query, code, status) in [
        ("delay=0ms&fail_after=5", "upstream_interrupted", "interrupted"),
        ("delay=0ms&error_after=5", "model_error", "failed"),
    ] {
        let session = ann.create().await;
        let mut open = ann.ask("/chat/stream", &session, query).await;
        let text = until(&mut open, "\"error\"").await;
        let rows = ann.history(&session).await;
        assert_eq!(open.rest().await, (String::new(), true), "{query}");
        let all = events(&text);
        assert_eq!(all.len(), 7, "start, five tokens, the error: {text}");
        assert_eq!((&all[6].data["type"], &all[6].data["code"]), (&json!("error"), &json!(code)), "{text}");
        assert!(all.iter().all(|event| event.id.is_some()), "{text}");
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1].is(), ("assistant", status, &*said(&text)));
        assert_eq!(rows[1].total_tokens, Some(5));
    }
}

async fn a_turn_keeps_to_its_limits(bed: Bed) {
    let ann = bed.register("ann").await;
    let busy = "delay=5ms&tokens=100000";
    for (path, query, code) in [
        ("/chat/hasty", "delay=0ms&stall_after=3", "stream_idle"),
        ("/chat/short", busy, "stream_too_long"),
        ("/chat/small", busy, "stream_too_large"),
    ] {
        let session = ann.create().await;
        let (text, clean) = ann.ask(path, &session, query).await.rest().await;
        let rows = ann.history(&session).await;
        let all = events(&text);
        let last = &all.last().unwrap().data;
        assert!(clean);
        assert_eq!((&last["type"], &last["code"]), (&json!("error"), &json!(code)), "{text}");
        assert_eq!(rows[1].is(), ("assistant", "interrupted", &*said(&text)), "{path}");
        assert_ne!(rows[1].content, "", "{path}");
        if path == "/chat/hasty" {
            assert!(text.matches(": heartbeat\n\n").count() >= 2, "the silence is filled: {text}");
        }
        if path == "/chat/small" {
            assert!(text.len() < 2 * 1024 + 200, "{}", text.len());
        }
    }
    eventually("the model is let go", AT_ONCE, async || bed.model.streams().aborted == 3).await;
}

/// Whoever waits for the same answer learns that there is none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_beside_a_request_that_fails_is_told_so() {
    let bed = Bed::sqlite().await;
    let ann = bed.register("ann").await;
    let session = ann.create().await;
    let body = json!({ "session_id": session, "query": "hang=1" });
    let key = [("idempotency-key", "k")];
    let (first, second) = tokio::join!(ann.open("/chat/hasty", &key, &body), async {
        eventually("the model is asked", PATIENCE, async || !bed.model.asked().is_empty()).await;
        ann.open("/chat/hasty", &key, &body).await
    });
    assert_eq!((first.status.as_u16(), second.status.as_u16()), (504, 200));
    let (text, clean) = second.rest().await;
    let last = events(&text).pop().unwrap_or_else(|| panic!("a stream of nothing: {text:?}")).data;
    assert_eq!((clean, &last["type"], &last["code"]), (true, &json!("error"), &json!("upstream_timeout")));
    assert_eq!(ann.history(&session).await.len(), 2);
}
