//! Which server takes the next request. No lock: a counter, dice, or the request's key.
//!
//! Turns are those of the smooth weighted round robin (as nginx has it), laid out once: a request takes the next
//! place of the list. A key finds its server by weighted rendezvous hashing (Thaler and Ravishankar 1998; weights as in
//! Schindelhauer and Schomaker 2005): each server draws a number from the key, the best one wins. So only the keys of
//! a server that goes find another one, each its own second best, and they come back with it.
//!
//! Servers of weight 0 and drained ones take none. Others are passed over while they are ejected or down; when fewer
//! than `panic_threshold` pass their health checks, the checks are disregarded, because then they rather say something
//! about the way to the servers. Ejections have a ceiling of their own and hold even then. Where nobody is left, all
//! but the drained are.

use super::spec::Choice;
use super::standing::{DOWN, DRAINED, EJECTED, Standing, TRIAL, WHOLE};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Longest list of turns; larger weights are scaled down to it.
const MAX_TURNS: u64 = 4096;
/// Servers whose weights are worked out without allocating.
const FEW: usize = 32;

/// Chooses among servers, which are known by their index.
#[derive(Debug)]
pub(super) struct Balancer {
    choice: Choice,
    places: Box<[Place]>,
    /// Indices in the order of their turns, for round robin.
    turns: Box<[u32]>,
    next: AtomicUsize,
    rules: Rules,
}

/// A server as the balancer knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Its share beside the others.
    pub(super) weight: u64,
    /// Tells it from the others, the same in every process.
    pub(super) seed: u64,
}

/// What holds for all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Rules {
    /// Milliseconds until a server that came up has its whole share.
    pub(super) slow_start: u64,
    /// When fewer than this share are up, health checks are disregarded.
    pub(super) panic_threshold: f64,
}

/// What the choice depends on besides the weights.
pub(super) trait Servers {
    /// How it stands.
    fn standing(&self, server: usize) -> &Standing;
    /// Requests it has.
    fn in_flight(&self, server: usize) -> usize;
}

/// A request, as far as the choice of its server goes.
pub(super) struct Wish<'a> {
    /// What it is spread by, where the upstream hashes.
    pub(super) key: Option<u64>,
    /// Servers that others are preferred to, if they are up.
    pub(super) avoid: &'a [usize],
}

/// How far the choice goes.
#[derive(Clone, Copy, PartialEq)]
enum Reach {
    /// Who is well.
    Well,
    /// Whoever is not drained.
    All,
}

