//! Which server takes the next request. No lock: a counter, or dice.
//!
//! Turns are those of the smooth weighted round robin (as nginx has it), laid out once: a request takes the next
//! place of the list. Servers of weight 0 take none; unhealthy ones are passed over unless all are.

use super::spec::Choice;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Longest list of turns; larger weights are scaled down to it.
const MAX_TURNS: u64 = 4096;

/// Chooses among servers, which are known by their index.
#[derive(Debug)]
pub(super) struct Balancer {
    choice: Choice,
    weights: Box<[u32]>,
    /// Indices in the order of their turns, for round robin.
    turns: Box<[u32]>,
    next: AtomicUsize,
}

/// What the choice depends on besides the weights.
pub(super) trait Servers {
    /// Whether it takes requests.
    fn healthy(&self, server: usize) -> bool;
    /// Requests it has.
    fn in_flight(&self, server: usize) -> usize;
}

impl Balancer {
    /// For servers of these weights; at least one is above zero.
    pub(super) fn new(choice: Choice, weights: &[u32]) -> Self {
        let turns = match choice {
            Choice::RoundRobin => turns(weights),
            Choice::LeastRequest | Choice::Random => Box::default(),
        };
        Balancer { choice, weights: weights.into(), turns, next: AtomicUsize::new(0) }
    }

    /// The server of the next request. `dice` gives uniform numbers.
    pub(super) fn pick(&self, servers: &(impl Servers + ?Sized), mut dice: impl FnMut() -> u64) -> usize {
        if self.weights.len() == 1 {
            return 0;
        }
        match self.choice {
            Choice::RoundRobin => self.in_turn(servers),
            Choice::Random => self.draw(servers, dice(), None),
            Choice::LeastRequest => {
                let one = self.draw(servers, dice(), None);
                let two = self.draw(servers, dice(), Some(one));
                // Load over weight, cross-multiplied; both count the request that is being placed.
                let load = |a: usize, b: usize| {
                    (servers.in_flight(a) as u64 + 1).saturating_mul(u64::from(self.weights[b]))
                };
                if load(two, one) < load(one, two) { two } else { one }
            }
        }
    }

    fn in_turn(&self, servers: &(impl Servers + ?Sized)) -> usize {
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let place = |step: usize| self.turns[start.wrapping_add(step) % self.turns.len()] as usize;
        (0..self.turns.len()).map(place).find(|server| servers.healthy(*server)).unwrap_or_else(|| place(0))
    }

    /// One by lot, by weight, among the healthy; `except` only if there is no other.
    fn draw(&self, servers: &(impl Servers + ?Sized), number: u64, except: Option<usize>) -> usize {
        let total = |allowed: &dyn Fn(usize) -> bool| -> u64 {
            (0..self.weights.len()).filter(|s| allowed(*s)).map(|s| u64::from(self.weights[s])).sum()
        };
        let pick = |allowed: &dyn Fn(usize) -> bool, total: u64| {
            let mut left = number % total;
            for server in (0..self.weights.len()).filter(|s| allowed(*s)) {
                match left.checked_sub(u64::from(self.weights[server])) {
                    Some(rest) => left = rest,
                    None => return server,
                }
            }
            0
        };
        let healthy = |server: usize| servers.healthy(server) && Some(server) != except;
        match total(&healthy) {
            0 => match except {
                Some(only) => only,
                None => pick(&|_| true, total(&|_| true).max(1)),
            },
            sum => pick(&healthy, sum),
        }
    }
}

/// Each turn goes to the server that is furthest behind its share.
fn turns(weights: &[u32]) -> Box<[u32]> {
    let divisor = weights.iter().fold(0, |a, b| gcd(a, u64::from(*b))).max(1);
    let mut weights: Vec<u64> = weights.iter().map(|weight| u64::from(*weight) / divisor).collect();
    let total: u64 = weights.iter().sum();
    if total > MAX_TURNS {
        for weight in weights.iter_mut().filter(|weight| **weight > 0) {
            *weight = (*weight * MAX_TURNS / total).max(1);
        }
    }
    let total: u64 = weights.iter().sum();
    let mut current = vec![0i64; weights.len()];
    let turn = |_| {
        for (current, weight) in current.iter_mut().zip(&weights) {
            *current += *weight as i64;
        }
        let mut best = 0;
        for server in 1..current.len() {
            if current[server] > current[best] {
                best = server;
            }
        }
        current[best] -= total as i64;
        best as u32
    };
    (0..total).map(turn).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    struct World {
        healthy: Vec<bool>,
        in_flight: Vec<usize>,
    }

    impl World {
        fn of(count: usize) -> Self {
            World { healthy: vec![true; count], in_flight: vec![0; count] }
        }
    }

    impl Servers for World {
        fn healthy(&self, server: usize) -> bool {
            self.healthy[server]
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
            let mut z = state.get();
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
    }

    fn shares(balancer: &Balancer, world: &World, rounds: usize) -> Vec<usize> {
        let mut dice = dice();
        let mut counts = vec![0; world.healthy.len()];
        (0..rounds).for_each(|_| counts[balancer.pick(world, &mut dice)] += 1);
        counts
    }

    #[test]
    fn turns_are_smooth_and_exact() {
        assert_eq!(&*turns(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(&*turns(&[10, 0, 20]), [2, 0, 2]);
        let balancer = Balancer::new(Choice::RoundRobin, &[3, 1, 0]);
        assert_eq!(shares(&balancer, &World::of(3), 400), [300, 100, 0]);
        assert!(turns(&[u32::MAX, 1]).len() <= MAX_TURNS as usize + 1);
        assert!(turns(&[u32::MAX, 1]).contains(&1));
    }

    #[test]
    fn the_unhealthy_are_passed_over_unless_all_are() {
        for choice in [Choice::RoundRobin, Choice::Random, Choice::LeastRequest] {
            let balancer = Balancer::new(choice, &[1, 1, 1]);
            let mut world = World::of(3);
            world.healthy[1] = false;
            let counts = shares(&balancer, &world, 300);
            assert!(counts[1] == 0 && counts[0] > 50 && counts[2] > 50, "{choice:?}: {counts:?}");
            world.healthy = vec![false; 3];
            let counts = shares(&balancer, &world, 300);
            assert!(counts.iter().all(|count| *count > 50), "{choice:?}: {counts:?}");
            world.healthy = vec![false, true, false];
            assert_eq!(shares(&balancer, &world, 9), [0, 9, 0], "{choice:?}");
        }
    }

    #[test]
    fn weight_zero_takes_nothing() {
        for choice in [Choice::RoundRobin, Choice::Random, Choice::LeastRequest] {
            let balancer = Balancer::new(choice, &[0, 1, 1]);
            let mut world = World::of(3);
            world.healthy = vec![true, false, false];
            assert_eq!(shares(&balancer, &world, 100)[0], 0, "{choice:?}");
        }
    }

    #[test]
    fn lots_follow_weights() {
        let counts = shares(&Balancer::new(Choice::Random, &[3, 1]), &World::of(2), 4000);
        assert!((2850..3150).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn the_less_busy_of_two_wins_by_weight() {
        let mut world = World::of(2);
        world.in_flight = vec![5, 2];
        assert_eq!(shares(&Balancer::new(Choice::LeastRequest, &[1, 1]), &world, 50), [0, 50]);
        // 6/4 is less than 3/1.
        assert_eq!(shares(&Balancer::new(Choice::LeastRequest, &[4, 1]), &world, 50), [50, 0]);
    }
}
