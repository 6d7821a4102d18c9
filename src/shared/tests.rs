//! One contract over every backend, and what happens when Redis goes away.

use super::testing::{RedisServer, free_port};
use super::*;
use std::sync::Mutex;
use std::time::Instant;
use tokio::time::sleep;

const LIMITS: SharedLimits = SharedLimits { timeout: Duration::from_millis(50), keys: 10_000 };

/// A backend and its clock: memory is told the time, Redis has its own and must be waited for.
struct Case {
    shared: AnyShared,
    /// Memory's time.
    now: Option<Mutex<SystemTime>>,
    _server: Option<RedisServer>,
}

impl Case {
    fn memory() -> Self {
        let now = Some(Mutex::new(SystemTime::now()));
        Case { shared: Arc::new(Memory::new()), now, _server: None }
    }

    async fn redis() -> Self {
        let server = RedisServer::start();
        let redis = Redis::open(&server.url(), LIMITS.timeout).unwrap();
        assert!(redis.connected(Duration::from_secs(10)).await);
        Case { shared: Arc::new(redis), now: None, _server: Some(server) }
    }

    /// A Cluster of one server that has every slot.
    async fn cluster() -> Self {
        // A Cluster of one server, which has no slots yet.
        let port = free_port().to_string();
        let server = RedisServer::start_with(&["--cluster-enabled", "yes", "--cluster-port", &port]);
        let client = ::redis::Client::open(server.url()).unwrap();
        eventually("it has its slots", async || {
            let Ok(mut raw) = client.get_multiplexed_async_connection().await else { return false };
            let mut add = ::redis::cmd("CLUSTER");
            let _: Result<(), _> = add.arg("ADDSLOTSRANGE").arg(0).arg(16383).query_async(&mut raw).await;
            let info: Result<String, _> = ::redis::cmd("CLUSTER").arg("INFO").query_async(&mut raw).await;
            info.is_ok_and(|info| info.contains("cluster_state:ok"))
        })
        .await;
        let redis =
            Redis::open(&server.url().replace("redis://", "redis-cluster://"), LIMITS.timeout).unwrap();
        assert!(redis.connected(Duration::from_secs(10)).await);
        Case { shared: Arc::new(redis), now: None, _server: Some(server) }
    }

    fn now(&self) -> SystemTime {
        self.now.as_ref().map_or_else(SystemTime::now, |now| *now.lock().unwrap())
    }

    async fn advance(&self, by: Duration) {
        match &self.now {
            Some(now) => *now.lock().unwrap() += by,
            None => sleep(by).await,
        }
    }

    async fn hit(&self, key: &str, limit: Limit) -> Decision {
        self.shared.hit(key, limit, self.now()).await.unwrap()
    }
}

/// Runs a contract over every backend.
macro_rules! contracts {
    ($($name:ident;)*) => {
        mod memory_contract {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Case::memory()).await;
            })*
        }

        mod redis_contract {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Case::redis().await).await;
            })*
        }

        mod cluster_contract {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Case::cluster().await).await;
            })*
        }
    };
}

contracts! {
    a_limit_is_exact;
    windows_slide;
    keys_do_not_meet;
    together_no_more_than_the_limit;
    slots_are_taken_and_given_back;
    slots_run_out;
    word_reaches_every_subscriber;
    events_are_read_after_a_number;
    an_append_can_be_repeated;
    a_log_ends_unless_it_is_renewed;
    a_log_keeps_its_newest_events;
    a_note_is_taken_once;
    a_note_runs_out;
}

const SECONDS: fn(u64) -> Duration = Duration::from_secs;
const MILLIS: fn(u64) -> Duration = Duration::from_millis;

async fn a_limit_is_exact(case: Case) {
    let limit = Limit { limit: 5, per: SECONDS(60) };
    for left in (0..5).rev() {
        let decision = case.hit("k", limit).await;
        assert!(decision.allowed);
        assert_eq!((decision.remaining, decision.retry_after), (left, Duration::ZERO));
        assert!(decision.reset_after <= SECONDS(60) && decision.reset_after > SECONDS(50));
    }
    let rejected = case.hit("k", limit).await;
    assert!(!rejected.allowed);
    assert_eq!(rejected.remaining, 0);
    // To the next window, and until a fifth of this one has slid out of that.
    assert!(rejected.retry_after > SECONDS(60) && rejected.retry_after <= SECONDS(72), "{rejected:?}");
    assert!(rejected.reset_after >= rejected.retry_after);
}

