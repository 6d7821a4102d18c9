//! Passwords: what they must have, and their hashes.
//!
//! bcrypt costs a core for a tenth of a second, so hashing runs on threads of its own ([`Workers`]), as many as there
//! are cores, with a short queue behind them; who comes later is sent away with 503 at once (SECURITY rule 8). A
//! [`Turn`] is a place at a worker: take it first, then do what must not happen twice, then hash.

use super::workers::Workers;
use crate::error::{FieldFault, GatewayError, Kind};
use crate::manifest::model::CharacterClass;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// bcrypt reads no more than this; longer passwords are refused, never cut.
pub const MAX_BYTES: usize = 72;

/// What stands where there is no hash to compare with: the form of a hash that no password has, so that an unknown
/// user costs what a wrong password costs.
const NOBODY: &str = "abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";

/// The workers that hash.
pub struct Passwords {
    workers: Arc<Workers>,
    free: Arc<Semaphore>,
    /// Workers and queue together.
    places: Arc<Semaphore>,
}

/// A place at a worker. Given back when dropped, or when the hashing it was spent on is done, even if nobody waits
/// for the result any more.
pub struct Turn {
    workers: Arc<Workers>,
    _worker: OwnedSemaphorePermit,
    _place: OwnedSemaphorePermit,
}

/// What came of comparing a password with a hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is the password.
    pub right: bool,
    /// Its new hash, where the kept one's cost is not the policy's any more.
    pub rehashed: Option<String>,
}

impl Passwords {
    /// With this many workers, and this many who may wait for one.
    pub fn new(workers: usize, queue: usize) -> Self {
        let workers = Workers::new(workers);
        Passwords {
            free: Arc::new(Semaphore::new(workers.count())),
            places: Arc::new(Semaphore::new(workers.count() + queue)),
            workers: Arc::new(workers),
        }
    }

    /// Waits for a worker.
    ///
    /// # Errors
    /// 503 `overloaded` at once when the queue is full.
    pub async fn turn(&self) -> Result<Turn, GatewayError> {
        let place =
            self.places.clone().try_acquire_owned().map_err(|_| GatewayError::from(Kind::Overloaded))?;
        // The semaphore is never closed.
        let worker = self.free.clone().acquire_owned().await.map_err(|_| Kind::Internal)?;
        Ok(Turn { workers: self.workers.clone(), _worker: worker, _place: place })
    }
}

impl Turn {
    /// Hashes a password (`$2b$`) with a cost of 4 to 31.
    ///
    /// # Errors
    /// Over [`MAX_BYTES`] or a cost out of range: 500, since both were to be checked before.
    pub async fn hash(self, password: String, cost: u32) -> Result<String, GatewayError> {
        self.run(move || hash(&password, cost)).await?
    }

    /// Compares a password with a hash (`$2a$`, `$2b$`, `$2y$`), or with nobody's where there is none, which takes as
    /// long. Where it is right and the hash's cost is not `cost`, hashes it anew.
    ///
    /// A hash that cannot be read is nobody's password; the log says so.
    ///
    /// # Errors
    /// 500 where no worker thread could run, or hashing anew fails.
    pub async fn verify(
        self,
        password: String,
        kept: Option<String>,
        cost: u32,
    ) -> Result<Verdict, GatewayError> {
        self.run(move || {
            let nobody = || format!("$2b${cost:02}${NOBODY}");
            let (kept, known) = kept.map_or_else(|| (nobody(), false), |kept| (kept, true));
            let right = match bcrypt::verify(&password, &kept) {
                Ok(right) => right && known && password.len() <= MAX_BYTES,
                Err(error) => {
                    tracing::error!(%error, "a kept password hash cannot be read: its user must set a new password");
                    let _ = bcrypt::verify(&password, &nobody());
                    false
                }
            };
            let stale = right && cost_of(&kept) != Some(cost);
            let rehashed = if stale { Some(hash(&password, cost)?) } else { None };
            Ok(Verdict { right, rehashed })
        })
        .await?
    }

    async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, GatewayError> {
        let workers = self.workers.clone();
        let result = workers.run(move || {
            let result = work();
            drop(self);
            result
        });
        result.await.ok_or_else(|| {
            tracing::error!("hashing broke off");
            Kind::Internal.into()
        })
    }
}

fn hash(password: &str, cost: u32) -> Result<String, GatewayError> {
    if password.len() > MAX_BYTES {
        tracing::error!("a password of more than {MAX_BYTES} bytes came as far as hashing");
        return Err(Kind::Internal.into());
    }
    // 72 bytes exactly are whole in bcrypt; the crate's own check counts the NUL that it then leaves out.
    bcrypt::hash(password, cost).map_err(|error| {
        tracing::error!(%error, cost, "cannot hash a password");
        Kind::Internal.into()
    })
}

/// The cost a hash was made with.
fn cost_of(hash: &str) -> Option<u32> {
    hash.split('$').nth(2)?.parse().ok()
}

