use super::*;
use proptest::prelude::*;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

const GOOD: Outcome = Outcome::Answered { status: 200, took: Duration::from_millis(5) };
const BAD: Outcome = Outcome::Failed(Kind::UpstreamReset);
const SLOW: Outcome = Outcome::Answered { status: 200, took: Duration::from_secs(3) };

fn spec() -> BreakerSpec {
    BreakerSpec {
        window: Duration::from_secs(10),
        min_requests: 4,
        failure_ratio: 0.5,
        slow_call: Some(Duration::from_secs(2)),
        slow_ratio: 0.75,
        open_for: Duration::from_secs(5),
    }
}

fn breaker() -> Arc<Breaker> {
    Breaker::new(spec(), Changed(Arc::new(|_, _| {})))
}

fn send(breaker: &Arc<Breaker>, now: u64, outcome: Outcome) -> bool {
    breaker.admit(now).map(|passage| passage.tell(outcome, now)).is_ok()
}

#[test]
fn it_opens_by_share_and_not_before_there_are_enough() {
    let breaker = breaker();
    for _ in 0..3 {
        assert!(send(&breaker, 0, BAD));
    }
    assert_eq!(breaker.circuit(), Circuit::Closed, "three are not enough");
    assert!(send(&breaker, 0, GOOD));
    assert_eq!(breaker.circuit(), Circuit::Closed, "a good outcome opens nothing");
    assert!(send(&breaker, 0, BAD));
    assert_eq!(breaker.circuit(), Circuit::Open);
    assert_eq!(breaker.admit(1000).unwrap_err(), Refused(4000));
}

#[test]
fn slowness_opens_it_too() {
    let breaker = breaker();
    [GOOD, SLOW, SLOW, SLOW].into_iter().for_each(|outcome| assert!(send(&breaker, 0, outcome)));
    assert_eq!(breaker.circuit(), Circuit::Open);
}

#[test]
fn what_callers_do_is_not_counted() {
    let breaker = breaker();
    let client_faults = Outcome::Answered { status: 404, took: Duration::ZERO };
    for _ in 0..20 {
        assert!(send(&breaker, 0, client_faults));
        assert!(send(&breaker, 0, Outcome::Abandoned));
        assert!(send(&breaker, 0, Outcome::Failed(Kind::UpstreamSaturated)));
        drop(breaker.admit(0).unwrap());
    }
    assert_eq!(breaker.circuit(), Circuit::Closed);
    assert_eq!(breaker.counts(0), Counts([20, 0, 0]));
}

#[test]
fn a_good_probe_closes_it_and_a_bad_one_opens_it_again() {
    let breaker = breaker();
    (0..4).for_each(|_| assert!(send(&breaker, 0, BAD)));
    assert!(!send(&breaker, 4999, GOOD));
    let probe = breaker.admit(5000).unwrap();
    assert_eq!(breaker.circuit(), Circuit::HalfOpen);
    assert!(breaker.admit(5000).is_err(), "one at a time");
    probe.tell(BAD, 5100);
    assert_eq!(breaker.admit(5100).unwrap_err(), Refused(5000));
    breaker.admit(10_100).unwrap().tell(SLOW, 10_200);
    assert_eq!(breaker.circuit(), Circuit::Open, "slow is not well");
    breaker.admit(15_200).unwrap().tell(GOOD, 15_201);
    assert_eq!(breaker.circuit(), Circuit::Closed);
    assert_eq!(breaker.counts(15_201), Counts::default(), "it begins anew");
}

#[test]
fn a_probe_whose_caller_left_gives_its_place_back() {
    let breaker = breaker();
    (0..4).for_each(|_| assert!(send(&breaker, 0, BAD)));
    drop(breaker.admit(5000).unwrap());
    assert_eq!(breaker.circuit(), Circuit::Open);
    assert!(send(&breaker, 5000, GOOD), "the next is the probe");
    assert_eq!(breaker.circuit(), Circuit::Closed);
}

#[test]
fn what_was_let_through_before_it_opened_decides_nothing_behind_it() {
    let breaker = breaker();
    let late: Vec<_> = (0..10).map(|_| breaker.admit(0).unwrap()).collect();
    (0..4).for_each(|_| assert!(send(&breaker, 0, BAD)));
    let probe = breaker.admit(5000).unwrap();
    late.into_iter().for_each(|passage| passage.tell(GOOD, 5001));
    assert_eq!(breaker.circuit(), Circuit::HalfOpen);
    probe.tell(GOOD, 5002);
    assert_eq!(breaker.circuit(), Circuit::Closed);
}

