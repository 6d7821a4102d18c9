//! A proxy that fails on purpose: it stands before a real service, and its fault is changed while it runs.
//!
//! A fault strikes connections that something happens on while it is set. What it struck stays broken; a connection
//! opened after [`Faulty::heal`] is a good one. So a test sees whether the gateway keeps the broken ones.

use socket2::{Domain, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Nothing: bytes pass as they are.
    None,
    /// Nobody listens on the port.
    Refuse,
    /// Connections stand, nothing is read and nothing said.
    BlackHole,
    /// Requests are read and never answered.
    Mute,
    /// The answer begins so much later.
    Delay(Duration),
    /// The answer comes with so many bytes a second.
    Throttle(usize),
    /// The answer's head comes byte by byte, so long apart; the body as it is.
    Drip(Duration),
    /// The connection ends inside the answer.
    Cut(Place, How),
    /// These bytes come instead of the answer, and the end.
    Say(String),
}

/// A place in an answer.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// So many bytes after its beginning.
    Head(usize),
    /// So many bytes after its head.
    Body(usize),
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// In order, by a FIN.
    Finish,
    /// By an RST.
    Reset,
}

impl Fault {
    /// The answer is this redirect instead.
    pub fn redirect(to: &str) -> Self {
        Fault::Say(format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n"))
    }
}

/// A running proxy.
pub struct Faulty {
    pub address: SocketAddr,
    state: Arc<State>,
    orders: mpsc::Sender<(Fault, oneshot::Sender<()>)>,
    task: tokio::task::JoinHandle<()>,
}

struct State {
    fault: Mutex<Fault>,
    behind: SocketAddr,
    connections: AtomicUsize,
    tasks: Mutex<Vec<tokio::task::AbortHandle>>,
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.task.abort();
        self.state.tasks.lock().unwrap().iter().for_each(tokio::task::AbortHandle::abort);
    }
}

