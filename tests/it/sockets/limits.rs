//! Sizes, rates, silence, and readers who do not read.

use super::bed::*;
use super::{gateway, manifest};
use crate::harness::{Gateway, Sockets, Wire, eventually};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(5);

fn told(code: u16, reason: &str) -> Came {
    Came::Close(Some(code), reason.to_owned())
}

/// What the last frames of an upstream's were.
async fn recording() -> (Sockets, Arc<Mutex<Vec<Came>>>) {
    let heard: Arc<Mutex<Vec<Came>>> = Arc::default();
    let all = heard.clone();
    let sockets = Sockets::start(move |_, mut wire| {
        let heard = heard.clone();
        async move {
            shake(&mut wire, "", &Mutex::default()).await;
            loop {
                let came = next(&mut wire).await;
                heard.lock().unwrap().push(came.clone());
                match came {
                    Came::End => return,
                    Came::Close(..) => drop(wire.send(said(CLOSE, [3, 232])).await),
                    _ => {}
                }
            }
        }
    })
    .await;
    (sockets, all)
}

#[tokio::test]
async fn a_message_that_is_too_big_is_closed_with_1009_and_none_of_it_passes() {
    let (upstream, heard) = recording().await;
    let gateway = gateway(&upstream.url(), "max_message: 1KiB").start().await;
    let big = frame(BINARY, [7; 1025]);
    let fragments = [frame(0x02, [7; 1000]), frame(PING, "between"), frame(0x80, [7; 25])].concat();
    for (bytes, passes) in [(big, 0), (fragments, 2)] {
        heard.lock().unwrap().clear();
        for cut in [usize::MAX, 1] {
            let mut wire = open(&gateway, "/ws").await;
            wire.send(frame(BINARY, [1; 1024])).await;
            for piece in bytes.chunks(cut) {
                wire.send(piece).await;
            }
            assert_eq!(next(&mut wire).await, told(1009, "message_too_big"));
            wire.send(close(1009, "")).await;
            assert_eq!(next(&mut wire).await, Came::End);
            eventually("the upstream is told", SOON, async || {
                heard.lock().unwrap().last() == Some(&Came::End)
            })
            .await;
            let mut heard = heard.lock().unwrap();
            assert_eq!(heard.len(), 1 + passes + 2, "{heard:?}");
            assert_eq!(heard[0], Came::Frame(BINARY, vec![1; 1024]));
            assert_eq!(heard[1 + passes], told(1001, ""));
            heard.clear();
        }
    }
    let limit = "voicegate_websockets_ended_total{end=\"stream_limit\",path=\"/ws\"}";
    eventually("all are counted", SOON, async || gateway.metric(limit).await == 4.0).await;
}

#[tokio::test]
async fn an_upstreams_message_that_is_too_big_is_its_own_fault() {
    let upstream = Sockets::start(|_, mut wire| async move {
        shake(&mut wire, "", &Mutex::default()).await;
        wire.send(said(TEXT, "fine")).await;
        wire.send(said(BINARY, vec![7; 70_000])).await;
        assert_eq!(next(&mut wire).await, told(1009, "message_too_big"));
        wire.rest().await;
    })
    .await;
    let gateway = gateway(&upstream.url(), "max_message: 64KiB").start().await;
    let mut wire = open(&gateway, "/ws").await;
    assert_eq!(next(&mut wire).await, Came::Text("fine".to_owned()));
    assert_eq!(next(&mut wire).await, told(1011, "upstream_broke"));
    assert_eq!(next(&mut wire).await, Came::End);
}

#[tokio::test]
async fn a_length_that_no_frame_has_is_closed_with_1002() {
    let echo = Echo::start().await;
    let gateway = gateway(&echo.url(), "").start().await;
    let mut wire = open(&gateway, "/ws").await;
    echoes(&mut wire, "hello").await;
    wire.send([0x82, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4]).await;
    assert_eq!(next(&mut wire).await, told(1002, "bad_length"));
}

#[tokio::test]
async fn a_caller_who_is_too_fast_is_closed_with_1008() {
    let echo = Echo::start().await;
    let frames = gateway(&echo.url(), "max_rate: 20").start().await;
    let mut wire = open(&frames, "/ws").await;
    for n in 0..20 {
        echoes(&mut wire, &n.to_string()).await;
    }
    // A second's worth at once, and then as much again, is within the rate.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for _ in 0..20 {
        wire.send(frame(PING, "")).await;
    }
    for _ in 0..20 {
        assert_eq!(next(&mut wire).await, Came::Frame(PONG, vec![]));
    }
    wire.send((0..30).flat_map(|_| frame(PONG, "")).collect::<Vec<_>>()).await;
    assert_eq!(next(&mut wire).await, told(1008, "rate_limited"), "control frames count");
    let bytes = gateway(&echo.url(), "max_message: 4KiB, max_bytes_rate: 10KiB").start().await;
    let mut wire = open(&bytes, "/ws").await;
    for _ in 0..2 {
        echoes(&mut wire, &"x".repeat(4000)).await;
    }
    wire.send(frame(TEXT, "x".repeat(4000))).await;
    let answer = match next(&mut wire).await {
        Came::Text(_) => next(&mut wire).await,
        other => other,
    };
    assert_eq!(answer, told(1008, "rate_limited"));
}

