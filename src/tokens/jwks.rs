//! Key sets of other issuers (RFC 7517): fetched by a task, used without waiting.
//!
//! A set is fetched when the manifest first names it, then every [`REFRESH`], and at once when a token names a key that
//! is not in it, but not within [`GAP`] of the last time. While its address fails, the keys that are known stay good.

use super::cache::Cache;
use super::verify::signature_only;
use crate::identity::Identity;
use arc_swap::ArcSwap;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

/// How old keys may get.
const REFRESH: Duration = Duration::from_secs(600);
/// Between two fetches that callers bring about.
const GAP: Duration = Duration::from_secs(30);
/// After a failure.
const RETRY: Duration = Duration::from_secs(5);
/// One fetch, and how long a request waits for it.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Larger answers are no key sets.
const LARGEST: usize = 512 * 1024;

/// What was verified, by token: forgotten when a key goes.
pub(super) type Verified = Arc<Cache<Arc<Identity>>>;

/// Every set that the live manifest names.
pub(super) struct KeySets {
    sets: ArcSwap<HashMap<String, Arc<Running>>>,
    verified: Verified,
}

struct Running {
    set: Arc<KeySet>,
    task: Option<tokio::task::AbortHandle>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// One set.
#[derive(Debug)]
pub(super) struct KeySet {
    keys: ArcSwap<ProviderKeys>,
    wanted: Notify,
    /// Whether asking for it would fetch it now, or it is being fetched.
    open: AtomicBool,
    attempts: watch::Sender<u64>,
}

/// The usable keys of a set.
#[derive(Debug, Default)]
pub(super) struct ProviderKeys(Vec<ProviderKey>);

/// A public key and what it may verify.
#[derive(Debug)]
pub(super) struct ProviderKey {
    id: Option<String>,
    pub(super) key: DecodingKey,
    pub(super) validation: Validation,
}

impl KeySets {
    pub(super) fn new(verified: Verified) -> Self {
        KeySets { sets: ArcSwap::default(), verified }
    }

    /// From now on these are wanted; what is known already stays.
    pub(super) fn adopt<'a>(&self, urls: impl Iterator<Item = &'a str>) {
        let before = self.sets.load_full();
        let wanted: HashMap<_, _> = urls
            .map(|url| {
                let running = before.get(url).cloned();
                (url.to_owned(), running.unwrap_or_else(|| Arc::new(self.run(url))))
            })
            .collect();
        self.sets.store(Arc::new(wanted));
    }

    pub(super) fn of(&self, url: &str) -> Option<Arc<KeySet>> {
        Some(self.sets.load().get(url)?.set.clone())
    }

    fn run(&self, url: &str) -> Running {
        let set = Arc::new(KeySet::new());
        // Offline (in a check) nobody will verify anything.
        let task = tokio::runtime::Handle::try_current().ok().map(|runtime| {
            runtime.spawn(keep_fresh(url.to_owned(), set.clone(), self.verified.clone())).abort_handle()
        });
        Running { set, task }
    }
}

impl KeySet {
    fn new() -> Self {
        KeySet {
            keys: ArcSwap::default(),
            wanted: Notify::new(),
            open: AtomicBool::new(true),
            attempts: watch::Sender::new(0),
        }
    }

    pub(super) fn keys(&self) -> Arc<ProviderKeys> {
        self.keys.load_full()
    }

    /// Has it fetched again if that is due, and waits until it was.
    pub(super) async fn refetched(&self) {
        if !self.open.load(Ordering::Acquire) {
            return;
        }
        let mut attempts = self.attempts.subscribe();
        self.wanted.notify_one();
        let _ = tokio::time::timeout(TIMEOUT, attempts.changed()).await;
    }
}

impl ProviderKeys {
    /// Reads a set. Keys that cannot verify (of other kinds, for encryption) are left out.
    ///
    /// # Errors
    /// Why it is no key set.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let whole: serde_json::Value =
            serde_json::from_slice(body).map_err(|error| format!("not JSON: {error}"))?;
        let list = whole.get("keys").and_then(|keys| keys.as_array()).ok_or("no list of `keys` in it")?;
        // A key of a kind that is not known must not make the others unusable.
        let known = list.iter().filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
        Ok(ProviderKeys(known.filter_map(|jwk| ProviderKey::of(&jwk)).collect()))
    }

    /// The key a token names; the only one that fits where it names none.
    pub(super) fn choose(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&ProviderKey> {
        let mut fitting = self.0.iter().filter(|key| {
            key.validation.algorithms.contains(&algorithm)
                && id.is_none_or(|id| key.id.as_deref() == Some(id))
        });
        let first = fitting.next()?;
        fitting.next().is_none().then_some(first)
    }
}

impl ProviderKey {
    fn of(jwk: &Jwk) -> Option<Self> {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        let family: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => &[RS256, RS384, RS512, PS256, PS384, PS512],
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => &[ES256],
                EllipticCurve::P384 => &[ES384],
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => &[EdDSA],
            // A secret that is published is none.
            _ => return None,
        };
        if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
            return None;
        }
        let algorithms: Vec<Algorithm> = match jwk.common.key_algorithm {
            Some(pinned) => {
                let pinned: Algorithm = pinned.to_string().parse().ok()?;
                vec![*family.iter().find(|known| **known == pinned)?]
            }
            None => family.to_vec(),
        };
        Some(ProviderKey {
            id: jwk.common.key_id.clone(),
            key: DecodingKey::from_jwk(jwk).ok()?,
            validation: signature_only(&algorithms),
        })
    }
}

async fn keep_fresh(url: String, set: Arc<KeySet>, verified: Verified) {
    let client = match client() {
        Ok(client) => client,
        Err(error) => {
            tracing::error!(%error, "key sets cannot be fetched: tokens of other issuers are refused");
            return;
        }
    };
    let mut known = Vec::new();
    let mut failing = false;
    loop {
        let fetched = match fetch(&client, &url).await {
            Ok(body) if body == known => Ok(()),
            Ok(body) => ProviderKeys::parse(&body).map(|keys| {
                tracing::info!(%url, keys = keys.0.len(), "a key set was fetched");
                set.keys.store(Arc::new(keys));
                // What a key that went had signed must not count any longer.
                verified.clear();
                known = body;
            }),
            Err(error) => Err(error),
        };
        let failed = fetched.is_err();
        match fetched {
            Err(error) if !failing => tracing::warn!(
                %url, error, "a key set cannot be fetched; keys known before stay good, if there are any"
            ),
            Ok(()) if failing => tracing::info!(%url, "a key set can be fetched again"),
            _ => {}
        }
        failing = failed;
        set.open.store(false, Ordering::Release);
        set.attempts.send_modify(|count| *count += 1);
        tokio::time::sleep(if failed { RETRY } else { GAP }).await;
        set.open.store(true, Ordering::Release);
        let pause = if failed { RETRY } else { REFRESH - GAP };
        let _ = tokio::time::timeout(pause, set.wanted.notified()).await;
    }
}

async fn fetch(client: &reqwest::Client, url: &str) -> Result<Vec<u8>, String> {
    let failed = |error: reqwest::Error| error.without_url().to_string();
    let mut response = client.get(url).send().await.map_err(failed)?;
    if response.status() != 200 {
        return Err(format!("it answers {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        if body.len() + piece.len() > LARGEST {
            return Err(format!("it is larger than {LARGEST} bytes"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// Public authorities, no proxies of the environment, no redirects (SECURITY rule 18).
fn client() -> Result<reqwest::Client, String> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TIMEOUT)
        .build()
        .map_err(|error| error.to_string())
}