/// A port that is taken; connections to it are refused until it listens.
fn bound(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

fn listening(socket: Socket) -> TcpListener {
    socket.listen(1024).unwrap();
    TcpListener::from_std(socket.into()).unwrap()
}

impl Faulty {
    /// In front of this address, without a fault.
    pub async fn before(behind: SocketAddr) -> Self {
        let mut listener = Some(listening(bound(([127, 0, 0, 1], 0).into())));
        let address = listener.as_ref().unwrap().local_addr().unwrap();
        let state = Arc::new(State {
            fault: Mutex::new(Fault::None),
            behind,
            connections: AtomicUsize::new(0),
            tasks: Mutex::default(),
        });
        let (orders, mut told) = mpsc::channel::<(Fault, oneshot::Sender<()>)>(1);
        let kept = state.clone();
        let task = tokio::spawn(async move {
            let mut closed = None;
            loop {
                let accepting = async {
                    match &listener {
                        Some(listener) => listener.accept().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    accepted = accepting => {
                        let (caller, _) = accepted.unwrap();
                        kept.connections.fetch_add(1, Ordering::SeqCst);
                        let task = tokio::spawn(connection(caller, kept.clone())).abort_handle();
                        kept.tasks.lock().unwrap().push(task);
                    }
                    order = told.recv() => {
                        let Some((fault, done)) = order else { return };
                        if matches!(fault, Fault::Refuse) {
                            listener = None;
                            // The port stays ours.
                            closed.get_or_insert_with(|| bound(address));
                        } else if let Some(socket) = closed.take() {
                            listener = Some(listening(socket));
                        }
                        *kept.fault.lock().unwrap() = fault;
                        let _ = done.send(());
                    }
                }
            }
        });
        Faulty { address, state, orders, task }
    }

    /// From now on this goes wrong.
    pub async fn set(&self, fault: Fault) {
        let (done, heard) = oneshot::channel();
        self.orders.send((fault, done)).await.unwrap();
        heard.await.unwrap();
    }

    /// From now on nothing goes wrong with new connections.
    pub async fn heal(&self) {
        self.set(Fault::None).await;
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Connections so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Connections that are still open on this side.
    pub fn open(&self) -> usize {
        self.state.tasks.lock().unwrap().iter().filter(|task| !task.is_finished()).count()
    }
}

/// One connection, until either end has ended it.
async fn connection(mut caller: TcpStream, state: Arc<State>) {
    caller.set_nodelay(true).unwrap();
    let fault = || state.fault.lock().unwrap().clone();
    if matches!(fault(), Fault::BlackHole) {
        return std::future::pending().await;
    }
    let Ok(mut service) = TcpStream::connect(state.behind).await else { return };
    service.set_nodelay(true).unwrap();
    let (mut sent, mut said) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut answer = Answer::default();
    loop {
        tokio::select! {
            read = caller.read(&mut sent) => {
                let Ok(count @ 1..) = read else { return };
                match fault() {
                    Fault::BlackHole => return std::future::pending().await,
                    Fault::Mute => return drained(&mut caller).await,
                    Fault::Say(bytes) => {
                        let _ = caller.write_all(bytes.as_bytes()).await;
                        let _ = caller.shutdown().await;
                        return drained(&mut caller).await;
                    }
                    Fault::Cut(Place::Head(0), how) => {
                        // The service has it, and says so to nobody.
                        let _ = service.write_all(&sent[..count]).await;
                        let _ = service.read(&mut said).await;
                        return end(caller, how).await;
                    }
                    _ if service.write_all(&sent[..count]).await.is_err() => return,
                    _ => answer = Answer::default(),
                }
            }
            read = service.read(&mut said) => {
                let Ok(count @ 1..) = read else { return };
                match answer.pass(&mut caller, &said[..count], &fault()).await {
                    Ok(None) => {}
                    Ok(Some(how)) => return end(caller, how).await,
                    Err(_) => return,
                }
            }
        }
    }
}

/// Reads until the other end is done.
async fn drained(caller: &mut TcpStream) {
    let mut rest = [0; 4096];
    while caller.read(&mut rest).await.is_ok_and(|count| count > 0) {}
}

async fn end(mut caller: TcpStream, how: How) {
    match how {
        How::Reset => caller.set_zero_linger().unwrap(),
        How::Finish => {
            let _ = caller.shutdown().await;
            drained(&mut caller).await;
        }
    }
}

/// How far an answer is.
#[derive(Default)]
struct Answer {
    passed: usize,
    /// Its bytes up to the end of its head.
    head: Vec<u8>,
    whole: bool,
}

impl Answer {
    /// Passes bytes on as the fault has it; tells how to end the connection where they are the last.
    async fn pass(&mut self, to: &mut TcpStream, bytes: &[u8], fault: &Fault) -> io::Result<Option<How>> {
        if self.passed == 0
            && let Fault::Delay(delay) = fault
        {
            sleep(*delay).await;
        }
        let of_head = self.head_in(bytes);
        let before = self.passed;
        self.passed += bytes.len();
        match fault {
            Fault::Drip(pause) => {
                for byte in &bytes[..of_head] {
                    to.write_all(&[*byte]).await?;
                    sleep(*pause).await;
                }
                to.write_all(&bytes[of_head..]).await?;
            }
            Fault::Throttle(rate) => {
                for piece in bytes.chunks((rate / 20).max(1)) {
                    to.write_all(piece).await?;
                    sleep(Duration::from_millis(50)).await;
                }
            }
            Fault::Cut(place, how) => {
                let end = match place {
                    Place::Head(count) => *count,
                    Place::Body(count) if self.whole => self.head.len() + count,
                    Place::Body(_) => usize::MAX,
                };
                let room = end.saturating_sub(before);
                to.write_all(&bytes[..room.min(bytes.len())]).await?;
                return Ok((room <= bytes.len()).then_some(*how));
            }
            _ => to.write_all(bytes).await?,
        }
        Ok(None)
    }

    /// How many of these bytes belong to the head.
    fn head_in(&mut self, bytes: &[u8]) -> usize {
        if self.whole {
            return 0;
        }
        let before = self.head.len();
        self.head.extend_from_slice(bytes);
        if let Some(at) = self.head.windows(4).position(|window| window == b"\r\n\r\n") {
            self.head.truncate(at + 4);
            self.whole = true;
        }
        self.head.len() - before
    }
}