async fn windows_slide(case: Case) {
    let limit = Limit { limit: 4, per: MILLIS(600) };
    for _ in 0..4 {
        assert!(case.hit("k", limit).await.allowed);
    }
    let rejected = case.hit("k", limit).await;
    assert!(!rejected.allowed);
    case.advance(rejected.retry_after).await;
    assert!(case.hit("k", limit).await.allowed, "the wait it named is enough");
    case.advance(MILLIS(1300)).await;
    assert_eq!(case.hit("k", limit).await.remaining, 3, "nothing of two windows ago counts");
}

async fn keys_do_not_meet(case: Case) {
    let limit = Limit { limit: 1, per: SECONDS(60) };
    for key in ["a", "b", "a b", "{a}", "a}", "", "ключ", &"long".repeat(1000)] {
        assert!(case.hit(key, limit).await.allowed, "{key}");
        assert!(!case.hit(key, limit).await.allowed, "{key}");
    }
}

async fn together_no_more_than_the_limit(case: Case) {
    let limit = Limit { limit: 100, per: SECONDS(60) };
    let case = Arc::new(case);
    let tasks = (0..300).map(|_| {
        let case = case.clone();
        tokio::spawn(async move { case.hit("k", limit).await.allowed })
    });
    let passed =
        futures_util::future::join_all(tasks).await.into_iter().filter(|passed| *passed.as_ref().unwrap());
    assert_eq!(passed.count(), 100);
}

async fn slots_are_taken_and_given_back(case: Case) {
    let take = async || case.shared.acquire("k", 2, SECONDS(60), case.now()).await.unwrap();
    let (first, second) = (take().await.unwrap(), take().await.unwrap());
    assert_ne!(first.holder, second.holder);
    assert_eq!(take().await, None);
    assert!(case.shared.acquire("other", 2, SECONDS(60), case.now()).await.unwrap().is_some());
    case.shared.release(&first).await.unwrap();
    let third = take().await.unwrap();
    assert_eq!(take().await, None);
    assert!(case.shared.renew(&third, SECONDS(60), case.now()).await.unwrap());
    assert!(!case.shared.renew(&first, SECONDS(60), case.now()).await.unwrap(), "it was given back");
    case.shared.release(&first).await.unwrap();
    assert_eq!(take().await, None, "giving back twice frees nothing");
}

async fn slots_run_out(case: Case) {
    let take = async || case.shared.acquire("k", 1, MILLIS(400), case.now()).await.unwrap();
    let lease = take().await.unwrap();
    case.advance(MILLIS(250)).await;
    assert!(case.shared.renew(&lease, MILLIS(400), case.now()).await.unwrap());
    case.advance(MILLIS(250)).await;
    assert_eq!(take().await, None, "it was renewed");
    case.advance(MILLIS(450)).await;
    assert!(take().await.is_some(), "its holder died");
    assert!(!case.shared.renew(&lease, MILLIS(400), case.now()).await.unwrap());
}

async fn word_reaches_every_subscriber(case: Case) {
    let (mut one, mut two) = (case.shared.subscribe("c"), case.shared.subscribe("c"));
    let mut other = case.shared.subscribe("d");
    // A subscription takes a moment to reach a server.
    let mut number = 0;
    let first = loop {
        number += 1;
        case.shared.publish("c", &number.to_string()).await.unwrap();
        if let Ok(heard) = tokio::time::timeout(MILLIS(50), one.recv()).await {
            break heard.unwrap();
        }
        assert!(number < 200, "nothing is heard");
    };
    assert_eq!(two.recv().await.unwrap(), first);
    assert!(other.try_recv().is_err());
}

fn event(number: u64) -> (u64, Bytes) {
    (number, Bytes::from(format!("event {number}")))
}