/// The number that a text stands for (FNV-1a, then mixed): the same in every process and version.
pub(super) fn hash(text: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(text.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// Spreads a number over all of its bits (the last step of splitmix64).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Balancer {
    /// For these servers; at least one has a weight above zero.
    pub(super) fn new(choice: Choice, places: Vec<Place>, rules: Rules) -> Self {
        let turns = match choice {
            Choice::RoundRobin => turns(&places.iter().map(|place| place.weight).collect::<Vec<_>>()),
            _ => Box::default(),
        };
        Balancer { choice, places: places.into(), turns, next: AtomicUsize::new(0), rules }
    }

    /// Whether health checks are disregarded, because too few are up.
    pub(super) fn panics(&self, servers: &(impl Servers + ?Sized)) -> bool {
        let (mut up, mut all) = (0u32, 0u32);
        for (server, _) in self.places.iter().enumerate().filter(|(_, place)| place.weight > 0) {
            let standing = servers.standing(server);
            if !standing.has(DRAINED) {
                all += 1;
                up += u32::from(!standing.has(DOWN));
            }
        }
        up < all && f64::from(up) < self.rules.panic_threshold * f64::from(all)
    }

    /// The server of the next request; none if all are drained. `now` is asked only where time plays a part, `dice`
    /// gives uniform numbers.
    pub(super) fn pick(
        &self,
        servers: &(impl Servers + ?Sized),
        wish: &Wish<'_>,
        now: impl FnOnce() -> u64,
        mut dice: impl FnMut() -> u64,
    ) -> Option<usize> {
        let count = self.places.len();
        if count == 1 {
            return (!servers.standing(0).has(DRAINED)).then_some(0);
        }
        let bits = (0..count).fold(0, |bits, server| bits | servers.standing(server).bits());
        if bits == 0 && wish.avoid.is_empty() {
            let whole = |server: usize| self.places[server].weight;
            return self.among(servers, wish.key, &whole, &mut dice);
        }
        let (mut few, mut many) = ([0; FEW], Vec::new());
        let weights = match few.get_mut(..count) {
            Some(few) => few,
            None => {
                many.resize(count, 0);
                &mut *many
            }
        };
        let (now, panics) = (now(), bits & DOWN != 0 && self.panics(servers));
        for (reach, avoid) in
            [(Reach::Well, true), (Reach::Well, false), (Reach::All, true), (Reach::All, false)]
        {
            for (server, weight) in weights.iter_mut().enumerate() {
                let passed_over = avoid && wish.avoid.contains(&server);
                let share = self.share(servers.standing(server), now, panics, reach);
                *weight = if passed_over { 0 } else { self.places[server].weight * share };
            }
            while weights.iter().any(|weight| *weight > 0) {
                let chosen = self.among(servers, wish.key, &|server| weights[server], &mut dice)?;
                let standing = servers.standing(chosen);
                if reach == Reach::All || !standing.has(TRIAL) || standing.claim(now) {
                    return Some(chosen);
                }
                weights[chosen] = 0;
            }
        }
        None
    }

    /// Its part of its weight, of [`WHOLE`].
    fn share(&self, standing: &Standing, now: u64, panics: bool, reach: Reach) -> u64 {
        let bits = standing.bits();
        let out = match reach {
            Reach::All => bits & DRAINED != 0,
            Reach::Well => {
                bits & (DRAINED | EJECTED) != 0
                    || bits & DOWN != 0 && !panics
                    || bits & TRIAL != 0 && !standing.is_free(now)
            }
        };
        if out { 0 } else { standing.share(now, self.rules.slow_start) }
    }

    /// One of those that have a weight; none if none has.
    fn among(
        &self,
        servers: &(impl Servers + ?Sized),
        key: Option<u64>,
        weight: &dyn Fn(usize) -> u64,
        dice: &mut impl FnMut() -> u64,
    ) -> Option<usize> {
        match (&self.choice, key) {
            (Choice::RoundRobin, _) => self.in_turn(weight, dice),
            (Choice::Hash(_), Some(key)) => self.nearest(key, weight),
            (Choice::Random | Choice::Hash(_), _) => self.draw(dice(), None, weight),
            (Choice::LeastRequest, _) => {
                let one = self.draw(dice(), None, weight)?;
                let Some(two) = self.draw(dice(), Some(one), weight) else { return Some(one) };
                // Load over weight, cross-multiplied; both count the request that is being placed.
                let load = |a: usize, b: usize| (servers.in_flight(a) as u64 + 1).saturating_mul(weight(b));
                Some(if load(two, one) < load(one, two) { two } else { one })
            }
        }
    }

    /// Whose turn it is. Who is out loses its turn, to nobody in particular; who has a part of its share only, takes
    /// that part of its turns.
    fn in_turn(&self, weight: &dyn Fn(usize) -> u64, dice: &mut impl FnMut() -> u64) -> Option<usize> {
        let (mut last, mut next) = (None, 0);
        for _ in 0..self.turns.len() {
            next = self.next.fetch_add(1, Ordering::Relaxed);
            let server = self.turns[next % self.turns.len()] as usize;
            let (part, whole) = (weight(server), self.places[server].weight);
            if part == 0 {
                continue;
            }
            if part == whole || part >= whole * WHOLE || dice() % (whole * WHOLE) < part {
                return Some(server);
            }
            last = Some(server);
        }
        // Other threads may have had all the turns of those that are not out.
        let turns = || (0..self.turns.len()).map(|step| next.wrapping_add(step) % self.turns.len());
        last.or_else(|| turns().map(|turn| self.turns[turn] as usize).find(|server| weight(*server) > 0))
    }

    /// One by lot, by weight; not `except`.
    fn draw(&self, number: u64, except: Option<usize>, weight: &dyn Fn(usize) -> u64) -> Option<usize> {
        let weights =
            || (0..self.places.len()).filter(|server| Some(*server) != except).map(|s| (s, weight(s)));
        let total: u64 = weights().map(|(_, weight)| weight).sum();
        let mut left = number.checked_rem(total)?;
        for (server, weight) in weights() {
            match left.checked_sub(weight) {
                Some(rest) => left = rest,
                None => return Some(server),
            }
        }
        None
    }

    /// The one that draws best for this key: an exponential variate of the rate of its weight, the least of which
    /// falls to each with the probability of its share.
    fn nearest(&self, key: u64, weight: &dyn Fn(usize) -> u64) -> Option<usize> {
        let mut best: Option<(f64, usize)> = None;
        for (server, place) in self.places.iter().enumerate() {
            let weight = weight(server);
            if weight > 0 {
                let uniform = ((mix(key ^ place.seed) >> 11) + 1) as f64 / (1u64 << 53) as f64;
                let drawn = -uniform.ln() / weight as f64;
                if best.is_none_or(|(least, _)| drawn < least) {
                    best = Some((drawn, server));
                }
            }
        }
        best.map(|(_, server)| server)
    }
}

/// Each turn goes to the server that is furthest behind its share.
fn turns(weights: &[u64]) -> Box<[u32]> {
    let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
    let mut weights: Vec<u64> = weights.iter().map(|weight| weight / divisor).collect();
    let total: u64 = weights.iter().sum();
    if total > MAX_TURNS {
        for weight in weights.iter_mut().filter(|weight| **weight > 0) {
            *weight = ((u128::from(*weight) * u128::from(MAX_TURNS) / u128::from(total)) as u64).max(1);
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

/// The greatest common divisor.
pub(super) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
