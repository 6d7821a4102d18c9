//! What lies between a socket and the HTTP parser: deadlines for writing below, a look at the bytes above.
//!
//! [`Steady`] wraps the socket itself, under TLS, and drops a peer that reads nothing. [`Tap`] sits right under the
//! parser: it replays what was read while there was none, and watches the framing of HTTP/1. Both outlive the
//! parser, when a connection rests and when it is upgraded.
use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::framing::{Framing, Phase};

/// What is read at once while nothing is held for the connection: more than most requests have.
const HEARD: usize = 2 << 10;
/// Up to so many bytes are joined before they are written.
const JOINED: usize = 2 << 10;
/// How long a peer may go on sending after we have closed, so that it gets to read the answer: closing a socket with
/// unread bytes in it makes the kernel discard what we wrote last.
const LINGER: Duration = Duration::from_secs(2);

/// What is known of a connection at this moment. Written by the wire and by the requests, read by its driver; mostly
/// from one task, hence the relaxed order.
#[derive(Debug, Default)]
pub(super) struct Vitals {
    phase: AtomicU8,
    /// Requests whose response is not finished.
    exchanges: AtomicU32,
    /// Requests so far.
    started: AtomicU64,
    /// The socket takes no more bytes for now.
    blocked: AtomicBool,
    ambiguous: AtomicBool,
    /// Bodies of requests that somebody may still read.
    unread: AtomicU32,
    /// The parser must not be taken from the connection: it is closing, or what it reads is not understood here.
    held: AtomicBool,
    /// The parser is done with the connection: it ended or was upgraded.
    released: AtomicBool,
}

/// A request in progress; ends when dropped.
pub(super) struct Exchange(Arc<Vitals>);

/// A request's body that may be read, also when the response is finished: the parser has what has come of it.
pub(super) struct Unread(Arc<Vitals>);

/// A socket that fails with [`io::ErrorKind::TimedOut`] when the peer takes nothing for a while.
pub(super) struct Steady<S, T> {
    io: S,
    stall: Duration,
    stalled: bool,
    // Made when the first write has to wait, which most connections never see.
    timer: Option<Pin<Box<Sleep>>>,
    vitals: Arc<Vitals>,
    // Whatever must live exactly as long as the socket.
    _seat: T,
}

/// A stream that gives back bytes already read, then passes through and watches the framing.
pub(super) struct Tap<S> {
    io: S,
    prefix: Bytes,
    framing: Option<Framing>,
    linger: Option<Pin<Box<Sleep>>>,
    vitals: Arc<Vitals>,
}

impl Vitals {
    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            _ => Phase::Body,
        }
    }

    /// Whether a response is being made or is still on its way out.
    pub(super) fn is_busy(&self) -> bool {
        self.exchanges.load(Relaxed) > 0 || self.blocked.load(Relaxed)
    }

    pub(super) fn started(&self) -> u64 {
        self.started.load(Relaxed)
    }

    pub(super) fn is_ambiguous(&self) -> bool {
        self.ambiguous.load(Relaxed)
    }

    /// Whether the connection has to stay with its parser, whatever phase it is in.
    pub(super) fn is_held(&self) -> bool {
        self.held.load(Relaxed) || self.unread.load(Relaxed) > 0
    }

    pub(super) fn release(&self) {
        self.released.store(true, Relaxed);
    }
}

impl Exchange {
    pub(super) fn begin(vitals: &Arc<Vitals>) -> Self {
        vitals.exchanges.fetch_add(1, Relaxed);
        vitals.started.fetch_add(1, Relaxed);
        Self(Arc::clone(vitals))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.exchanges.fetch_sub(1, Relaxed);
    }
}

impl Unread {
    pub(super) fn of(vitals: &Arc<Vitals>) -> Self {
        vitals.unread.fetch_add(1, Relaxed);
        Self(Arc::clone(vitals))
    }
}

impl Clone for Unread {
    fn clone(&self) -> Self {
        Self::of(&self.0)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.unread.fetch_sub(1, Relaxed);
    }
}

impl<S, T> Steady<S, T> {
    /// `stall` is how long one write may wait for the peer.
    pub(super) fn new(io: S, stall: Duration, vitals: Arc<Vitals>, seat: T) -> Self {
        Self { io, stall, stalled: false, timer: None, vitals, _seat: seat }
    }

    fn hold<R>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if polled.is_ready() {
            if self.stalled {
                self.stalled = false;
                self.vitals.blocked.store(false, Relaxed);
            }
            return polled;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.stall)));
        if !self.stalled {
            self.stalled = true;
            self.vitals.blocked.store(true, Relaxed);
            timer.as_mut().reset(Instant::now() + self.stall);
        }
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer stopped reading")))
    }
}