async fn events_are_read_after_a_number(case: Case) {
    let read = async |log: &str, after, limit| case.shared.read_events(log, after, limit).await.unwrap();
    assert_eq!(read("a", 0, 10).await, []);
    let append = async |log: &str, events: &[(u64, Bytes)]| {
        case.shared.append_events(log, events, SECONDS(60)).await.unwrap();
    };
    append("a", &[event(1), event(2)]).await;
    append("a", &[event(5)]).await;
    append("{a}", &[event(9)]).await;
    assert_eq!(read("a", 0, 10).await, [event(1), event(2), event(5)]);
    assert_eq!(read("a", 0, 2).await, [event(1), event(2)]);
    assert_eq!(read("a", 2, 10).await, [event(5)]);
    assert_eq!(read("a", 3, 10).await, [event(5)], "a number that there is no event of");
    for after in [5, 6, u64::MAX] {
        assert_eq!(read("a", after, 10).await, []);
    }
    assert_eq!(read("a", 0, 0).await, []);
    assert_eq!(read("{a}", 0, 10).await, [event(9)]);
    // Any bytes, and numbers that a double cannot tell apart.
    let far = u64::MAX - 1;
    let odd: Vec<_> =
        [&b""[..], b"\0\r\n", b"\xff\xfe", "\u{6587}".as_bytes()].map(Bytes::from_static).into();
    let odd: Vec<_> = (far - 3..=far).zip(odd).collect();
    append("a", &odd).await;
    assert_eq!(read("a", 5, 10).await, odd);
    assert_eq!(read("a", far - 1, 10).await, odd[3..]);
}

async fn an_append_can_be_repeated(case: Case) {
    let append = async |events: &[(u64, Bytes)]| {
        case.shared.append_events("a", events, SECONDS(60)).await.unwrap();
    };
    append(&[event(9), event(10)]).await;
    append(&[event(9), event(10), event(11)]).await;
    append(&[(11, Bytes::from_static(b"another")), event(0), event(3), event(100)]).await;
    let read = case.shared.read_events("a", 0, 10).await.unwrap();
    assert_eq!(read, [event(9), event(10), event(11), event(100)]);
}

async fn a_log_ends_unless_it_is_renewed(case: Case) {
    let append = async |events: &[(u64, Bytes)]| {
        case.shared.append_events("a", events, MILLIS(600)).await.unwrap();
    };
    let count = async || case.shared.read_events("a", 0, 10).await.unwrap().len();
    append(&[]).await;
    assert_eq!(count().await, 0);
    append(&[event(7)]).await;
    for renewal in [&[event(8)][..], &[], &[event(8)]] {
        // Logs go by the real clock everywhere.
        sleep(MILLIS(350)).await;
        assert!(count().await > 0);
        append(renewal).await;
    }
    sleep(MILLIS(650)).await;
    assert_eq!(count().await, 0);
    append(&[event(1)]).await;
    assert_eq!(count().await, 1, "it begins anew");
}

async fn a_log_keeps_its_newest_events(case: Case) {
    let events = MAX_EVENTS as u64 + 500;
    for begin in (1..=events).step_by(250) {
        let some: Vec<_> = (begin..=events).take(250).map(event).collect();
        case.shared.append_events("a", &some, SECONDS(60)).await.unwrap();
    }
    let first = case.shared.read_events("a", 0, 1).await.unwrap()[0].0;
    assert!((400..=501).contains(&first), "{first}");
    assert_eq!(
        case.shared.read_events("a", events - 2, 9).await.unwrap(),
        [event(events - 1), event(events)]
    );
}

async fn a_note_is_taken_once(case: Case) {
    let bytes = b"\0\r\n\xff any bytes";
    case.shared.leave_note("a", bytes, SECONDS(60)).await.unwrap();
    case.shared.leave_note("b", b"", SECONDS(60)).await.unwrap();
    let case = Arc::new(case);
    let takers = (0..50).map(|_| {
        let case = case.clone();
        tokio::spawn(async move { case.shared.take_note("a").await.unwrap() })
    });
    let takers = futures_util::future::join_all(takers).await;
    let taken: Vec<_> = takers.into_iter().filter_map(|taken| taken.unwrap()).collect();
    assert_eq!(taken, [Bytes::from_static(bytes)]);
    assert_eq!(case.shared.take_note("a").await.unwrap(), None);
    assert_eq!(case.shared.take_note("b").await.unwrap().as_deref(), Some(&b""[..]));
    assert_eq!(case.shared.take_note("none").await.unwrap(), None);
}

