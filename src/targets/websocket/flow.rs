//! One direction of an open WebSocket: bytes from one end to the other, and what the gateway puts in between.
//!
//! A piece is read into a buffer that all sockets of a thread share, looked over, and written on from there. Only what
//! the other end does not take at once is kept, and nothing more is read until it is gone: that is the back-pressure,
//! and a socket that rests holds no buffer. A header that came in part waits until the rest is there, so that whatever
//! passed may be followed by a frame of the gateway's wherever none is under way.

use crate::ws::Pace;
use crate::ws::frame::{MAX_HEADER, Scanner, Violation};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// Most that is read at once, and most that is kept for a reader who is slow.
const PIECE: usize = 64 << 10;
/// Pieces of one direction before the other has its turn.
const TURN: usize = 16;

thread_local! {
    static PIECES: RefCell<Box<[u8]>> = RefCell::new(vec![0; MAX_HEADER + PIECE].into());
}

/// An end of a socket.
pub(super) trait End: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> End for T {}

/// What came of moving bytes until there was nothing more to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Wakes when it goes on.
    Waits,
    /// The source has ended, and everything it said was passed on, its end too.
    Done,
    /// The source's end was just seen.
    Ended,
    /// The source broke.
    ReadBroke,
    /// The other end takes nothing any more: it is gone, or the door gave it up because it stopped reading.
    WriteBroke(io::ErrorKind),
    /// What follows may not pass.
    Violated(Violation),
    /// It comes faster than it may.
    TooFast,
}

/// What becomes of what comes.
#[derive(Debug)]
enum Mode {
    /// It passes.
    Pass,
    /// The frame under way passes, then comes this.
    Finish(Vec<u8>),
    /// It is discarded.
    Discard,
}

/// How fast a source may be.
#[derive(Debug, Default)]
pub(super) struct Paces {
    pub(super) frames: Option<Pace>,
    pub(super) bytes: Option<Pace>,
}

impl Paces {
    fn take(&mut self, frames: u32, bytes: usize) -> bool {
        let within =
            |pace: &mut Option<Pace>, count| pace.as_mut().is_none_or(|pace| pace.take(count, Instant::now));
        within(&mut self.frames, frames.into()) & within(&mut self.bytes, bytes as u64)
    }
}

/// One direction.
#[derive(Debug)]
pub(super) struct Flow {
    scanner: Scanner,
    /// Follows what is discarded, for the Close in it.
    discarded: Scanner,
    /// The beginning of a header.
    held: ([u8; MAX_HEADER], usize),
    /// What the other end has not taken, from `at` on.
    kept: Vec<u8>,
    at: usize,
    mode: Mode,
    unflushed: bool,
    ended: bool,
    /// Whether the other end was told of the end.
    shut: bool,
    /// Whether the other end is gone.
    deaf: bool,
    /// Whether a Close of the gateway's own has gone.
    own_close: bool,
    /// Whether the gateway has said what it had to say.
    last_said: bool,
    max: u64,
    paces: Paces,
    /// Whether something came since this was last reset.
    pub(super) came: bool,
    /// Whether the other end took something since this was last reset.
    pub(super) went: bool,
    /// Bytes passed on since this was last reset.
    pub(super) passed: u64,
}

impl Flow {
    /// `max` is the largest message.
    pub(super) fn new(max: u64, paces: Paces) -> Self {
        Flow {
            scanner: Scanner::default(),
            discarded: Scanner::default(),
            held: ([0; MAX_HEADER], 0),
            kept: Vec::new(),
            at: 0,
            mode: Mode::Pass,
            unflushed: false,
            ended: false,
            shut: false,
            deaf: false,
            own_close: false,
            last_said: false,
            max,
            paces,
            came: false,
            went: false,
            passed: 0,
        }
    }

    /// Whether the other end has not taken what it was given.
    pub(super) fn is_blocked(&self) -> bool {
        self.at < self.kept.len() || self.unflushed
    }

    /// Whether a Close was passed on or said.
    pub(super) fn said_close(&self) -> bool {
        self.scanner.saw_close() || self.own_close
    }

    /// Whether the source has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Whether nothing is left to do before both connections are closed: everything kept is out, and the source has
    /// ended or has answered a Close.
    pub(super) fn is_settled(&self) -> bool {
        !self.is_blocked() && (self.ended || self.discarded.saw_close())
    }

    /// Puts in a frame, if none is under way and nothing waits. Whether it did.
    pub(super) fn put_in(&mut self, frame: Vec<u8>) -> bool {
        let may = matches!(self.mode, Mode::Pass) && self.scanner.is_boundary() && !self.scanner.saw_close();
        if may && !self.is_blocked() && !self.ended && !self.deaf {
            (self.kept, self.at) = (frame, 0);
            return true;
        }
        false
    }

    /// Lets the frame under way pass, says this Close unless one was passed on, and discards what follows.
    pub(super) fn finish(&mut self, close: Vec<u8>) {
        if self.last_said || matches!(self.mode, Mode::Finish(_)) {
            return;
        }
        let close = if self.scanner.saw_close() { Vec::new() } else { close };
        if self.scanner.is_boundary() {
            self.say_last(&close);
        } else if !self.ended {
            self.mode = Mode::Finish(close);
        } else {
            self.mode = Mode::Discard;
        }
    }

