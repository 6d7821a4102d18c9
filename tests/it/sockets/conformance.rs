//! The same bytes to an echo and through the gateway: both have to answer the same.

use super::bed::*;
use super::gateway;
use crate::harness::Wire;
use std::net::SocketAddr;

/// What a client sends, and how it stops.
struct Case {
    name: String,
    bytes: Vec<u8>,
    /// Answers to wait for before it stops.
    answers: usize,
    stop: Stop,
}

#[derive(Clone, Copy, PartialEq)]
enum Stop {
    /// Reads until the other end closes.
    Reads,
    /// Sends nothing more, and reads until the other end closes.
    HalfCloses,
}

fn case(name: impl Into<String>, bytes: impl AsRef<[u8]>) -> Case {
    Case { name: name.into(), bytes: bytes.as_ref().to_vec(), answers: 0, stop: Stop::Reads }
}

/// As [`case`], said good-bye to behind.
fn polite(name: impl Into<String>, frames: &[Vec<u8>]) -> Case {
    case(name, [frames.concat(), close(1000, "done")].concat())
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for size in [0, 1, 125, 126, 127, 65535, 65536, 200_000] {
        all.push(polite(format!("text of {size}"), &[frame(TEXT, vec![b'*'; size])]));
        all.push(polite(format!("binary of {size}"), &[frame(BINARY, vec![0xfe; size])]));
    }
    for size in [0, 1, 125] {
        all.push(polite(format!("ping of {size}"), &[frame(PING, vec![7; size])]));
        all.push(polite(format!("unasked pong of {size}"), &[frame(PONG, vec![7; size]), frame(TEXT, "x")]));
    }
    all.push(polite("ping of 126", &[frame(PING, [7; 126])]));
    all.push(polite("many", &(0..500).map(|n| frame(TEXT, n.to_string())).collect::<Vec<_>>()));
    all.push(polite(
        "fragments with pings in between",
        &[
            frame(0x01, "Hel"),
            frame(PING, "1"),
            frame(0x00, "l"),
            frame(PONG, "?"),
            frame(0x00, ""),
            frame(PING, "2"),
            frame(0x80, "o"),
        ],
    ));
    all.push(polite("binary fragments", &[frame(0x02, [1, 2]), frame(0x00, [3]), frame(0x80, [4])]));
    all.push(polite("a character over two fragments", &[frame(0x01, [0xc3]), frame(0x80, [0xa9])]));
    all.push(polite("continuation of nothing", &[frame(0x80, "x")]));
    all.push(polite("a message within a message", &[frame(0x01, "a"), frame(TEXT, "b")]));
    all.push(polite("a fragmented ping", &[frame(0x09, "a"), frame(0x80, "b")]));
    all.push(polite("bad UTF-8", &[frame(TEXT, [0xff, 0xfe])]));
    all.push(polite("bad UTF-8 in fragments", &[frame(0x01, "ok"), frame(0x80, [0xed, 0xa0, 0x80])]));
    for bit in [0x40, 0x20, 0x10] {
        all.push(polite(format!("reserved bit {bit:#x}"), &[frame(TEXT | bit, "x")]));
    }
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        all.push(polite(format!("opcode {opcode}"), &[frame(0x80 | opcode, "x")]));
    }
    all.push(polite("not masked", &[said(TEXT, "x")]));
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 3000, 3999, 4000, 4401, 4999] {
        all.push(case(format!("close {code}"), close(code, "why")));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000] {
        all.push(case(format!("close {code} that may not be sent"), close(code, "")));
    }
    all.push(case("close without a code", frame(CLOSE, "")));
    all.push(case("close with half a code", frame(CLOSE, [3])));
    all.push(case("close with the longest reason", close(1000, &"r".repeat(123))));
    all.push(case("close with bad UTF-8", frame(CLOSE, [3, 232, 0xff])));
    all.push(case("data behind a close", [close(1000, ""), frame(TEXT, "late")].concat()));
    all.push(case("two closes", [close(1000, ""), close(1001, "")].concat()));
    all.push(Case { answers: 1, stop: Stop::HalfCloses, ..case("half close", frame(TEXT, "last words")) });
    all.push(Case { stop: Stop::HalfCloses, ..case("half close at once", frame(TEXT, "last words")) });
    all.push(Case {
        stop: Stop::HalfCloses,
        ..case("half close in a header", &frame(BINARY, [0; 300])[..3])
    });
    all.push(Case {
        stop: Stop::HalfCloses,
        ..case("half close in a frame", &frame(BINARY, [0; 300])[..90])
    });
    all
}

