//! The choice of servers, as a model: time and dice are arguments.

use super::*;
use crate::upstream::spec::HashBy;
use crate::upstream::standing::WARMING;
use proptest::prelude::*;
use std::cell::Cell;

struct World {
    standing: Vec<Standing>,
    in_flight: Vec<usize>,
}

impl World {
    fn of(count: usize) -> Self {
        World { standing: (0..count).map(|_| Standing::default()).collect(), in_flight: vec![0; count] }
    }

    fn set(&self, server: usize, bits: u8) {
        self.standing[server].set(bits, true);
    }
}

impl Servers for World {
    fn standing(&self, server: usize) -> &Standing {
        &self.standing[server]
    }
    fn in_flight(&self, server: usize) -> usize {
        self.in_flight[server]
    }
}

/// Uniform and the same in every run (splitmix64).
fn dice() -> impl FnMut() -> u64 {
    let state = Cell::new(7u64);
    move || {
        state.set(state.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        mix(state.get())
    }
}

const BY_USER: Choice = Choice::Hash(HashBy::User);
const RULES: Rules = Rules { slow_start: 30_000, panic_threshold: 0.5 };
const ALL: [Choice; 4] = [Choice::RoundRobin, Choice::Random, Choice::LeastRequest, BY_USER];

fn balancer(choice: &Choice, weights: &[u64]) -> Balancer {
    with(choice, weights, RULES)
}

fn with(choice: &Choice, weights: &[u64], rules: Rules) -> Balancer {
    let place = |(server, weight): (usize, &u64)| Place {
        weight: *weight,
        seed: hash(format!("10.0.0.{server}:80").as_bytes()),
    };
    Balancer::new(choice.clone(), weights.iter().enumerate().map(place).collect(), rules)
}

/// How many of so many requests each gets, with a key of its own for each request.
fn shares_at(balancer: &Balancer, world: &World, rounds: usize, now: u64) -> Vec<usize> {
    let mut dice = dice();
    let mut counts = vec![0; world.standing.len()];
    for round in 0..rounds {
        let wish = Wish { key: Some(hash(&round.to_be_bytes())), avoid: &[] };
        counts[balancer.pick(world, &wish, || now, &mut dice).unwrap()] += 1;
    }
    counts
}

fn shares(balancer: &Balancer, world: &World, rounds: usize) -> Vec<usize> {
    shares_at(balancer, world, rounds, 0)
}

fn homes(balancer: &Balancer, world: &World, keys: u64) -> Vec<usize> {
    let home = |key: u64| {
        let wish = Wish { key: Some(hash(&key.to_be_bytes())), avoid: &[] };
        balancer.pick(world, &wish, || 0, || 0).unwrap()
    };
    (0..keys).map(home).collect()
}

#[test]
fn turns_are_smooth_and_exact() {
    assert_eq!(&*turns(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
    assert_eq!(&*turns(&[10, 0, 20]), [2, 0, 2]);
    assert_eq!(shares(&balancer(&Choice::RoundRobin, &[3, 1, 0]), &World::of(3), 400), [300, 100, 0]);
    assert!(turns(&[u64::from(u32::MAX), 1]).len() <= MAX_TURNS as usize + 1);
    assert!(turns(&[u64::from(u32::MAX), 1]).contains(&1));
}

#[test]
fn whoever_has_all_the_turns_of_one_does_not_keep_others_from_it() {
    let balancer = balancer(&Choice::RoundRobin, &[1, 1, 1]);
    // Between any two turns of this thread, others have two.
    let weight = |server: usize| {
        balancer.next.fetch_add(2, Ordering::Relaxed);
        if server == 2 { WHOLE } else { 0 }
    };
    assert_eq!(balancer.in_turn(&weight, &mut || 0), Some(2));
}

#[test]
fn who_is_out_is_passed_over_and_the_others_share_alike() {
    for choice in ALL {
        for bit in [DOWN, EJECTED, DRAINED] {
            let world = World::of(3);
            world.set(1, bit);
            let counts = shares(&balancer(&choice, &[1, 1, 1]), &world, 3000);
            assert_eq!(counts[1], 0, "{choice:?}");
            assert!((1350..=1650).contains(&counts[0]), "{choice:?}: {counts:?}");
        }
    }
}

#[test]
fn too_few_that_are_up_let_checks_be_disregarded_but_not_ejections() {
    for choice in ALL {
        let balancer = balancer(&choice, &[1, 1, 1, 1]);
        let world = World::of(4);
        world.set(0, DOWN);
        world.set(1, DOWN);
        assert!(!balancer.panics(&world), "half are up");
        let counts = shares(&balancer, &world, 400);
        assert_eq!((counts[0], counts[1]), (0, 0), "{choice:?}");
        world.set(2, DOWN);
        assert!(balancer.panics(&world));
        let counts = shares(&balancer, &world, 400);
        assert!(counts.iter().all(|count| *count > 50), "{choice:?}: {counts:?}");
        world.set(0, EJECTED);
        let counts = shares(&balancer, &world, 400);
        assert!(counts[0] == 0 && counts[1] > 50, "{choice:?}: {counts:?}");
    }
}

#[test]
fn where_nobody_is_left_all_but_the_drained_are() {
    for choice in ALL {
        let rules = Rules { panic_threshold: 0.0, ..RULES };
        let balancer = with(&choice, &[1, 1, 1], rules);
        let world = World::of(3);
        (0..3).for_each(|server| world.set(server, DOWN));
        assert!(shares(&balancer, &world, 300).iter().all(|count| *count > 50), "{choice:?}");
        (0..3).for_each(|server| world.set(server, EJECTED));
        world.set(0, DRAINED);
        let counts = shares(&balancer, &world, 300);
        assert!(counts[0] == 0 && counts[1] > 50 && counts[2] > 50, "{choice:?}: {counts:?}");
        (0..3).for_each(|server| world.set(server, DRAINED));
        let wish = Wish { key: Some(1), avoid: &[] };
        assert_eq!(balancer.pick(&world, &wish, || 0, || 0), None, "drained means drained");
    }
    let one = World::of(1);
    one.set(0, DOWN | EJECTED);
    let wish = Wish { key: None, avoid: &[0] };
    assert_eq!(balancer(&BY_USER, &[1]).pick(&one, &wish, || 0, || 0), Some(0), "there is no other");
}

#[test]
fn what_was_tried_comes_again_only_if_no_other_is_up() {
    for choice in ALL {
        let (balancer, world) = (balancer(&choice, &[1, 1, 1]), World::of(3));
        let mut dice = dice();
        let mut pick = |avoid: &[usize]| {
            let wish = Wish { key: Some(9), avoid };
            balancer.pick(&world, &wish, || 0, &mut dice).unwrap()
        };
        assert!((0..50).all(|_| pick(&[0, 2]) == 1), "{choice:?}");
        world.set(1, EJECTED);
        assert!((0..50).all(|_| pick(&[0, 2]) != 1), "{choice:?}");
        assert!((0..50).all(|_| pick(&[0]) == 2), "{choice:?}");
    }
}

#[test]
fn a_server_on_trial_has_one_request_at_a_time() {
    for choice in ALL {
        let (balancer, world) = (balancer(&choice, &[1, 1]), World::of(2));
        world.set(0, TRIAL);
        assert_eq!(shares(&balancer, &world, 200)[0], 1, "{choice:?}");
        world.standing[0].release();
        assert_eq!(shares(&balancer, &world, 200)[0], 1, "{choice:?}");
    }
}

#[test]
fn the_less_busy_of_two_wins_by_weight() {
    let mut world = World::of(2);
    world.in_flight = vec![5, 2];
    assert_eq!(shares(&balancer(&Choice::LeastRequest, &[1, 1]), &world, 50), [0, 50]);
    // 6/4 is less than 3/1.
    assert_eq!(shares(&balancer(&Choice::LeastRequest, &[4, 1]), &world, 50), [50, 0]);
}

#[test]
fn a_request_without_a_key_is_spread_by_lot() {
    let (balancer, world, mut dice) = (balancer(&BY_USER, &[1, 1]), World::of(2), dice());
    let wish = Wish { key: None, avoid: &[] };
    let first = (0..1000).filter(|_| balancer.pick(&world, &wish, || 0, &mut dice) == Some(0)).count();
    assert!((420..580).contains(&first), "{first}");
}

/// Within five standard deviations, which a fair choice never leaves in these runs.
fn fair(count: usize, rounds: usize, share: f64) -> bool {
    let expected = rounds as f64 * share;
    (count as f64 - expected).abs() <= 5.0 * (expected * (1.0 - share)).sqrt() + 2.0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shares_follow_weights(
        weights in prop::collection::vec(0u64..20, 1..7).prop_filter("one takes", |w| w.iter().any(|w| *w > 0)),
        out in prop::collection::vec(any::<bool>(), 7),
    ) {
        for choice in [Choice::RoundRobin, Choice::Random, BY_USER] {
            let (balancer, world) = (balancer(&choice, &weights), World::of(weights.len()));
            let takes = |server: usize| weights[server] > 0 && !out[server];
            if !(0..weights.len()).any(takes) {
                continue;
            }
            for server in (0..weights.len()).filter(|server| out[*server]) {
                world.set(server, EJECTED);
            }
            let total: u64 = (0..weights.len()).filter(|s| takes(*s)).map(|s| weights[s]).sum();
            let counts = shares(&balancer, &world, 4000);
            for (server, count) in counts.iter().enumerate() {
                let share = if takes(server) { weights[server] as f64 / total as f64 } else { 0.0 };
                prop_assert!(fair(*count, 4000, share), "{choice:?} {weights:?} {out:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn only_the_keys_of_a_server_that_goes_move(
        weights in prop::collection::vec(1u64..20, 2..8),
        gone in any::<prop::sample::Index>(),
    ) {
        let (balancer, world) = (balancer(&BY_USER, &weights), World::of(weights.len()));
        let gone = gone.index(weights.len());
        let before = homes(&balancer, &world, 500);
        world.set(gone, EJECTED);
        let after = homes(&balancer, &world, 500);
        for (before, after) in before.iter().zip(&after) {
            prop_assert!(*after != gone && (before == after || *before == gone));
        }
        world.standing[gone].set(EJECTED, false);
        prop_assert_eq!(homes(&balancer, &world, 500), before, "they come back with it");
    }

    #[test]
    fn only_its_own_keys_go_to_a_server_that_comes(weights in prop::collection::vec(1u64..20, 2..8)) {
        let last = weights.len() - 1;
        let (fewer, all) = (balancer(&BY_USER, &weights[..last]), balancer(&BY_USER, &weights));
        let (before, after) =
            (homes(&fewer, &World::of(last), 500), homes(&all, &World::of(weights.len()), 500));
        prop_assert!(before.iter().zip(&after).all(|(before, after)| before == after || *after == last));
    }

    #[test]
    fn a_server_that_came_up_gets_its_share_little_by_little(passed in 0u64..40_000) {
        for choice in [Choice::RoundRobin, Choice::Random, BY_USER] {
            let (balancer, world) = (balancer(&choice, &[1, 1]), World::of(2));
            world.standing[1].warm(1000);
            prop_assert!(world.standing[1].has(WARMING));
            let part = (passed as f64 / 30_000.0).clamp(0.1, 1.0);
            let counts = shares_at(&balancer, &world, 4000, 1000 + passed);
            prop_assert!(fair(counts[1], 4000, part / (1.0 + part)), "{choice:?} after {passed}: {counts:?}");
        }
    }

    /// Whatever happens to the servers: nobody drained is chosen, nobody that is out while another is well.
    #[test]
    fn nobody_is_chosen_who_must_not_be(
        bits in prop::collection::vec(0u8..32, 1..6),
        threshold in 0.0f64..=1.0,
        rolls in any::<u64>(),
    ) {
        for choice in ALL {
            let rules = Rules { panic_threshold: threshold, ..RULES };
            let (balancer, world) = (with(&choice, &vec![1; bits.len()], rules), World::of(bits.len()));
            bits.iter().enumerate().for_each(|(server, bits)| world.set(server, *bits));
            let wish = Wish { key: Some(rolls), avoid: &[] };
            let chosen = balancer.pick(&world, &wish, || 0, || rolls);
            let well = bits.iter().any(|bits| bits & (DOWN | EJECTED | DRAINED) == 0);
            match chosen {
                None => prop_assert!(bits.iter().all(|bits| bits & DRAINED != 0)),
                Some(chosen) => {
                    prop_assert!(bits[chosen] & DRAINED == 0);
                    prop_assert!(!well || bits[chosen] & EJECTED == 0);
                    prop_assert!(!well || bits[chosen] & DOWN == 0 || balancer.panics(&world));
                }
            }
        }
    }
}