#[tokio::test]
async fn a_silent_caller_is_pinged_and_one_that_does_not_answer_is_closed() {
    let (upstream, heard) = recording().await;
    let gateway = gateway(&upstream.url(), "ping: 200ms, idle: 600ms").start().await;
    let mut lives = open(&gateway, "/ws").await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        let Came::Frame(PING, payload) = next(&mut lives).await else { panic!("no ping") };
        lives.send(frame(PONG, payload)).await;
    }
    let pongs = heard.lock().unwrap().iter().filter(|came| matches!(came, Came::Frame(PONG, _))).count();
    assert!((4..=9).contains(&pongs), "{pongs}: an answer to the gateway passes, unasked for");
    let mut dead = open(&gateway, "/ws").await;
    let begun = Instant::now();
    let mut pings = 0;
    let last = loop {
        match next(&mut dead).await {
            Came::Frame(PING, _) => pings += 1,
            other => break other,
        }
    };
    assert_eq!(last, told(1001, "idle"));
    assert!((1..=3).contains(&pings), "{pings}");
    assert!(begun.elapsed() >= Duration::from_millis(590) && begun.elapsed() < SOON);
    assert_eq!(next(&mut dead).await, Came::End);
    // Who talks is not pinged.
    let mut talks = open(&gateway, "/ws").await;
    for n in 0..20 {
        talks.send(frame(TEXT, n.to_string())).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    talks.send(close(1000, "")).await;
    assert_eq!(next(&mut talks).await, told(1000, ""), "no ping in between");
}

/// Bytes that an upstream that never stops has got rid of, and the upstream.
async fn flood(frames_of: usize) -> (Sockets, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let sockets = Sockets::start(move |_, mut wire| {
        let sent = sent.clone();
        async move {
            shake(&mut wire, "", &Mutex::default()).await;
            let frame = said(BINARY, vec![7; frames_of]);
            while wire.press_raw(&frame).await {
                sent.fetch_add(frame.len(), Ordering::SeqCst);
            }
        }
    })
    .await;
    (sockets, count)
}

#[tokio::test]
async fn a_reader_who_is_slow_holds_the_upstream_back_and_loses_nothing() {
    let (upstream, sent) = flood(10_000).await;
    let gateway = gateway(&upstream.url(), "").start().await;
    let mut wire = open(&gateway, "/ws").await;
    let stands = async || {
        let before = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
        before == sent.load(Ordering::SeqCst)
    };
    eventually("nothing more is taken", SOON, async || stands().await).await;
    // Buffers of four sockets in the kernel, and one piece here.
    let held = sent.load(Ordering::SeqCst);
    assert!(held < 24 << 20, "{held} bytes are on their way to somebody who does not read");
    for _ in 0..2_000 {
        assert_eq!(next(&mut wire).await, Came::Frame(BINARY, vec![7; 10_000]));
    }
    assert!(sent.load(Ordering::SeqCst) > held, "and it goes on");
}

#[tokio::test]
async fn a_reader_who_takes_nothing_is_let_go() {
    let (upstream, _) = flood(10_000).await;
    let gateway =
        Gateway::with(&manifest(&upstream.url(), "")).flag("--write-timeout", "700ms").start().await;
    let wire = open(&gateway, "/ws").await;
    let open = "voicegate_websockets_open{path=\"/ws\"}";
    assert_eq!(gateway.metric(open).await, 1.0);
    eventually("it is let go", SOON, async || gateway.metric(open).await == 0.0).await;
    let stalled = "voicegate_websockets_ended_total{end=\"stream_limit\",path=\"/ws\"}";
    assert_eq!(gateway.metric(stalled).await, 1.0);
    drop(wire);
    // The same of an upstream.
    let deaf = Sockets::start(|_, mut wire: Wire| async move {
        shake(&mut wire, "", &Mutex::default()).await;
        std::future::pending::<()>().await;
    })
    .await;
    let gateway = Gateway::with(&manifest(&deaf.url(), "")).flag("--write-timeout", "700ms").start().await;
    let mut wire = open_with(gateway.client.address(), "/ws", &[]).await;
    let talk = async {
        let frame = frame(BINARY, vec![7; 100_000]);
        while wire.press_raw(&frame).await {}
    };
    let _ = tokio::time::timeout(SOON, talk).await;
    let broke = "voicegate_websockets_ended_total{end=\"upstream_broke\",path=\"/ws\"}";
    eventually("it is let go", SOON, async || gateway.metric(broke).await == 1.0).await;
}

#[tokio::test]
async fn a_ping_waits_for_the_end_of_the_frame_under_way() {
    let (tell, told) = tokio::sync::oneshot::channel::<()>();
    let told = Mutex::new(Some(told));
    let upstream = Sockets::start(move |_, mut wire| {
        let told = told.lock().unwrap().take();
        async move {
            shake(&mut wire, "", &Mutex::default()).await;
            let frame = said(TEXT, "slowly");
            wire.send(&frame[..4]).await;
            let _ = told.unwrap().await;
            wire.send(&frame[4..]).await;
            wire.rest().await;
        }
    })
    .await;
    let gateway = gateway(&upstream.url(), "ping: 100ms, idle: 300ms").start().await;
    let mut wire = open(&gateway, "/ws").await;
    let begun = Instant::now();
    assert_eq!(wire.bytes(4).await.len(), 4);
    assert!(tokio::time::timeout(Duration::from_millis(700), wire.some()).await.is_err(), "silence");
    tell.send(()).unwrap();
    assert_eq!(wire.bytes(4).await, b"owly", "nothing stands in between");
    assert!(matches!(next(&mut wire).await, Came::Frame(PING, _)));
    assert!(begun.elapsed() > Duration::from_millis(600), "nobody is closed unasked");
}
