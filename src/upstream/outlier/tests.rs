//! The outlier detector, as a model: time is an argument, and nobody sleeps.

use super::*;
use crate::upstream::spec::tests::spec;
use proptest::prelude::*;

fn rules(more: &str) -> OutlierSpec {
    let yaml = format!(
        "{{ targets: [{{ url: \"http://a\" }}, {{ url: \"http://b\" }}], outlier: {{ interval: 1s, eject_for: 10s, \
         max_eject_for: 25s, {more} }} }}"
    );
    spec(&yaml).outlier().unwrap().clone()
}

struct World {
    spec: OutlierSpec,
    servers: Vec<(Standing, Conduct)>,
    now: u64,
}

impl World {
    fn of(count: usize, more: &str) -> Self {
        let spec = rules(more);
        let servers = (0..count).map(|_| (Standing::default(), Conduct::new(&spec))).collect();
        World { spec, servers, now: 1000 }
    }

    fn answers(&self, server: usize, status: u16, millis: u64) -> bool {
        let took = Duration::from_millis(millis);
        let (standing, conduct) = &self.servers[server];
        conduct.note(standing, Outcome::Answered { status, took }, self.now)
    }

    fn fails(&self, server: usize, times: usize) {
        let (standing, conduct) = &self.servers[server];
        for _ in 0..times {
            conduct.note(standing, Outcome::Failed(Kind::UpstreamReset), self.now);
        }
    }

    fn sweep(&self) -> Vec<(usize, Event)> {
        let members: Vec<Member<'_>> =
            self.servers.iter().map(|(standing, conduct)| Member { standing, conduct }).collect();
        self.spec.sweep(&members, self.now)
    }

    fn is(&self, server: usize, bit: u8) -> bool {
        self.servers[server].0.has(bit)
    }
}

fn ejected(reason: Reason, seconds: u64) -> Event {
    Event::Ejected(reason, Duration::from_secs(seconds))
}

#[test]
fn failures_in_a_row_eject_at_once_and_trials_bring_back() {
    let mut world = World::of(3, "");
    world.fails(0, 4);
    assert!(world.sweep().is_empty());
    assert!(!world.answers(0, 200, 1), "one good answer, and it is no row");
    world.fails(0, 4);
    assert!(world.sweep().is_empty());
    assert!(world.answers(0, 503, 1), "the fifth wakes whoever decides");
    assert_eq!(world.sweep(), [(0, ejected(Reason::ConsecutiveFailures, 10))]);
    assert!(world.is(0, EJECTED) && world.sweep().is_empty());
    world.now += 9_999;
    assert!(world.sweep().is_empty());
    world.now += 1;
    assert_eq!(world.sweep(), [(0, Event::OnTrial)]);
    assert!(world.is(0, TRIAL) && !world.is(0, EJECTED));
    assert!(world.servers[0].0.claim(world.now));
    (0..9).for_each(|_| assert!(!world.answers(0, 200, 900)));
    assert!(world.sweep().is_empty(), "what had begun before the trial did says nothing of it");
    assert!(!world.servers[0].0.claim(world.now));
    for _ in 0..2 {
        assert!(world.answers(0, 200, 0));
        assert!(world.sweep().is_empty());
        assert!(world.servers[0].0.claim(world.now), "each answer makes room for the next");
    }
    assert!(world.answers(0, 404, 0));
    assert_eq!(world.sweep(), [(0, Event::Back)]);
    assert!(world.sweep().is_empty() && !world.is(0, TRIAL | EJECTED), "what was before is forgotten");
}

#[test]
fn who_fails_on_trial_rests_longer_each_time_until_it_is_forgiven() {
    let mut world = World::of(3, "");
    world.fails(0, 5);
    for seconds in [10, 20, 25, 25] {
        assert_eq!(world.sweep(), [(0, ejected(Reason::ConsecutiveFailures, seconds))]);
        world.now += seconds * 1000;
        assert_eq!(world.sweep(), [(0, Event::OnTrial)]);
        world.fails(0, 1);
    }
    world.sweep();
    world.now += 25_000;
    world.sweep();
    (0..3).for_each(|_| {
        world.answers(0, 200, 0);
    });
    assert_eq!(world.sweep(), [(0, Event::Back)]);
    assert_eq!(world.servers[0].1.ejections().1, 5);
    for left in [4, 3] {
        world.now += 10_000;
        assert!(world.sweep().is_empty());
        assert_eq!(world.servers[0].1.ejections().1, left);
    }
}

#[test]
fn what_is_nobodys_fault_does_not_count() {
    let world = World::of(2, "failure_ratio: 0.01, min_requests: 1");
    let (standing, conduct) = &world.servers[0];
    for status in [200, 404, 429, 499, 500, 501] {
        (0..9).for_each(|_| {
            world.answers(0, status, 1);
        });
    }
    for outcome in
        [Outcome::Abandoned, Outcome::Failed(Kind::UpstreamSaturated), Outcome::Failed(Kind::BadRequest)]
    {
        (0..9).for_each(|_| assert!(!conduct.note(standing, outcome, world.now)));
    }
    assert!(world.sweep().is_empty());
}

