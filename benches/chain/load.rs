//! Callers on connections they keep. Bytes are written and looked at by hand, so that measuring costs little beside
//! what is measured.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Silence after which a benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that is kept.
pub struct Caller {
    stream: TcpStream,
    read: Vec<u8>,
}

/// The head and the body of an answer.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Caller {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the gateway listens");
        stream.set_nodelay(true).expect("a TCP socket has this option");
        Caller { stream, read: Vec::with_capacity(4096) }
    }

    /// Sends a request and reads its whole answer.
    pub async fn ask(&mut self, request: &[u8]) -> Answer {
        let answer = tokio::time::timeout(PATIENCE, self.exchange(request)).await;
        answer.expect("the gateway answers in time").expect("the gateway keeps the connection")
    }

    async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request).await?;
        self.read.clear();
        let head = loop {
            if let Some(end) = self.read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            self.more().await?;
        };
        let (status, length) = parsed(&self.read[..head]);
        while self.read.len() < head + length {
            self.more().await?;
        }
        Ok(Answer { status, body: self.read.split_off(head) })
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// Status and length of the body, which every answer here states.
fn parsed(head: &[u8]) -> (u16, usize) {
    let head = std::str::from_utf8(head).expect("a head is ASCII");
    let status = head.get(9..12).and_then(|status| status.parse().ok());
    let length = head.lines().filter_map(|line| line.split_once(": ")).find_map(|(name, value)| {
        name.eq_ignore_ascii_case("content-length").then(|| value.parse().ok()).flatten()
    });
    match (status, length) {
        (Some(status), Some(length)) => (status, length),
        _ => panic!("an answer with a status and a length was expected:\n{head}"),
    }
}

/// A request with an access token, from a page of a known origin.
pub fn get(address: SocketAddr, path: &str, token: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nOrigin: http://localhost:3000\r\nAuthorization: Bearer {token}\r\n\r\n"
    )
    .into_bytes()
}

pub fn post(address: SocketAddr, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// How long answers took, and over what time they came.
#[derive(Default)]
pub struct Times {
    took: Vec<Duration>,
    over: Duration,
}

impl Times {
    /// Adds another round of the same.
    pub fn add(&mut self, other: Times) {
        self.took.extend(other.took);
        self.over += other.over;
    }

    pub fn rate(&self) -> f64 {
        self.took.len() as f64 / self.over.as_secs_f64()
    }

    /// The time within which these shares of the answers came.
    pub fn within<const N: usize>(&self, shares: [f64; N]) -> [Duration; N] {
        let mut took = self.took.clone();
        took.sort_unstable();
        shares.map(|share| took[((took.len() - 1) as f64 * share) as usize])
    }
}

/// So many callers for so long, each asking again once it was answered and has paused. Every answer must be 200.
pub async fn load(
    address: SocketAddr,
    request: &[u8],
    callers: usize,
    pause: Duration,
    slice: Duration,
) -> Times {
    let mut connections = Vec::with_capacity(callers);
    for _ in 0..callers {
        connections.push(Caller::connect(address).await);
    }
    let begun = Instant::now();
    let mut running = JoinSet::new();
    for mut caller in connections {
        let request = request.to_vec();
        running.spawn(async move {
            let mut took = Vec::new();
            while begun.elapsed() < slice {
                let asked = Instant::now();
                let answer = caller.ask(&request).await;
                took.push(asked.elapsed());
                assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
            }
            took
        });
    }
    let took = running.join_all().await.concat();
    Times { took, over: begun.elapsed() }
}
