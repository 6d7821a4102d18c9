//! The secrets that sign and verify our own tokens: HS256 and nothing else, one current and those before it.

use crate::settings::{Environment, Settings};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use rand::TryRngCore;
use serde::Serialize;
use std::fmt;

/// RFC 7518, section 3.2: a key as long as the hash.
const LEAST_BYTES: usize = 32;

/// What signs and what verifies.
pub struct Keys {
    sign: EncodingKey,
    /// The current one first.
    verify: Vec<DecodingKey>,
}

/// Why there are no keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(String);

impl Keys {
    /// From settings. In development a missing secret is made up, and said so.
    ///
    /// # Errors
    /// In production, where the secret is missing or a secret is shorter than 32 bytes; anywhere, where its file
    /// cannot be read or there is no randomness.
    pub fn from_settings(settings: &Settings) -> Result<Self, KeyError> {
        let strict = settings.environment == Environment::Production;
        let previous: Vec<&str> =
            settings.jwt_previous_secrets.iter().map(|secret| secret.reveal().trim()).collect();
        let previous: Vec<&str> = previous.into_iter().filter(|secret| !secret.is_empty()).collect();
        let Some(current) = secret(settings)? else {
            if strict {
                return Err(KeyError(
                    "no secret to sign tokens with: set JWT_SECRET or JWT_SECRET_FILE to at least 32 random bytes \
                     (`openssl rand -base64 48` makes one)"
                        .to_owned(),
                ));
            }
            tracing::warn!(
                "JWT_SECRET is not set: tokens are signed with a random secret and end with this process"
            );
            return Ok(Keys::new(&random()?, &previous));
        };
        for (name, text) in [("JWT_SECRET", current.as_str())]
            .into_iter()
            .chain(previous.iter().map(|text| ("JWT_PREVIOUS_SECRETS", *text)))
        {
            if text.len() >= LEAST_BYTES {
                continue;
            }
            let message = format!("{name} is {} bytes long: at least {LEAST_BYTES} are needed", text.len());
            if strict {
                return Err(KeyError(format!("{message} where ENVIRONMENT is production")));
            }
            tracing::warn!("{message} in production");
        }
        Ok(Keys::new(current.as_bytes(), &previous))
    }

    /// With a current secret and those that are still accepted.
    pub fn new(current: &[u8], previous: &[&str]) -> Self {
        let all = std::iter::once(current).chain(previous.iter().map(|secret| secret.as_bytes()));
        Keys { sign: EncodingKey::from_secret(current), verify: all.map(DecodingKey::from_secret).collect() }
    }

    /// Signs claims.
    pub(super) fn sign(&self, claims: &impl Serialize) -> String {
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &self.sign)
            .expect("HS256 takes a secret of any length, and claims are plain text and numbers")
    }

    /// Keys that may have signed a token, the current one first.
    pub(super) fn candidates(&self) -> &[DecodingKey] {
        &self.verify
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({} secrets)", self.verify.len())
    }
}

fn secret(settings: &Settings) -> Result<Option<String>, KeyError> {
    if let Some(secret) = &settings.jwt_secret {
        let secret = secret.reveal().trim();
        return Ok((!secret.is_empty()).then(|| secret.to_owned()));
    }
    let Some(path) = &settings.jwt_secret_file else { return Ok(None) };
    let text = std::fs::read_to_string(path).map_err(|error| {
        KeyError(format!("cannot read the token secret from {}: {error}", path.display()))
    })?;
    match text.trim() {
        "" => Err(KeyError(format!("{} holds no token secret: it is empty", path.display()))),
        secret => Ok(Some(secret.to_owned())),
    }
}

fn random() -> Result<[u8; LEAST_BYTES], KeyError> {
    let mut bytes = [0; LEAST_BYTES];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| KeyError(format!("the system gives no randomness for a token secret: {error}")))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    fn keys(flags: &[&str]) -> Result<usize, String> {
        let settings = Cli::parse_from(std::iter::once(&"x").chain(flags)).settings;
        Keys::from_settings(&settings).map(|keys| keys.verify.len()).map_err(|error| error.to_string())
    }

    #[test]
    fn production_needs_a_long_secret() {
        let production = "--environment=production";
        let long = format!("--jwt-secret={}", "x".repeat(32));
        assert_eq!(keys(&[production, &long]), Ok(1));
        assert!(keys(&[production]).unwrap_err().contains("JWT_SECRET"));
        let short = keys(&[production, "--jwt-secret=hunter2"]).unwrap_err();
        assert!(short.contains("7 bytes") && !short.contains("hunter2"), "{short}");
        assert!(keys(&[production, &long, "--jwt-previous-secrets=short"]).is_err());
        assert_eq!(keys(&[production, &long, &format!("--jwt-previous-secrets={}", "y".repeat(40))]), Ok(2));
        assert!(keys(&[production, "--jwt-secret= "]).is_err(), "blank is missing");
    }

    #[test]
    fn development_makes_one_and_takes_short_ones() {
        assert_eq!(keys(&[]), Ok(1));
        assert_eq!(keys(&["--jwt-secret=short", "--jwt-previous-secrets=a,b"]), Ok(3));
    }

    #[test]
    fn a_file_may_hold_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        let flag = format!("--jwt-secret-file={}", file.display());
        assert!(keys(&[&flag]).unwrap_err().contains("cannot read"));
        std::fs::write(&file, "\n").unwrap();
        assert!(keys(&[&flag]).unwrap_err().contains("empty"));
        std::fs::write(&file, format!("{}\n", "z".repeat(32))).unwrap();
        assert_eq!(keys(&["--environment=production", &flag]), Ok(1));
    }
}
