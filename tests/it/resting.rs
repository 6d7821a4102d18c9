//! Connections between two requests: they cost next to nothing, and go on as if nothing had been taken from them.

use crate::harness::{Process, Wire, eventually};
use std::time::Duration;

/// Longer than a connection of few requests rests before it is taken apart; nothing outside shows when it was.
const RESTED: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_secs(10);

const ROUTES: &str = "routes:
  - { route: GET /a, public: true, respond: { text: ok } }
  - { route: POST /a, public: true, respond: { text: took } }
";
const ASK: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";

#[tokio::test]
async fn a_kept_connection_costs_little() {
    const WAVES: u64 = 5;
    const WAVE: u64 = 100;
    let process = Process::serve(ROUTES, &[]).await;
    let mut kept = Vec::new();
    // What every first request brings into memory is no connection's.
    for _ in 0..WAVE {
        let mut wire = Wire::connect(process.client.address()).await;
        wire.send(ASK).await;
        assert_eq!(wire.answer().await.status, 200);
        kept.push(wire);
    }
    tokio::time::sleep(RESTED).await;
    let before = process.memory();
    for _ in 0..WAVES {
        for _ in 0..WAVE {
            let mut wire = Wire::connect(process.client.address()).await;
            wire.send(ASK).await;
            assert_eq!(wire.answer().await.status, 200);
            kept.push(wire);
        }
        // The memory of this wave is what the next one takes.
        tokio::time::sleep(RESTED).await;
    }
    let each = process.memory().saturating_sub(before) / (WAVES * WAVE);
    assert!(each < 8 << 10, "{each} bytes for each kept connection");
    for wire in &mut kept {
        assert!(wire.send(ASK).await);
        assert_eq!(wire.answer().await.status, 200);
    }
}

#[tokio::test]
async fn a_rested_connection_goes_on() {
    let process = Process::serve(ROUTES, &[]).await;
    let mut wire = Wire::connect(process.client.address()).await;
    let post = "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody\r\n";
    let parts = ASK.split_at(9);
    for (pieces, answers) in [
        (vec![ASK], 1),
        // A line end too many behind a body belongs to nothing.
        (vec![post], 1),
        (vec!["\r\n", "\r\n"], 0),
        (vec![parts.0, parts.1], 1),
        (vec![ASK, ASK, post, ASK], 4),
    ] {
        for piece in &pieces {
            assert!(wire.send(piece).await);
            if answers < 2 {
                tokio::time::sleep(RESTED / 2).await;
            }
        }
        for _ in 0..answers {
            assert_eq!(wire.answer().await.status, 200, "{pieces:?}");
        }
        tokio::time::sleep(RESTED).await;
    }
}

#[tokio::test]
async fn a_rested_connection_is_closed_in_time() {
    let mut process = Process::serve(ROUTES, &["--keep-alive", "2s"]).await;
    let mut wire = Wire::connect(process.client.address()).await;
    wire.send(ASK).await;
    assert_eq!(wire.answer().await.status, 200);
    let begun = std::time::Instant::now();
    eventually("a connection without requests is closed", SOON, async || wire.is_over().await).await;
    assert!(begun.elapsed() > Duration::from_millis(1500), "{:?}", begun.elapsed());

    let mut wire = Wire::connect(process.client.address()).await;
    wire.send(ASK).await;
    assert_eq!(wire.answer().await.status, 200);
    tokio::time::sleep(RESTED).await;
    process.signal("TERM");
    eventually("it does not hold up the end", SOON, async || wire.is_over().await).await;
    assert!(process.ended(SOON).await.success());
}
