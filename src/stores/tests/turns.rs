//! What stores promise about turns.

use super::conversations::{contents, owner, retry, session, talk};
use super::*;

/// A turn of replica `r1`, alive until second 10.
pub(super) fn turn(session: &str, name: &str) -> NewTurn {
    NewTurn {
        id: name.to_owned(),
        session_id: session.to_owned(),
        message_id: format!("question-{name}"),
        query: format!("query {name}"),
        replica: "r1".to_owned(),
        alive_until: at(10),
    }
}

/// An end as one hopes for it.
pub(super) fn ended(content: &str) -> TurnEnd {
    TurnEnd { content: content.to_owned(), status: MessageStatus::Complete, total_tokens: Some(7) }
}

pub(super) async fn begin(bed: &Bed, owner: &Owner, turn: &NewTurn, seconds: i64) -> TurnRef {
    match bed.store.begin_turn(owner, turn, None, at(seconds)).await.unwrap() {
        Once::Done(turn) => turn,
        other => panic!("{other:?}"),
    }
}

pub(super) fn piece(turn: &str, at: u64, text: &str) -> Piece {
    Piece { turn: turn.to_owned(), at, text: text.to_owned() }
}

async fn said(bed: &Bed, owner: &Owner, session: &str) -> Vec<String> {
    contents(bed, owner, session, Order::OldestFirst).await
}

fn none() -> [String; 0] {
    []
}

async fn a_turn_is_a_question_and_an_answer(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    session(bed, &ada, "s1", 1).await;
    let begun = begin(bed, &ada, &turn("s1", "t1"), 3).await;
    assert_eq!(begun, TurnRef { id: "t1".to_owned(), session_id: "s1".to_owned() });
    assert!(bed.store.turn_runs(&ada, "s1", "t1").await.unwrap());
    let bob = owner(&bed.user("bob").await);
    session(bed, &bob, "s2", 1).await;
    for (owner, session) in [(&bob, "s1"), (&bob, "s2"), (&ada, "s2"), (&ada, "s3")] {
        assert!(!bed.store.turn_runs(owner, session, "t1").await.unwrap(), "there is no such turn of theirs");
    }
    assert_eq!(bed.store.session(&ada, "s1").await.unwrap().updated_at, at(3));
    let question = Message {
        id: "question-t1".to_owned(),
        author: Author::User,
        content: "query t1".to_owned(),
        status: MessageStatus::Complete,
        total_tokens: None,
        created_at: at(3),
    };
    assert_eq!(bed.store.message(&ada, "s1", "question-t1").await.unwrap(), question);
    assert_eq!(said(bed, &ada, "s1").await, ["query t1"], "no half answer");

    bed.store.finish_turn(&begun, &ended("answer"), at(5)).await.unwrap();
    assert!(!bed.store.turn_runs(&ada, "s1", "t1").await.unwrap());
    assert_eq!(bed.store.session(&ada, "s1").await.unwrap().updated_at, at(5));
    let answer = Message {
        id: "t1".to_owned(),
        author: Author::Assistant,
        content: "answer".to_owned(),
        status: MessageStatus::Complete,
        total_tokens: Some(7),
        created_at: at(5),
    };
    let page = bed.store.messages(&ada, "s1", Order::OldestFirst, 9, None).await.unwrap();
    assert_eq!(page, Page { items: vec![question, answer], next: None });

    for (name, status) in
        [("i", MessageStatus::Interrupted), ("f", MessageStatus::Failed), ("c", MessageStatus::Cancelled)]
    {
        let begun = begin(bed, &ada, &turn("s1", name), 6).await;
        let end = TurnEnd { content: String::new(), status, total_tokens: None };
        bed.store.finish_turn(&begun, &end, at(6)).await.unwrap();
        let message = bed.store.message(&ada, "s1", name).await.unwrap();
        assert_eq!((message.status, message.total_tokens, &*message.content), (status, None, ""));
    }
}