async fn a_note_runs_out(case: Case) {
    case.shared.leave_note("a", b"1", MILLIS(300)).await.unwrap();
    case.shared.leave_note("b", b"2", MILLIS(300)).await.unwrap();
    assert!(case.shared.take_note("a").await.unwrap().is_some());
    // Notes go by the real clock everywhere.
    sleep(MILLIS(350)).await;
    assert_eq!(case.shared.take_note("b").await.unwrap(), None);
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SECONDS(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "in vain: {what}");
        sleep(MILLIS(10)).await;
    }
}

#[tokio::test]
async fn what_a_url_stands_for() {
    assert_eq!(open(None, &LIMITS).await.unwrap().backend(), "memory");
    assert!(matches!(open(Some("hush"), &LIMITS).await, Err(SharedError::Url)));
    let begun = Instant::now();
    let away = open(Some("redis://:hush@127.0.0.1:1"), &LIMITS).await.unwrap();
    assert_eq!(away.backend(), "redis");
    assert!(begun.elapsed() < SECONDS(2), "a Redis that is away does not hold up the start");
    let Err(error) = away.ping().await else { panic!("there is none") };
    assert!(!error.to_string().contains("hush"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_count_as_one() {
    let server = RedisServer::start();
    let limit = Limit { limit: 100, per: SECONDS(60) };
    let mut tasks = Vec::new();
    for _ in 0..2 {
        let replica = open(Some(&server.url()), &LIMITS).await.unwrap();
        eventually("Redis is there", async || replica.ping().await.is_ok()).await;
        for _ in 0..150 {
            let replica = replica.clone();
            tasks.push(tokio::spawn(async move { replica.hit("k", limit, SystemTime::now()).await }));
        }
    }
    let mut passed = 0;
    for task in tasks {
        passed += u32::from(task.await.unwrap().unwrap().allowed);
    }
    assert_eq!(passed, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_for_a_rejected_request_and_everything_expires() {
    let server = RedisServer::start();
    let case = Redis::open(&server.url(), LIMITS.timeout).unwrap();
    assert!(case.connected(SECONDS(10)).await);
    let client = ::redis::Client::open(server.url()).unwrap();
    let mut raw = client.get_multiplexed_async_connection().await.unwrap();
    let limit = Limit { limit: 1, per: SECONDS(60) };
    let _ = case.hit("k", limit, SystemTime::now()).await.unwrap();
    let _ = case.acquire("k", 1, SECONDS(30), SystemTime::now()).await.unwrap();
    case.append_events("k", &[event(1)], SECONDS(20)).await.unwrap();
    case.leave_note("k", b"1", SECONDS(10)).await.unwrap();
    let dirty = async |raw: &mut ::redis::aio::MultiplexedConnection| -> u64 {
        let info: String = ::redis::cmd("INFO").arg("persistence").query_async(raw).await.unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("rdb_changes_since_last_save:"));
        line.unwrap().parse().unwrap()
    };
    let before = dirty(&mut raw).await;
    for _ in 0..10 {
        assert!(!case.hit("k", limit, SystemTime::now()).await.unwrap().allowed);
        assert!(case.acquire("k", 1, SECONDS(30), SystemTime::now()).await.unwrap().is_none());
    }
    assert_eq!(dirty(&mut raw).await, before);
    let kept = [
        ("voicegate:limit:{k}", 120_000),
        ("voicegate:lease:{k}", 30_000),
        ("voicegate:log:{k}", 20_000),
        ("voicegate:note:{k}", 10_000),
    ];
    for (key, most) in kept {
        let left: i64 = ::redis::cmd("PTTL").arg(key).query_async(&mut raw).await.unwrap();
        assert!(left > 0 && left <= most, "{key}: {left}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_costs_one_deadline_and_comes_back_exact() {
    let server = RedisServer::start();
    let shared = open(Some(&server.url()), &LIMITS).await.unwrap();
    eventually("Redis is there", async || shared.ping().await.is_ok()).await;
    let limit = Limit { limit: 10, per: SECONDS(600) };
    let hit = async |key: &str| shared.hit(key, limit, SystemTime::now()).await.unwrap().allowed;
    for _ in 0..4 {
        assert!(hit("k").await);
    }
    server.signal("STOP");
    let begun = Instant::now();
    let mut passed = 0;
    for _ in 0..200 {
        passed += u32::from(hit("k").await);
    }
    assert_eq!(passed, 10, "counted here");
    // One call waited for its deadline; each waiting would take ten seconds.
    assert!(begun.elapsed() < SECONDS(1), "{:?}", begun.elapsed());
    let mut logins = 0;
    for _ in 0..50 {
        let now = SystemTime::now();
        logins += u32::from(shared.hit_strictly("login", limit, now).await.unwrap().allowed);
    }
    assert_eq!(logins, 5, "half as many where credentials are guarded");
    let lease = shared.acquire("slots", 1, SECONDS(60), SystemTime::now()).await.unwrap().unwrap();
    assert!(shared.acquire("slots", 1, SECONDS(60), SystemTime::now()).await.unwrap().is_none());
    assert!(shared.publish("c", "m").await.is_err());
    // A log that only this replica knew would be of no use to another.
    let begun = Instant::now();
    for _ in 0..50 {
        let appended = shared.append_events("log", &[event(1)], SECONDS(60)).await;
        assert!(matches!(appended, Err(SharedError::Unavailable(_))));
        assert!(shared.read_events("log", 0, 10).await.is_err());
    }
    // Nor would a note.
    assert!(shared.leave_note("n", b"1", SECONDS(60)).await.is_err());
    assert!(shared.take_note("n").await.is_err());
    assert!(begun.elapsed() < SECONDS(1), "{:?}", begun.elapsed());
    server.signal("CONT");
    // The key is spent here and not in Redis: who lets it pass is Redis.
    eventually("Redis decides again", async || hit("k").await).await;
    let mut rest = 0;
    for _ in 0..20 {
        rest += u32::from(hit("k").await);
    }
    // Four before, one that was sent while it hung and counted when it woke, one that told us; none twice.
    assert!((4..=5).contains(&rest), "{rest}");
    assert!(
        shared.renew(&lease, SECONDS(60), SystemTime::now()).await.unwrap(),
        "a slot taken here stays here"
    );
    shared.release(&lease).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_deadline_is_the_one_that_was_set() {
    let server = RedisServer::start();
    let shared = Redis::open(&server.url(), MILLIS(300)).unwrap();
    assert!(shared.connected(SECONDS(10)).await);
    server.signal("STOP");
    let begun = Instant::now();
    let limit = Limit { limit: 10, per: SECONDS(600) };
    let Err(error) = shared.hit("k", limit, SystemTime::now()).await else { panic!("it hangs") };
    assert!((MILLIS(300)..SECONDS(1)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert!(error.to_string().contains("within 300 ms"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_was_killed_is_found_again() {
    let mut server = RedisServer::start();
    let shared = open(Some(&server.url()), &LIMITS).await.unwrap();
    eventually("Redis is there", async || shared.ping().await.is_ok()).await;
    let mut heard = shared.subscribe("c");
    eventually("word comes", async || {
        let _ = shared.publish("c", "before").await;
        tokio::time::timeout(MILLIS(50), heard.recv()).await.is_ok()
    })
    .await;
    server.kill();
    let limit = Limit { limit: 10, per: SECONDS(600) };
    let begun = Instant::now();
    for _ in 0..10 {
        assert!(shared.hit("k", limit, SystemTime::now()).await.unwrap().allowed);
    }
    assert!(!shared.hit("k", limit, SystemTime::now()).await.unwrap().allowed);
    assert!(begun.elapsed() < SECONDS(1));
    server.restart();
    // The scripts are gone from the server as well.
    eventually("Redis decides again", async || {
        shared.hit("k", limit, SystemTime::now()).await.unwrap().allowed
    })
    .await;
    eventually("word comes again", async || {
        let _ = shared.publish("c", "after").await;
        let heard = tokio::time::timeout(MILLIS(50), heard.recv()).await;
        matches!(heard, Ok(Ok(text)) if text == "after")
    })
    .await;
}