    fn say_last(&mut self, close: &[u8]) {
        self.mode = Mode::Discard;
        self.last_said = true;
        if !close.is_empty() && !self.deaf && !self.shut {
            self.kept.extend_from_slice(close);
            self.own_close = true;
        }
        let (held, len) = std::mem::take(&mut self.held);
        self.discard(&held[..len]);
    }

    /// From now on discards everything: the other end is gone.
    pub(super) fn go_deaf(&mut self) {
        self.deaf = true;
        self.last_said = true;
        self.unflushed = false;
        (self.kept, self.at) = (Vec::new(), 0);
        self.mode = Mode::Discard;
    }

    /// Moves bytes until there is nothing more to do for now.
    pub(super) fn drive(&mut self, from: &mut impl End, to: &mut impl End, cx: &mut Context<'_>) -> Step {
        for _ in 0..TURN {
            match self.write_kept(to, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Step::WriteBroke(error.kind()),
                Poll::Pending => return Step::Waits,
            }
            if self.ended {
                if self.deaf || self.shut || !matches!(self.mode, Mode::Pass) {
                    return Step::Done;
                }
                return match Pin::new(&mut *to).poll_shutdown(cx) {
                    Poll::Ready(_) => {
                        self.shut = true;
                        Step::Done
                    }
                    Poll::Pending => Step::Waits,
                };
            }
            match PIECES.with_borrow_mut(|room| self.read_piece(room, from, to, cx)) {
                Poll::Ready(None) => {}
                Poll::Ready(Some(step)) => return step,
                Poll::Pending => return Step::Waits,
            }
        }
        // The other direction's turn.
        cx.waker().wake_by_ref();
        Step::Waits
    }

    fn write_kept(&mut self, to: &mut impl End, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.at < self.kept.len() {
            match Pin::new(&mut *to).poll_write(cx, &self.kept[self.at..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    self.at += count;
                    self.went = true;
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        // What a slow reader has cost is given back.
        (self.kept, self.at) = (Vec::new(), 0);
        if self.unflushed {
            std::task::ready!(Pin::new(&mut *to).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, and passes on what may pass.
    fn read_piece(
        &mut self,
        room: &mut [u8],
        from: &mut impl End,
        to: &mut impl End,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Step>> {
        let begin = MAX_HEADER - self.held.1;
        room[begin..MAX_HEADER].copy_from_slice(&self.held.0[..self.held.1]);
        let mut read = ReadBuf::new(&mut room[MAX_HEADER..]);
        match std::task::ready!(Pin::new(from).poll_read(cx, &mut read)) {
            Err(_) => {
                self.ended = true;
                return Poll::Ready(Some(Step::ReadBroke));
            }
            Ok(()) if read.filled().is_empty() => {
                self.ended = true;
                // Part of a header is nothing that could still pass.
                return Poll::Ready(Some(Step::Ended));
            }
            Ok(()) => {}
        }
        let end = MAX_HEADER + read.filled().len();
        self.came = true;
        let (pass, step) = self.look_over(&room[begin..end]);
        let pieces = &room[begin..begin + pass];
        self.passed += pass as u64;
        Poll::Ready(match self.write_on(pieces, to, cx) {
            Err(error) => Some(Step::WriteBroke(error.kind())),
            Ok(()) => {
                if let Mode::Finish(close) = &mut self.mode
                    && self.scanner.is_boundary()
                {
                    let close = std::mem::take(close);
                    self.say_last(&close);
                }
                step
            }
        })
    }

    /// How much of this may pass, and why no more.
    fn look_over(&mut self, bytes: &[u8]) -> (usize, Option<Step>) {
        self.held.1 = 0;
        match self.mode {
            Mode::Pass => {}
            Mode::Finish(_) => {
                let pass = self.scanner.finish(bytes);
                self.discard(&bytes[pass..]);
                return (pass, None);
            }
            Mode::Discard => {
                self.discard(bytes);
                return (0, None);
            }
        }
        let scan = self.scanner.scan(bytes, self.max);
        let rest = &bytes[scan.pass..];
        if let Some(violation) = scan.violation {
            // What passed ends with a frame: a Close may follow.
            self.mode = Mode::Discard;
            self.discard(rest);
            return (scan.pass, Some(Step::Violated(violation)));
        }
        self.hold(rest);
        let within = self.paces.take(scan.frames, scan.pass);
        (scan.pass, (!within).then_some(Step::TooFast))
    }

    fn hold(&mut self, rest: &[u8]) {
        self.held.0[..rest.len()].copy_from_slice(rest);
        self.held.1 = rest.len();
    }

    /// Follows what does not pass, to see the Close in it.
    fn discard(&mut self, bytes: &[u8]) {
        let scan = self.discarded.scan(bytes, u64::MAX);
        if scan.violation.is_none() {
            self.hold(&bytes[scan.pass..]);
        }
    }

    /// Writes a piece; keeps what is not taken.
    fn write_on(&mut self, mut piece: &[u8], to: &mut impl End, cx: &mut Context<'_>) -> io::Result<()> {
        while !piece.is_empty() {
            match Pin::new(&mut *to).poll_write(cx, piece) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    piece = &piece[count..];
                    self.went = true;
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.kept.extend_from_slice(piece);
                    break;
                }
            }
        }
        Ok(())
    }
}