async fn however_often_a_turn_is_finished_there_is_one_message(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    session(bed, &ada, "s1", 1).await;
    let begun = begin(bed, &ada, &turn("s1", "t1"), 1).await;
    let finishes = (0..6).map(|_| {
        let (store, begun) = (Arc::clone(&bed.store), begun.clone());
        tokio::spawn(async move { store.finish_turn(&begun, &ended("answer"), at(2)).await })
    });
    for finish in futures_util::future::join_all(finishes).await {
        finish.unwrap().unwrap();
    }
    talk(bed, &ada, "s1", "t2", 3).await;
    bed.store.finish_turn(&begun, &ended("answer"), at(4)).await.unwrap();
    assert_eq!(said(bed, &ada, "s1").await, ["query t1", "answer", "query t2", "answer t2"]);
    // The id of a question is no turn's.
    let forged = TurnRef { id: "question-t1".to_owned(), ..begun };
    bed.store.finish_turn(&forged, &ended("forged"), at(5)).await.unwrap();
    assert_eq!(said(bed, &ada, "s1").await, ["query t1", "answer", "query t2", "answer t2"]);
}

async fn a_replica_keeps_its_turns_alive(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    session(bed, &ada, "s1", 1).await;
    session(bed, &ada, "s2", 1).await;
    begin(bed, &ada, &turn("s1", "t1"), 1).await;
    begin(bed, &ada, &turn("s2", "t2"), 1).await;
    let other = NewTurn { replica: "r2".to_owned(), ..turn("s2", "t3") };
    begin(bed, &ada, &other, 1).await;

    // Also a turn that did not go on, and not that of another replica, whoever speaks of it.
    let words = [("t1", "first"), ("t3", "stolen"), ("gone", "x")];
    let words = words.map(|(turn, text)| piece(turn, 0, text));
    assert_eq!(bed.store.keep_turns("r1", &words, at(30)).await.unwrap(), ["gone"]);
    assert_eq!(bed.store.recover_turns("new", at(11)).await.unwrap(), 1);
    assert_eq!(bed.store.message(&ada, "s2", "t3").await.unwrap().content, "", "r2 said nothing by then");
    assert!(bed.store.turn_runs(&ada, "s1", "t1").await.unwrap());
    assert!(bed.store.turn_runs(&ada, "s2", "t2").await.unwrap());
    assert_eq!(bed.store.keep_turns("r1", &[], at(40)).await.unwrap(), none());
    assert_eq!(bed.store.recover_turns("new", at(40)).await.unwrap(), 0, "until then, and then too");

    assert_eq!(bed.store.recover_turns("new", at(41)).await.unwrap(), 2);
    let kept = bed.store.message(&ada, "s1", "t1").await.unwrap();
    assert_eq!(
        (kept.author, &*kept.content, kept.status, kept.created_at),
        (Author::Assistant, "first", MessageStatus::Interrupted, at(41))
    );
    assert_eq!(bed.store.session(&ada, "s1").await.unwrap().updated_at, at(41));
    assert_eq!(bed.store.recover_turns("new", at(50)).await.unwrap(), 0);
    assert_eq!(
        bed.store.keep_turns("r1", &words, at(60)).await.unwrap(),
        ["gone"],
        "late words of the dead, who have their messages"
    );
    assert_eq!(said(bed, &ada, "s1").await, ["query t1", "first"]);
}

/// Whatever of what a replica says is heard twice, or late.
async fn pieces_of_an_answer_are_put_together(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    session(bed, &ada, "s1", 1).await;
    begin(bed, &ada, &turn("s1", "t1"), 1).await;
    begin(bed, &ada, &turn("s1", "t2"), 1).await;
    for pieces in [
        vec![piece("t1", 0, "今天"), piece("t2", 0, "x")],
        // The answer to the one before was lost, and more was said; then the first comes once more.
        vec![piece("t1", 0, "今天天气")],
        vec![piece("t1", 0, "今天")],
        vec![piece("t1", 12, "很好"), piece("t2", 1, "y")],
        vec![piece("t1", 18, "。")],
    ] {
        assert_eq!(bed.store.keep_turns("r1", &pieces, at(10)).await.unwrap(), none());
    }
    assert_eq!(bed.store.recover_turns("r2", at(11)).await.unwrap(), 2);
    assert_eq!(bed.store.message(&ada, "s1", "t1").await.unwrap().content, "今天天气很好。");
    assert_eq!(bed.store.message(&ada, "s1", "t2").await.unwrap().content, "xy");
    assert_eq!(bed.count("turn_pieces").await.unwrap_or(0), 0, "they go with their turn");
}

