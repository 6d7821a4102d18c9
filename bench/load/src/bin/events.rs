//! `events ADDRESS PATH STREAMS EVENTS PACE_MS [POST_BODY]`: reads that many event streams at once, all begun within a
//! second, and prints as JSON how late events were and how long the first took. TOKEN is sent as bearer token; `{}` in the
//! body stands for a line of the file that SESSIONS names, each stream's own.

#![forbid(unsafe_code)]

use load::{argument, marks, micros, now, quantile, stay_awake, turn};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

#[derive(Default)]
struct Seen {
    delays: Vec<u32>,
    firsts: Vec<u32>,
    whole: u32,
    short: u32,
    failed: u32,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let address: String = argument(1, String::new());
    let path: String = argument(2, "/sse".to_owned());
    let streams: usize = argument(3, 1000);
    let events: usize = argument(4, 100);
    let pace: u64 = argument(5, 20);
    let token = std::env::var("TOKEN").unwrap_or_default();
    let body = std::env::args().nth(6);
    let sessions = std::env::var("SESSIONS").ok().and_then(|file| std::fs::read_to_string(file).ok());
    let sessions: Vec<&str> = sessions.as_deref().unwrap_or_default().lines().collect();
    let request = |index: usize| {
        let body = body.as_ref().map(|body| match sessions.get(index) {
            Some(session) => body.replace("{}", session),
            None => body.clone(),
        });
        let head = match &body {
            None => format!("GET {path}?n={events}&ms={pace} HTTP/1.1\r\n"),
            Some(body) => format!(
                "POST {path} HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
                body.len()
            ),
        };
        format!(
            "{head}host: {address}\r\naccept: text/event-stream\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n{}",
            body.unwrap_or_default()
        )
    };
    let seen = Rc::new(RefCell::new(Seen::default()));
    let limit = Duration::from_millis(events as u64 * pace + 15_000);
    LocalSet::new()
        .run_until(async {
            spawn_local(stay_awake());
            let mut tasks = JoinSet::new();
            for index in 0..streams {
                let (address, request, seen) = (address.clone(), request(index), seen.clone());
                tasks.spawn_local(async move {
                    sleep(turn(index, streams, Duration::from_secs(1))).await;
                    let read = timeout(limit, read(&address, &request, events, &seen)).await;
                    let mut seen = seen.borrow_mut();
                    match read {
                        Ok(Some(count)) if count == events => seen.whole += 1,
                        Ok(Some(_)) => seen.short += 1,
                        Ok(None) | Err(_) => seen.failed += 1,
                    }
                });
            }
            while tasks.join_next().await.is_some() {}
        })
        .await;
    let mut seen = seen.borrow_mut();
    seen.delays.sort_unstable();
    seen.firsts.sort_unstable();
    println!(
        "{{\"whole\":{},\"short\":{},\"failed\":{},\"events\":{},\"p50\":{},\"p99\":{},\"p999\":{},\"first_p50\":{},\"first_p99\":{}}}",
        seen.whole,
        seen.short,
        seen.failed,
        seen.delays.len(),
        quantile(&seen.delays, 0.5),
        quantile(&seen.delays, 0.99),
        quantile(&seen.delays, 0.999),
        quantile(&seen.firsts, 0.5),
        quantile(&seen.firsts, 0.99),
    );
}

/// How many events came; none where no stream was answered.
async fn read(address: &str, request: &str, events: usize, seen: &RefCell<Seen>) -> Option<usize> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.set_nodelay(true).ok();
    let begun = now();
    stream.write_all(request.as_bytes()).await.ok()?;
    let (mut buffer, mut count, mut first) = (Vec::with_capacity(4096), 0, true);
    while count < events {
        match stream.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let now = now();
        if first {
            first = false;
            if !buffer.starts_with(b"HTTP/1.1 200") {
                return None;
            }
            seen.borrow_mut().firsts.push(micros(begun, now));
        }
        let read = marks(&buffer, |sent| {
            seen.borrow_mut().delays.push(micros(sent, now));
            count += 1;
        });
        buffer.drain(..read);
    }
    Some(count)
}
