//! Reading an upstream's answer to every kind of end. A second is 20 ms here.

use super::*;
use futures_util::StreamExt as _;
use http_body::Frame;
use http_body_util::StreamBody;
use std::future::pending;
use tokio::sync::mpsc;

const START: &str = "data: {\"type\":\"start\"}\n\n";
const TOKEN: &str = "data: {\"type\":\"token\",\"content\":\"hi\"}\n\n";
const END: &str = "data: {\"type\":\"end\",\"total_tokens\":7}\n\n";

fn seconds(seconds: u64) -> Duration {
    Duration::from_millis(20 * seconds)
}

fn turn(max_size: u64) -> Arc<Turn> {
    let times =
        StreamTimes { first_event: seconds(5), idle: seconds(10), max: seconds(60), heartbeat: seconds(1) };
    let limits =
        TurnLimits { times, on_disconnect: OnDisconnect::Cancel, resume_for: Duration::ZERO, max_size };
    let owner = Owner { tenant_id: "".into(), user_id: "u".into() };
    Turn::new(TurnRef { id: "t".to_owned(), session_id: "s".to_owned() }, owner, limits)
}

/// What an upstream sends, and after how long.
type Piece = (u64, Result<&'static str, io::ErrorKind>);

/// An answer of these pieces, which then ends (or not).
fn answer(pieces: Vec<Piece>, ends: bool, close_delimited: bool) -> Answer {
    let (say, said) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for (wait, piece) in pieces {
            tokio::time::sleep(seconds(wait)).await;
            let _ = say.send(piece);
        }
        if !ends {
            say.closed().await;
        }
    });
    let stream =
        futures_util::stream::unfold(said, |mut said| async move { Some((said.recv().await?, said)) });
    let frames = stream.map(|piece| {
        piece.map(|text| Frame::data(Bytes::from_static(text.as_bytes()))).map_err(io::Error::from)
    });
    Answer { body: BoxBody::new(StreamBody::new(frames)), close_delimited }
}

/// How it went: status, end, what readers are told last, what was said, events told.
async fn read(turn: &Turn, answer: Answer) -> (MessageStatus, End, String, String, usize) {
    let mut told = 0;
    let stopped = pending();
    let (ending, _) = turn.read(answer, Instant::now(), stopped, |_, _| told += 1).await;
    let last = ending.last.map(|last| String::from_utf8(last.to_vec()).unwrap()).unwrap_or_default();
    (ending.status, ending.end, last, turn.message(ending.status).content, told)
}

#[tokio::test]
async fn an_answer_that_ends_is_complete_and_its_last_event_waits() {
    let turn = turn(1024);
    let pieces = vec![(0, Ok(START)), (1, Ok(TOKEN)), (1, Ok(TOKEN)), (0, Ok(END)), (0, Ok(TOKEN))];
    let (status, end, last, said, told) = read(&turn, answer(pieces, false, false)).await;
    assert_eq!((status, end, told), (MessageStatus::Complete, End::Complete, 3));
    assert_eq!((last.trim(), said.as_str()), (END.trim(), "hihi"));
    assert_eq!(turn.message(status).total_tokens, Some(7));
    assert_eq!(turn.log.len(), 3);
}

#[tokio::test]
async fn an_end_of_its_own_is_one_and_a_death_is_none() {
    let whole = || vec![(0, Ok(START)), (0, Ok(TOKEN))];
    let (status, ..) = read(&turn(1024), answer(whole(), true, false)).await;
    assert_eq!(status, MessageStatus::Complete);
    // Its end cannot be told from its death.
    let (status, end, last, said, _) = read(&turn(1024), answer(whole(), true, true)).await;
    assert_eq!((status, end, said.as_str()), (MessageStatus::Interrupted, End::UpstreamBroke, "hi"));
    assert!(last.contains("upstream_interrupted"), "{last}");
    // Half an event.
    let half = vec![(0, Ok(TOKEN)), (0, Ok("data: {\"type\":"))];
    let (status, _, _, said, told) = read(&turn(1024), answer(half, true, false)).await;
    assert_eq!((status, said.as_str(), told), (MessageStatus::Interrupted, "hi", 1));
    let broken = vec![(0, Ok(TOKEN)), (0, Err(io::ErrorKind::ConnectionReset))];
    let (status, end, ..) = read(&turn(1024), answer(broken, false, false)).await;
    assert_eq!((status, end), (MessageStatus::Interrupted, End::UpstreamBroke));
}