/// Everything that is wrong with a new password, each fault naming its rule. `field` is its JSON Pointer.
pub(super) fn faults(
    field: &'static str,
    password: &str,
    min_length: u32,
    classes: &[CharacterClass],
) -> Vec<FieldFault> {
    let mut faults: Vec<FieldFault> = too_long(field, password).into_iter().collect();
    if password.chars().count() < min_length as usize {
        let en = format!("must have at least {min_length} characters");
        faults.push(FieldFault::new(
            field,
            "password_too_short",
            en,
            format!("密码至少需要 {min_length} 个字符"),
        ));
    }
    for class in classes {
        let (has, code, en, zh): (fn(&char) -> bool, _, _, _) = match class {
            CharacterClass::Lower => (
                char::is_ascii_lowercase,
                "password_needs_lower",
                "must have a lower-case letter",
                "密码必须包含小写字母",
            ),
            CharacterClass::Upper => (
                char::is_ascii_uppercase,
                "password_needs_upper",
                "must have an upper-case letter",
                "密码必须包含大写字母",
            ),
            CharacterClass::Digit => {
                (char::is_ascii_digit, "password_needs_digit", "must have a digit", "密码必须包含数字")
            }
            CharacterClass::Symbol => (
                |c| !c.is_ascii_alphanumeric(),
                "password_needs_symbol",
                "must have a character that is neither letter nor digit",
                "密码必须包含特殊字符",
            ),
        };
        if !password.chars().any(|c| has(&c)) {
            faults.push(FieldFault::new(field, code, en, zh));
        }
    }
    faults
}

/// The fault of a password that bcrypt would cut.
pub(super) fn too_long(field: &'static str, password: &str) -> Option<FieldFault> {
    (password.len() > MAX_BYTES).then(|| {
        let en = format!("must have at most {MAX_BYTES} bytes in UTF-8");
        FieldFault::new(field, "password_too_long", en, format!("密码不能超过 {MAX_BYTES} 字节"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    async fn verify(password: &str, kept: Option<&str>, cost: u32) -> Verdict {
        let turn = Passwords::new(1, 0).turn().await.unwrap();
        turn.verify(password.to_owned(), kept.map(str::to_owned), cost).await.unwrap()
    }

    #[tokio::test]
    async fn hashes_of_every_version_verify() {
        let parts = bcrypt::hash_with_result("Correct1horse", 4).unwrap();
        for version in [bcrypt::Version::TwoA, bcrypt::Version::TwoB, bcrypt::Version::TwoY] {
            let kept = parts.format_for_version(version);
            assert_eq!(
                verify("Correct1horse", Some(&kept), 4).await,
                Verdict { right: true, rehashed: None }
            );
            assert!(!verify("Correct1hors", Some(&kept), 4).await.right);
        }
    }

    #[tokio::test]
    async fn a_changed_cost_hashes_anew() {
        let kept = bcrypt::hash("Correct1horse", 4).unwrap();
        let verdict = verify("Correct1horse", Some(&kept), 5).await;
        let rehashed = verdict.rehashed.expect("the cost differs");
        assert!(rehashed.starts_with("$2b$05$"));
        assert!(verify("Correct1horse", Some(&rehashed), 5).await.right);
        assert_eq!(verify("wrong", Some(&kept), 5).await.rehashed, None);
    }

    #[tokio::test]
    async fn nothing_is_cut() {
        let long = "Aa1".repeat(24);
        assert_eq!(long.len(), MAX_BYTES);
        let turn = Passwords::new(1, 0).turn().await.unwrap();
        let kept = turn.hash(long.clone(), 4).await.unwrap();
        assert!(verify(&long, Some(&kept), 4).await.right);
        assert!(!verify(&format!("{long}x"), Some(&kept), 4).await.right);
        let turn = Passwords::new(1, 0).turn().await.unwrap();
        assert!(turn.hash(format!("{long}x"), 4).await.is_err());
    }

    #[tokio::test]
    async fn nobody_costs_what_somebody_costs() {
        let kept = bcrypt::hash("Correct1horse", 9).unwrap();
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..5 {
            for (times, kept) in times.iter_mut().zip([Some(kept.as_str()), None]) {
                let begun = Instant::now();
                assert!(!verify("wrong", kept, 9).await.right);
                times.push(begun.elapsed());
            }
        }
        let [known, unknown] = times.map(|mut times| {
            times.sort();
            times[0].as_secs_f64()
        });
        assert!((0.5..2.0).contains(&(unknown / known)), "known {known}, unknown {unknown}");
    }

    #[tokio::test]
    async fn what_is_no_hash_is_nobodys_password() {
        for kept in ["", "plain text", "$2a$99$short"] {
            assert!(!verify("plain text", Some(kept), 4).await.right);
        }
        bcrypt::verify("x", &format!("$2b$04${NOBODY}")).expect("nobody's hash has the form of one");
    }

    #[tokio::test]
    async fn who_comes_when_the_queue_is_full_is_sent_away() {
        let passwords = Arc::new(Passwords::new(1, 1));
        let working = passwords.turn().await.unwrap();
        let waiting = tokio::spawn({
            let passwords = passwords.clone();
            async move { passwords.turn().await.is_ok() }
        });
        while passwords.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = passwords.turn().await.err().unwrap();
        assert_eq!(refused.kind, Kind::Overloaded);
        assert!(refused.retry_after.is_some());
        drop(working);
        assert!(waiting.await.unwrap());
        assert!(passwords.turn().await.is_ok(), "places come back");
    }

    #[test]
    fn each_failed_rule_is_named() {
        use CharacterClass::{Digit, Lower, Symbol, Upper};
        let codes = |password: &str, classes: &[CharacterClass]| -> Vec<&str> {
            faults("/password", password, 8, classes).iter().map(|fault| fault.code).collect()
        };
        assert_eq!(
            codes("abc", &[Lower, Upper, Digit]),
            ["password_too_short", "password_needs_upper", "password_needs_digit"]
        );
        assert_eq!(codes("ABCDEFG1", &[Lower, Upper, Digit]), ["password_needs_lower"]);
        assert_eq!(codes("Abcdefg1", &[Lower, Upper, Digit, Symbol]), ["password_needs_symbol"]);
        assert_eq!(codes("密码Aa1密码密", &[Lower, Upper, Digit, Symbol]), [] as [&str; 0]);
        assert_eq!(codes(&"Aa1".repeat(25), &[Lower]), ["password_too_long"]);
    }
}