async fn a_replica_that_starts_again_closes_what_it_left(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    session(bed, &ada, "s1", 1).await;
    begin(bed, &ada, &turn("s1", "t1"), 1).await;
    let other = NewTurn { replica: "r2".to_owned(), ..turn("s1", "t2") };
    begin(bed, &ada, &other, 1).await;
    assert_eq!(bed.store.recover_turns("r1", at(2)).await.unwrap(), 1);
    assert!(bed.store.turn_runs(&ada, "s1", "t2").await.unwrap(), "another replica's, which lives");
    assert_eq!(bed.store.message(&ada, "s1", "t1").await.unwrap().status, MessageStatus::Interrupted);
}

async fn who_finishes_late_is_right(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    session(bed, &ada, "s1", 1).await;
    let begun = begin(bed, &ada, &turn("s1", "t1"), 1).await;
    bed.store.keep_turns("r1", &[piece("t1", 0, "half")], at(10)).await.unwrap();
    assert_eq!(bed.store.recover_turns("r2", at(11)).await.unwrap(), 1);
    talk(bed, &ada, "s1", "t2", 12).await;
    assert_eq!(said(bed, &ada, "s1").await, ["query t1", "half", "query t2", "answer t2"]);
    bed.store.finish_turn(&begun, &ended("the whole"), at(13)).await.unwrap();
    assert_eq!(said(bed, &ada, "s1").await, ["query t1", "the whole", "query t2", "answer t2"]);
    let message = bed.store.message(&ada, "s1", "t1").await.unwrap();
    assert_eq!((message.status, message.total_tokens), (MessageStatus::Complete, Some(7)));
    assert_eq!(bed.store.recover_turns("r1", at(99)).await.unwrap(), 0);
    assert_eq!(bed.store.message(&ada, "s1", "t1").await.unwrap(), message);
}

async fn finishing_and_recovering_at_once_leave_the_finisher_s_message(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    let mut turns = Vec::new();
    for number in 0..40 {
        let id = format!("s{number}");
        session(bed, &ada, &id, 1).await;
        turns.push(begin(bed, &ada, &turn(&id, &format!("t{number}")), 1).await);
    }
    let recoveries = (0..2).map(|_| {
        let store = Arc::clone(&bed.store);
        tokio::spawn(async move { store.recover_turns("r2", at(11)).await.unwrap() })
    });
    let recoveries: Vec<_> = recoveries.collect();
    let beats = {
        let store = Arc::clone(&bed.store);
        tokio::spawn(async move {
            for _ in 0..10 {
                store.keep_turns("r1", &[], at(5)).await.unwrap();
            }
        })
    };
    let finishes = turns.into_iter().rev().map(|turn| {
        let store = Arc::clone(&bed.store);
        tokio::spawn(async move { store.finish_turn(&turn, &ended("whole"), at(12)).await.unwrap() })
    });
    for finish in futures_util::future::join_all(finishes).await {
        finish.unwrap();
    }
    for recovery in recoveries {
        assert!(recovery.await.unwrap() <= 40);
    }
    beats.await.unwrap();
    for number in 0..40 {
        let all = said(bed, &ada, &format!("s{number}")).await;
        assert_eq!(all, [format!("query t{number}"), "whole".to_owned()]);
    }
    if let Some(count) = bed.count("turns").await {
        assert_eq!(count, 0);
    }
}