#[tokio::test]
async fn an_upstream_that_says_it_failed_is_believed() {
    let pieces =
        vec![(0, Ok(TOKEN)), (0, Ok("data: {\"type\":\"error\",\"code\":\"model_overloaded\"}\n\n"))];
    let (status, _, last, said, _) = read(&turn(1024), answer(pieces, false, false)).await;
    assert_eq!((status, said.as_str()), (MessageStatus::Failed, "hi"));
    assert!(last.contains("model_overloaded"), "{last}");
}

#[tokio::test]
async fn silence_has_its_limits() {
    for (pieces, after, code) in [
        // Nothing at all; comments are nothing.
        (vec![(1, Ok(": hm\n\n")), (1, Ok(": hm\n\n"))], 5, "stream_idle"),
        (vec![(1, Ok(START)), (1, Ok(TOKEN))], 1 + 1 + 10, "stream_idle"),
        ((0..40).map(|_| (2, Ok(TOKEN))).collect(), 60, "stream_too_long"),
    ] {
        let began = Instant::now();
        let (status, end, last, ..) = read(&turn(4096), answer(pieces, false, false)).await;
        assert_eq!((status, end), (MessageStatus::Interrupted, End::StreamLimit), "{code}");
        assert!(last.contains(code), "{last}");
        assert!((seconds(after)..seconds(after + 60)).contains(&began.elapsed()), "{code}");
    }
}

#[tokio::test]
async fn a_stream_is_no_larger_than_allowed() {
    let flood = (0..1000).map(|_| (0, Ok(TOKEN))).collect();
    let (status, _, last, _, told) = read(&turn(1024), answer(flood, false, false)).await;
    assert_eq!(status, MessageStatus::Interrupted);
    assert!(last.contains("stream_too_large") && told < 30, "{last} {told}");
    // An event without an end is held, and counts.
    let endless = (0..1000).map(|_| (0, Ok("data: 0123456789"))).collect();
    let (_, _, last, _, told) = read(&turn(1024), answer(endless, false, false)).await;
    assert!(last.contains("stream_too_large") && told == 0, "{last} {told}");
}

#[tokio::test]
async fn the_first_reason_to_stop_counts() {
    let turn = turn(1024);
    let (_close, closing) = watch::channel(false);
    turn.stop(Stop::Cancelled);
    turn.stop(Stop::Left);
    let stopped = turn.stopped(closing);
    let endless = answer(vec![(0, Ok(TOKEN))], false, false);
    let (ending, rest) = turn.read(endless, Instant::now(), stopped, |_, _| {}).await;
    assert_eq!((ending.status, ending.end), (MessageStatus::Cancelled, End::Complete));
    assert!(rest.is_none(), "the upstream goes on");
}

#[tokio::test]
async fn the_last_reader_to_leave_stops_it() {
    let turn = turn(1024);
    let (close, closing) = watch::channel(false);
    turn.enter();
    turn.enter();
    turn.leave();
    let left = timeout(seconds(1), turn.stopped(closing.clone())).await;
    assert!(left.is_err(), "somebody still reads");
    turn.leave();
    assert_eq!(turn.stopped(closing).await.end, End::ClientLeft);
    drop(close);
}

#[tokio::test]
async fn what_was_said_is_unsaved_until_it_is_saved() {
    let turn = turn(1024);
    assert_eq!(turn.unsaved(), None);
    read(&turn, answer(vec![(0, Ok(TOKEN))], true, false)).await;
    let first = turn.unsaved().unwrap();
    assert_eq!((&*first.turn, first.at, &*first.text), (&*turn.id, 0, "hi"));
    // Nobody heard of its being saved, and more is said: the piece comes again, longer.
    read(&turn, answer(vec![(0, Ok(TOKEN))], true, false)).await;
    let longer = turn.unsaved().unwrap();
    assert_eq!((longer.at, &*longer.text), (0, "hihi"));
    turn.is_saved(&first);
    let rest = turn.unsaved().unwrap();
    assert_eq!((rest.at, &*rest.text), (2, "hi"));
    turn.is_saved(&rest);
    assert_eq!(turn.unsaved(), None);
}