#[test]
fn an_old_probe_does_not_decide_for_a_new_one() {
    let breaker = breaker();
    (0..4).for_each(|_| assert!(send(&breaker, 0, BAD)));
    let old = breaker.admit(5000).unwrap();
    breaker.reset();
    (0..4).for_each(|_| assert!(send(&breaker, 6000, BAD)));
    let new = breaker.admit(11_000).unwrap();
    old.tell(GOOD, 11_001);
    assert_eq!(breaker.circuit(), Circuit::HalfOpen);
    new.tell(GOOD, 11_002);
    assert_eq!(breaker.circuit(), Circuit::Closed);
}

#[test]
fn of_many_threads_one_is_the_probe() {
    let breaker = breaker();
    for round in 0..200u64 {
        let opened = round * 100_000;
        while breaker.circuit() == Circuit::Closed {
            assert!(send(&breaker, opened, BAD));
        }
        let passed = AtomicUsize::new(0);
        let kept: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let passage = breaker.admit(opened + 5000).ok();
                        passed.fetch_add(usize::from(passage.is_some()), SeqCst);
                        passage
                    })
                })
                .collect();
            threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(passed.load(SeqCst), 1);
        kept.into_iter().for_each(|passage| passage.tell(GOOD, opened + 5001));
    }
}

/// The rules, written down once more without words of memory: a list of outcomes, and three states.
struct Model {
    outcomes: Vec<(u64, bool, bool)>,
    state: Modelled,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Modelled {
    Closed,
    Open(u64),
    Probing(usize),
}

impl Model {
    fn admits(&mut self, now: u64, id: usize) -> bool {
        match self.state {
            Modelled::Closed => true,
            Modelled::Open(until) if now >= until => {
                self.state = Modelled::Probing(id);
                true
            }
            Modelled::Open(_) | Modelled::Probing(_) => false,
        }
    }

    fn ends(&mut self, now: u64, id: usize, outcome: Option<(bool, bool)>) {
        match (self.state, outcome) {
            (Modelled::Probing(probe), outcome) if probe == id => {
                self.outcomes.clear();
                self.state = match outcome {
                    None => Modelled::Open(0),
                    Some((false, false)) => Modelled::Closed,
                    Some(_) => Modelled::Open(now + 5000),
                };
            }
            (Modelled::Closed, Some((failed, slow))) => {
                self.outcomes.push((now, failed, slow));
                let newest = now / 1000;
                self.outcomes.retain(|(at, ..)| newest - at / 1000 < 10);
                let all = self.outcomes.len();
                let share = |bad: fn(&(u64, bool, bool)) -> bool| {
                    self.outcomes.iter().filter(|outcome| bad(outcome)).count() as f64 / all as f64
                };
                let trips = share(|outcome| outcome.1) >= 0.5 || share(|outcome| outcome.2) >= 0.75;
                if (failed || slow) && all >= 4 && trips {
                    self.outcomes.clear();
                    self.state = Modelled::Open(now + 5000);
                }
            }
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn it_does_what_the_rules_say(steps in proptest::collection::vec((0u64..3000, 0usize..8, 0u8..6), 1..300)) {
        let breaker = breaker();
        let mut model = Model { outcomes: Vec::new(), state: Modelled::Closed };
        let mut under_way: Vec<(usize, Passage)> = Vec::new();
        let mut now = 0;
        for (id, (wait, which, action)) in steps.into_iter().enumerate() {
            now += wait;
            if action < 3 {
                let passage = breaker.admit(now);
                prop_assert_eq!(passage.is_ok(), model.admits(now, id));
                under_way.extend(passage.ok().map(|passage| (id, passage)));
            } else if !under_way.is_empty() {
                let (id, passage) = under_way.swap_remove(which % under_way.len());
                match action {
                    3 => { passage.tell(GOOD, now); model.ends(now, id, Some((false, false))); }
                    4 => { passage.tell(BAD, now); model.ends(now, id, Some((true, false))); }
                    _ if which % 2 == 0 => { passage.tell(SLOW, now); model.ends(now, id, Some((false, true))); }
                    _ => { drop(passage); model.ends(now, id, None); }
                }
            }
            let circuit = match model.state {
                Modelled::Closed => Circuit::Closed,
                Modelled::Open(_) => Circuit::Open,
                Modelled::Probing(_) => Circuit::HalfOpen,
            };
            prop_assert_eq!(breaker.circuit(), circuit);
        }
    }
}