async fn a_turn_is_asked_to_stop_wherever_it_runs(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    session(bed, &ada, "s1", 1).await;
    session(bed, &ada, "s2", 1).await;
    assert_eq!(bed.store.ask_to_stop(&ada, "s1", None).await.unwrap(), none());
    for name in ["t1", "t2"] {
        begin(bed, &ada, &turn("s1", name), 1).await;
    }
    begin(bed, &ada, &turn("s2", "t3"), 1).await;
    begin(bed, &ada, &NewTurn { replica: "r2".to_owned(), ..turn("s1", "t4") }, 1).await;
    assert_eq!(bed.store.ask_to_stop(&ada, "s1", Some("t3")).await.unwrap(), none(), "of another session");
    assert_eq!(bed.store.ask_to_stop(&ada, "s1", Some("t2")).await.unwrap(), ["t2"]);
    assert_eq!(bed.store.keep_turns("r1", &[], at(20)).await.unwrap(), ["t2"]);
    assert_eq!(bed.store.keep_turns("r1", &[], at(20)).await.unwrap(), ["t2"], "until it is finished");
    let mut asked = bed.store.ask_to_stop(&ada, "s1", None).await.unwrap();
    asked.sort();
    assert_eq!(asked, ["t1", "t2", "t4"]);
    assert_eq!(bed.store.keep_turns("r1", &[], at(20)).await.unwrap(), ["t1", "t2"]);
    assert_eq!(bed.store.keep_turns("r2", &[], at(20)).await.unwrap(), ["t4"]);
    // Who deletes a session wants no answers in it.
    bed.store.delete_session(&ada, "s2", at(3)).await.unwrap();
    assert_eq!(bed.store.keep_turns("r1", &[], at(20)).await.unwrap(), ["t1", "t2", "t3"]);
    let ending = TurnRef { id: "t3".to_owned(), session_id: "s2".to_owned() };
    bed.store.finish_turn(&ending, &ended("x"), at(4)).await.unwrap();
    assert!(!bed.store.turn_runs(&ada, "s2", "t3").await.unwrap());
}

async fn a_retry_makes_no_second_turn(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    session(bed, &ada, "s1", 1).await;
    let begin = |name: &'static str, retry: RetryKey| {
        let ada = ada.clone();
        async move { bed.store.begin_turn(&ada, &turn("s1", name), Some(&retry), at(2)).await.unwrap() }
    };
    let first = TurnRef { id: "t1".to_owned(), session_id: "s1".to_owned() };
    assert_eq!(begin("t1", retry(1, 1)).await, Once::Done(first.clone()));
    assert_eq!(begin("t2", retry(1, 1)).await, Once::Before(first.clone()));
    assert_eq!(begin("t2", retry(1, 2)).await, Once::Mismatch);
    bed.store.finish_turn(&first, &ended("answer"), at(3)).await.unwrap();
    assert_eq!(begin("t2", retry(1, 1)).await, Once::Before(first), "also when it is over");
    assert_eq!(said(bed, &ada, "s1").await, ["query t1", "answer"], "nothing was written");
    assert_eq!(bed.store.session(&ada, "s1").await.unwrap().updated_at, at(3));
    // Keys of one operation are not those of another.
    let other = bed.store.create_session(&ada, "s2", "t", Some(&retry(1, 1)), at(4)).await.unwrap();
    assert!(matches!(other, Once::Done(_)), "{other:?}");
}

async fn of_parallel_retries_of_a_turn_one_is_the_first(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    // Two sessions: the lock on one session decides nothing.
    session(bed, &ada, "s0", 1).await;
    session(bed, &ada, "s1", 1).await;
    let tries = (0..10).map(|number| {
        let (store, ada) = (Arc::clone(&bed.store), ada.clone());
        tokio::spawn(async move {
            let turn = turn(&format!("s{}", number % 2), &format!("t{number}"));
            store.begin_turn(&ada, &turn, Some(&retry(1, 1)), at(1)).await.unwrap()
        })
    });
    let all: Vec<_> = futures_util::future::join_all(tries).await.into_iter().map(Result::unwrap).collect();
    let done = all.iter().filter(|one| matches!(one, Once::Done(_))).count();
    assert_eq!(done, 1, "{all:?}");
    assert!(!all.contains(&Once::Mismatch));
    let questions = said(bed, &ada, "s0").await.len() + said(bed, &ada, "s1").await.len();
    assert_eq!(questions, 1);
}