#[test]
fn a_share_of_failures_counts_while_it_is_recent() {
    let mut world = World::of(2, "");
    let half = |world: &World, times: usize| {
        for _ in 0..times {
            world.fails(0, 1);
            world.answers(0, 200, 1);
        }
    };
    half(&world, 9);
    assert!(world.sweep().is_empty(), "18 requests are too few");
    world.now += 1_000;
    half(&world, 9);
    assert!(world.sweep().is_empty(), "the others are too long ago");
    half(&world, 1);
    assert_eq!(world.sweep(), [(0, ejected(Reason::FailureRatio, 10))]);
}

#[test]
fn slow_answers_eject_by_their_share_and_on_trial_at_once() {
    let mut world = World::of(2, "slow_call: 1s, slow_factor: 0");
    for n in 0..40 {
        world.now += 10;
        world.answers(0, 200, if n % 2 == 0 { 1001 } else { 1000 });
        world.answers(1, 200, 1000);
    }
    assert_eq!(world.sweep(), [(0, ejected(Reason::Slow, 10))]);
    world.now += 10_000;
    assert_eq!(world.sweep(), [(0, Event::OnTrial)]);
    world.now += 2_000;
    world.answers(0, 200, 2_000);
    assert_eq!(world.sweep(), [(0, ejected(Reason::Slow, 20))]);
}

#[test]
fn who_is_much_slower_than_the_others_is_ejected() {
    let mut world = World::of(3, "");
    let round = |world: &mut World, slow: u64| {
        for _ in 0..30 {
            world.now += 10;
            [(0, slow), (1, 20), (2, 25)].into_iter().for_each(|(s, ms)| {
                world.answers(s, 200, ms);
            });
        }
        world.sweep()
    };
    assert!(round(&mut world, 90).is_empty(), "not by 100ms");
    world.now += 1_000;
    assert!(round(&mut world, 22).is_empty());
    assert_eq!(round(&mut world, 2_000), [(0, ejected(Reason::Slow, 10))]);
    world.now += 10_000;
    assert!(round(&mut world, 0).contains(&(0, Event::OnTrial)));
    world.now += 2_000;
    world.answers(0, 200, 2_000);
    assert_eq!(world.sweep(), [(0, ejected(Reason::Slow, 20))], "it is still slow");
}

#[test]
fn an_answer_that_is_slow_now_and_then_is_chance() {
    let mut world = World::of(3, "");
    // One in ten takes 2 s, everywhere; the first server has the luck to get all of its own at once.
    for n in 0..60 {
        world.now += 10;
        world.answers(0, 200, if n < 6 { 2_000 } else { 5 });
        for other in [1, 2] {
            world.answers(other, 200, if n % 10 == 0 { 2_000 } else { 5 });
        }
        assert!(world.sweep().is_empty(), "after {n}");
    }
}

#[test]
fn the_ceiling_holds_and_the_last_one_stays() {
    let world = World::of(5, "max_ejected: 50%");
    (0..5).for_each(|server| world.fails(server, 5));
    assert_eq!(world.sweep().len(), 3, "half of five, rounded up");
    let world = World::of(4, "max_ejected: 100%");
    world.servers[0].0.set(DOWN, true);
    (1..4).for_each(|server| world.fails(server, 5));
    assert_eq!(world.sweep().len(), 2, "one that is up stays");
    let world = World::of(1, "max_ejected: 100%");
    world.fails(0, 50);
    assert!(world.sweep().is_empty(), "never the only one");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens: no more than the ceiling are out, somebody always takes requests, nobody rests longer than
    /// allowed, and once all answer well everybody is back.
    #[test]
    fn ejections_are_bounded_and_end(
        count in 2usize..7,
        share in 1u32..=100,
        steps in prop::collection::vec((0usize..7, 0u8..4, 1u64..800), 1..400),
    ) {
        let mut world = World::of(count, &format!("max_ejected: {share}%, min_requests: 3, slow_call: 500ms"));
        let ceiling = world.spec.ceiling(count);
        let step = |world: &World| {
            let events = world.sweep();
            let out = (0..count).filter(|server| world.is(*server, EJECTED | TRIAL)).count();
            let long = events.iter().any(|(_, event)| matches!(event, Event::Ejected(_, rest) if *rest > Duration::from_secs(25)));
            (out <= ceiling && out < count, !long)
        };
        for (server, what, passed) in steps {
            let server = server % count;
            world.now += passed;
            match what {
                0 => world.fails(server, 3),
                1 => { world.answers(server, 504, 1); }
                2 => { world.answers(server, 200, 700); }
                _ => { world.answers(server, 200, 1); }
            }
            prop_assert_eq!(step(&world), (true, true));
        }
        for _ in 0..40 {
            world.now += 1_000;
            for server in 0..count {
                (0..20).for_each(|_| { world.answers(server, 200, 0); });
            }
            step(&world);
        }
        prop_assert!((0..count).all(|server| !world.is(server, EJECTED | TRIAL)));
    }
}