impl<S: AsyncRead + Unpin, T: Unpin> AsyncRead for Steady<S, T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin, T: Unpin> AsyncWrite for Steady<S, T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.hold(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // One buffer costs the kernel less than several: a head with a small body, an event with its chunk's frame.
        let mut room = [MaybeUninit::uninit(); JOINED];
        let mut joined = ReadBuf::uninit(&mut room);
        let whole = slices.iter().take_while(|slice| {
            let fits = slice.len() <= joined.remaining();
            if fits {
                joined.put_slice(slice);
            }
            fits
        });
        let polled = match whole.count() == slices.len() {
            true => Pin::new(&mut self.io).poll_write(cx, joined.filled()),
            false => Pin::new(&mut self.io).poll_write_vectored(cx, slices),
        };
        self.hold(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket has nothing to flush; were this to count as progress, a stalled write would start afresh.
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.hold(cx, polled)
    }
}

impl<S> Tap<S> {
    /// Passes everything through.
    pub(super) fn new(io: S, vitals: Arc<Vitals>) -> Self {
        Self { io, prefix: Bytes::new(), framing: None, linger: None, vitals }
    }

    /// For HTTP/1: watches what is read from now on, beginning with what was heard.
    pub(super) fn watch(&mut self) {
        self.framing = Some(Framing::default());
    }

    /// What was heard and is to be read yet.
    pub(super) fn heard(&self) -> &[u8] {
        &self.prefix
    }
}

impl<S: AsyncRead + Unpin> Tap<S> {
    /// Waits for bytes without a buffer that waits too; they are there to be read. How many came, none at the end.
    pub(super) fn poll_hear(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [MaybeUninit::uninit(); HEARD];
        let mut buf = ReadBuf::uninit(&mut room);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        let came = buf.filled();
        self.prefix = match self.prefix.is_empty() {
            true => Bytes::copy_from_slice(came),
            false => [&self.prefix[..], came].concat().into(),
        };
        Poll::Ready(Ok(came.len()))
    }

    /// Reads on for a moment if the peer is in the middle of a request that was answered already.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(framing) = &mut self.framing else { return Poll::Ready(()) };
        let mut discarded = [0; 4096];
        while framing.is_ambiguous() || framing.phase() != Phase::Idle {
            let timer = self.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
            if timer.as_mut().poll(cx).is_ready() {
                break;
            }
            let mut buf = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => framing.observe(buf.filled()),
                _ => break,
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.prefix.is_empty() {
            ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        } else {
            let replayed = this.prefix.split_to(this.prefix.len().min(buf.remaining()));
            buf.put_slice(&replayed);
        }
        if let Some(framing) = &mut this.framing {
            if this.vitals.released.load(Relaxed) {
                this.framing = None;
            } else {
                framing.observe(&buf.filled()[before..]);
                this.vitals.phase.store(framing.phase() as u8, Relaxed);
                if framing.is_ambiguous() {
                    this.vitals.ambiguous.store(true, Relaxed);
                }
                if framing.is_ambiguous() || framing.is_lost() {
                    this.vitals.held.store(true, Relaxed);
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.vitals.held.store(true, Relaxed);
        if self.linger.is_none() {
            ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            if self.vitals.released.load(Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        self.poll_linger(cx).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test]
    async fn a_prefix_comes_first_in_pieces_of_any_size() {
        let (mut peer, here) = duplex(64);
        peer.write_all(b"llo world").await.unwrap();
        drop(peer);
        let mut tap = Tap::new(here, Arc::default());
        tap.prefix = Bytes::from_static(b"he");
        let mut first = [0; 1];
        tap.read_exact(&mut first).await.unwrap();
        let mut rest = String::new();
        tap.read_to_string(&mut rest).await.unwrap();
        assert_eq!((&first[..], &*rest), (&b"h"[..], "ello world"));
    }

    #[tokio::test]
    async fn a_peer_that_reads_a_little_is_kept_and_one_that_reads_nothing_is_not() {
        let (mut peer, here) = duplex(16);
        let vitals = Arc::<Vitals>::default();
        let mut steady = Steady::new(here, Duration::from_millis(200), Arc::clone(&vitals), ());
        let writer = tokio::spawn(async move { steady.write_all(&[7; 64]).await });
        let mut some = [0; 16];
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(120)).await;
            assert!(vitals.is_busy());
            peer.read_exact(&mut some).await.unwrap();
        }
        let failure = tokio::time::timeout(LINGER, writer).await.unwrap().unwrap().unwrap_err();
        assert_eq!(failure.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_shutdown_mid_request_lets_the_peer_finish() {
        let (mut peer, here) = duplex(1024);
        let mut tap = Tap::new(here, Arc::default());
        tap.watch();
        peer.write_all(b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n").await.unwrap();
        let _ = tap.read(&mut [0; 256]).await.unwrap();
        let begun = Instant::now();
        let closing = tokio::spawn(async move { tap.shutdown().await });
        peer.write_all(b"123456789").await.unwrap();
        assert_eq!(peer.read(&mut [0; 8]).await.unwrap(), 0);
        drop(peer);
        closing.await.unwrap().unwrap();
        assert!(begun.elapsed() < LINGER);
    }
}