/// Everything that comes of a case, to the end. `cut` is how much is written at once.
async fn transcript(address: SocketAddr, path: &str, case: &Case, cut: usize) -> Vec<Came> {
    let mut wire = open_with(address, path, &[]).await;
    let mut seen = Vec::new();
    for piece in case.bytes.chunks(cut) {
        // The other end may have had enough.
        if !wire.send(piece).await {
            break;
        }
        if cut < 100 {
            tokio::task::yield_now().await;
        }
    }
    for _ in 0..case.answers {
        seen.push(next(&mut wire).await);
    }
    if case.stop == Stop::HalfCloses {
        wire.half_close().await;
    }
    read_on(&mut wire, &mut seen).await;
    seen
}

async fn read_on(wire: &mut Wire, seen: &mut Vec<Came>) {
    loop {
        let came = next(wire).await;
        let over = matches!(came, Came::End);
        let answer = matches!(came, Came::Close(..));
        seen.push(came);
        if over {
            return;
        }
        if answer {
            wire.send(close(1000, "")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_answers_as_the_echo_does() {
    let echo = Echo::start().await;
    let gateway = gateway(&echo.url(), "").start().await;
    let mut differ = Vec::new();
    for case in cases() {
        for cut in [usize::MAX, 1000, 1] {
            if cut < case.bytes.len() / 2000 {
                continue;
            }
            let direct = transcript(echo.address(), "/up", &case, cut).await;
            let through = transcript(gateway.client.address(), "/ws", &case, cut).await;
            assert!(direct.len() > usize::from(case.stop == Stop::Reads), "{}: {direct:?}", case.name);
            if direct != through {
                differ.push(format!("{} by {cut}:\n  direct  {direct:?}\n  through {through:?}", case.name));
            }
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

#[tokio::test]
async fn compressed_messages_pass_as_they_are() {
    const DEFLATE: &str = "permessage-deflate; client_max_window_bits";
    let echo = Deflated::start().await;
    let gateway = gateway(&echo.0.url(), "").start().await;
    let offer = [("Sec-WebSocket-Extensions", DEFLATE)];
    let (mut wire, head) = ask(gateway.client.address(), "/ws", &offer).await;
    assert_eq!(header(&head, "sec-websocket-extensions"), Some("permessage-deflate"), "{head}");
    // `Hello` as RFC 7692 has it, section 7.2.3.1.
    let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    wire.send(frame(0xc1, hello)).await;
    assert_eq!(next(&mut wire).await, Came::Frame(0xc1, hello.to_vec()));
}

/// Says the bytes of each frame again, whatever is in them.
struct Deflated(crate::harness::Sockets);

impl Deflated {
    async fn start() -> Self {
        let sockets = crate::harness::Sockets::start(|_, mut wire| async move {
            let more = "Sec-WebSocket-Extensions: permessage-deflate\r\n";
            let seen = std::sync::Mutex::default();
            shake(&mut wire, more, &seen).await;
            let asked = seen.lock().unwrap()[0].clone();
            assert!(asked.contains("permessage-deflate; client_max_window_bits"), "{asked}");
            while let Came::Frame(first, payload) = next(&mut wire).await {
                wire.send(said(first, payload)).await;
            }
        })
        .await;
        Deflated(sockets)
    }
}