async fn deleting_an_account_during_a_turn_resurrects_nothing(bed: &Bed) {
    let user = bed.user("ada").await;
    let ada = owner(&user);
    session(bed, &ada, "s1", 1).await;
    let begun = begin(bed, &ada, &turn("s1", "t1"), 1).await;
    bed.store.keep_turns("r1", &[piece("t1", 0, "on")], at(20)).await.unwrap();
    bed.store.delete_user(&user.id, at(2)).await.unwrap();
    let words = [piece("t1", 2, " and on")];
    assert_eq!(bed.store.keep_turns("r1", &words, at(20)).await.unwrap(), ["t1"], "nobody wants it any more");
    bed.store.finish_turn(&begun, &ended("answer"), at(3)).await.unwrap();
    assert_eq!(bed.store.recover_turns("r1", at(99)).await.unwrap(), 0);
    for table in ["users", "sessions", "messages", "turns", "turn_pieces"] {
        if let Some(count) = bed.count(table).await {
            assert_eq!(count, 0, "{table}");
        }
    }
}

async fn deleting_and_talking_at_once_leave_nothing(bed: &Bed) {
    for round in 0..4 {
        let user = bed.user(&format!("u{round}")).await;
        let ada = owner(&user);
        for number in 0..6 {
            session(bed, &ada, &format!("s{round}-{number}"), 1).await;
        }
        let talkers = (0..6).map(|number| {
            let (store, ada) = (Arc::clone(&bed.store), ada.clone());
            tokio::spawn(async move {
                for step in 0..6 {
                    let turn = turn(&format!("s{round}-{number}"), &format!("t{round}-{number}-{step}"));
                    match store.begin_turn(&ada, &turn, Some(&retry(number * 100 + step, 1)), at(1)).await {
                        Ok(Once::Done(begun)) => store.finish_turn(&begun, &ended("x"), at(2)).await.unwrap(),
                        Err(StoreError::NotFound) => return,
                        other => panic!("{other:?}"),
                    }
                    let id = format!("n{round}-{number}-{step}");
                    match store.create_session(&ada, &id, "t", None, at(3)).await {
                        Ok(_) | Err(StoreError::NotFound) => {}
                        other => panic!("{other:?}"),
                    }
                }
            })
        });
        let talkers: Vec<_> = talkers.collect();
        bed.store.delete_user(&user.id, at(4)).await.unwrap();
        for talker in talkers {
            talker.await.unwrap();
        }
        for table in ["users", "sessions", "messages", "turns", "retry_keys"] {
            if let Some(count) = bed.count(table).await {
                assert_eq!(count, 0, "{table}");
            }
        }
    }
}

/// What a busy replica says every second.
async fn a_thousand_turns_are_kept_at_once(bed: &Bed) {
    let ada = owner(&bed.user("ada").await);
    session(bed, &ada, "s1", 1).await;
    for number in 0..1000 {
        begin(bed, &ada, &turn("s1", &format!("t{number}")), 1).await;
    }
    let text = "word ".repeat(200);
    let words: Vec<_> =
        (0..1000).map(|number| piece(&format!("t{number}"), 0, &format!("{text}{number}"))).collect();
    let start = std::time::Instant::now();
    assert_eq!(bed.store.keep_turns("r1", &words, at(30)).await.unwrap(), none());
    let took = start.elapsed();
    assert!(took < secs(3), "{took:?}");
    assert_eq!(bed.store.recover_turns("r2", at(30)).await.unwrap(), 0);
    assert_eq!(bed.store.recover_turns("r2", at(31)).await.unwrap(), 1000);
    for number in [0, 499, 999] {
        let message = bed.store.message(&ada, "s1", &format!("t{number}")).await.unwrap();
        assert_eq!(message.content, format!("{text}{number}"));
    }
}

contract!(
    a_turn_is_a_question_and_an_answer,
    however_often_a_turn_is_finished_there_is_one_message,
    a_replica_keeps_its_turns_alive,
    pieces_of_an_answer_are_put_together,
    a_replica_that_starts_again_closes_what_it_left,
    who_finishes_late_is_right,
    finishing_and_recovering_at_once_leave_the_finisher_s_message,
    a_turn_is_asked_to_stop_wherever_it_runs,
    a_retry_makes_no_second_turn,
    of_parallel_retries_of_a_turn_one_is_the_first,
    deleting_an_account_during_a_turn_resurrects_nothing,
    deleting_and_talking_at_once_leave_nothing,
    a_thousand_turns_are_kept_at_once,
);
